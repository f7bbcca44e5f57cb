"""Decisions about rollouts: pure functions from evidence to what is to become of them.

Devices are compared as assigned, one bounded outcome each, fixed at a deadline; looks are free.
"""

__all__: list[str] = []
