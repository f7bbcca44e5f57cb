"""What named and summed signals say of a fleet: alerts, and what may be done about them by itself. Pure."""

__all__: list[str] = []
