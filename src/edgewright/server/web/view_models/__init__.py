"""What templates show: pure functions from kept records to small frozen ones. No requests, no store, no clock."""

__all__: list[str] = []
