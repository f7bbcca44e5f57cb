"""One file per verb."""

__all__: list[str] = []
