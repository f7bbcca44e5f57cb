"""What a command says at its end."""

import argparse
import json

import pytest

from edgewright.cli.console import run_guarded


def test_an_interrupt_is_one_whatever_is_raised_while_cleaning_up(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: argparse.Namespace) -> int:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("did not possess lock")

    assert run_guarded(interrupted, argparse.Namespace(json=True)) == 130
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "interrupted"

    def broken(_: argparse.Namespace) -> int:
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="ours"):
        run_guarded(broken, argparse.Namespace(json=True))
