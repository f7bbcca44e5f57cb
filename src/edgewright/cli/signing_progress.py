"""What takes seconds because it signs: a sign of life meanwhile, which makes way for a question."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from edgewright.cli.passphrase import ask_passphrase
from edgewright.trust.keys.signing_keys import KeyFolder

__all__ = ["signing"]


@contextmanager
def signing(folder: Path, what: str) -> Iterator[KeyFolder]:
    """Yield the keys of a folder, and show what is being done until the end.

    Args:
        folder: With the keys.
        what: Is being done.
    """
    status = Console(stderr=True).status(what)

    def asked(key: str) -> str:
        status.stop()
        try:
            return ask_passphrase(key)
        finally:
            status.start()

    with status:
        yield KeyFolder(folder, asked)
