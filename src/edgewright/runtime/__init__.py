"""How a model is run on a device."""

__all__: list[str] = []
