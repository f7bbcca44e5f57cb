"""The records that both sides exchange: frozen, validated, versioned; no I/O.

>>> from edgewright.contract.device_class import Budget
>>> Budget(size_bytes=200_000).confidence
0.95
"""

__all__: list[str] = []
