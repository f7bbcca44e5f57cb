"""The private sum: what a fleet answers together, without any device's answer being seen.

Pure protocols over bytes and arrays. Whoever has sockets, files and clocks hands in what came and stores what is to
be kept; nothing here does either.
"""

__all__: list[str] = []
