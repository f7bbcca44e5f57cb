"""The private sum: what a fleet answers together, without any device's answer being seen.

Encoding, noise, what it costs and what may be spent; masks, and both protocols that add what is masked. All of it
is pure, over bytes and arrays: whoever has sockets, files and clocks hands in what came and stores what is kept.

>>> from edgewright.privacy.accountant import epsilon_of
>>> round(epsilon_of(rho=0.05, delta=1e-6), 2)
1.47
"""

__all__: list[str] = []
