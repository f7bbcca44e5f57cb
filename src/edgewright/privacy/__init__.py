"""Sums over a fleet that tell nothing of one device: encoding, noise, what it costs, and what may be spent.

>>> from edgewright.privacy.account import epsilon_of
>>> round(epsilon_of(rho=0.05, delta=1e-6), 2)
1.47
"""

__all__: list[str] = []
