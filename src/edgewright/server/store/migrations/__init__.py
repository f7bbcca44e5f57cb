"""How a database comes from one version to the next; `store/migration.py` runs these."""

__all__: list[str] = []
