"""Asking for a passphrase: from the environment for scripts, else from the terminal."""

import getpass
import os
import sys

from edgewright.contract.errors import InputError

__all__ = ["PASSPHRASE_VARIABLE", "ask_new_passphrase", "ask_passphrase"]

PASSPHRASE_VARIABLE = "EDGEWRIGHT_PASSPHRASE"  # noqa: S105 - a name, not the passphrase
_SHORTEST = 8


def ask_passphrase(key: str) -> str:
    """Return the passphrase of a key.

    Raises:
        InputError: There is neither the variable nor a terminal.
    """
    known = os.environ.get(PASSPHRASE_VARIABLE)
    if known is not None:
        return known
    if not sys.stdin.isatty():
        raise InputError(
            f"the key {key} needs a passphrase", remedy=f"Set {PASSPHRASE_VARIABLE}, or use a terminal."
        )
    return getpass.getpass(f"Passphrase of {key}: ")


def ask_new_passphrase() -> str:
    """Return a new passphrase, typed twice.

    Raises:
        InputError: It is too short, or was not typed twice alike.
    """
    passphrase = ask_passphrase("the new keys")
    if os.environ.get(PASSPHRASE_VARIABLE) is None and getpass.getpass("Again: ") != passphrase:
        raise InputError("the passphrases differ", remedy="Type the same one twice.")
    if len(passphrase) < _SHORTEST:
        raise InputError(
            f"the passphrase has {len(passphrase)} characters, at least {_SHORTEST} are needed",
            remedy="Take several words.",
        )
    return passphrase
