"""What every verb shares: errors to exit codes, one JSON document on stdout, everything else on stderr."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec

from edgewright.contract.errors import EdgewrightError, InputError
from edgewright.contract.names import checked_name
from edgewright.contract.schema import SCHEMA_VERSION

__all__ = [
    "SCHEMA_VERSION",
    "Command",
    "parse_label",
    "print_failure",
    "print_json",
    "run_guarded",
    "show_progress",
    "was_interrupted",
]


class Command(Protocol):
    """A module of `edgewright.cli` that adds one verb."""

    def register(self, verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
        """Add the verb's parser, with `run` as its default function taking the parsed arguments."""


def print_json(document: object) -> None:
    """Write one JSON document and a line feed to stdout."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")
    sys.stdout.flush()


def print_failure(code: str, message: str, remedy: str) -> None:
    """Write the one JSON document of a command that failed."""
    failure: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "error": {"code": code, "message": message, "remedy": remedy},
    }
    print_json(failure)


def run_guarded(action: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Run a verb and translate its errors into an exit code and one clear message."""
    as_json = bool(getattr(arguments, "json", False))
    try:
        return action(arguments)
    except BaseException as error:
        if was_interrupted(error):
            print("edgewright: interrupted", file=sys.stderr)
            if as_json:
                print_failure("interrupted", "the command was interrupted", "Give it again.")
            return 130
        if not isinstance(error, EdgewrightError):
            raise
        print(f"edgewright: error: {error.message}.\n  {error.remedy}", file=sys.stderr)
        if as_json:
            print_failure(error.code, error.message, error.remedy)
        return error.exit_code


def was_interrupted(error: BaseException | None) -> bool:
    """Whether an interrupt is what happened first: libraries that clean up after it may raise something else."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False


def parse_label(text: str) -> tuple[str, str]:
    """Return label and value of `site=berlin`.

    Raises:
        InputError: It is none.
    """
    label, found, value = text.partition("=")
    if not found:
        raise InputError(f"--label {text!r} is no label with a value", remedy="Write site=berlin.")
    return checked_name("label", label), value


@contextmanager
def show_progress(what: str) -> Iterator[None]:
    """Show what is being done until the end, on a terminal; devices have no library for more than a line."""
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        if sys.stderr.isatty():
            print(f"{what} ...", file=sys.stderr, flush=True)
        yield
        return
    with Console(stderr=True).status(what):
        yield
