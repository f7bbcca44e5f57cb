"""Where data comes from: one module per kind of source, each giving the same raw arrays."""

__all__: list[str] = []
