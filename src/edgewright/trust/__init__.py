"""Who may say what devices run: keys, signed metadata, and what a device believes of it.

`publish` holds keys and is for the machine that releases; `verify` is for devices. The format is TUF's
(https://theupdateframework.io), so that its guarantees are.
"""

__all__: list[str] = []
