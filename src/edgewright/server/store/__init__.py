"""One store, two databases: SQLite in a file, or PostgreSQL.

from edgewright.server.store.store import create_store
store = create_store("sqlite:///fleet.db")
store.check_ins.take(batch)
"""

__all__: list[str] = []
