"""The control plane: what a fleet says is kept here, and decisions about it are made and can be asked why.

The rest of it needs the extra `server`; `access` and `store.kept` import without.
"""

__all__: list[str] = []
