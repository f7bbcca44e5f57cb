"""Making a model fit a budget, and proving that it still works."""

__all__: list[str] = []
