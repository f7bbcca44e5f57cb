"""Pure numerics: statistical bounds and tests, no files, no clocks."""

__all__: list[str] = []
