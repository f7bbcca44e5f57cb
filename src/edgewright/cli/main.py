"""The `edgewright` command."""

import argparse
import importlib
import sys
from collections.abc import Sequence

import edgewright
from edgewright.cli.console import print_failure, run_guarded

__all__ = ["main"]

# Groups of verbs, in the order in which a model passes them: verb, and what it does in at most 56 characters.
GROUPS = {
    "fit": {
        "init": "write a commented edgewright.toml for a model and data",
        "compress": "make a model fit a device, with a certificate",
        "profile": "measure a model on a target device",
        "lint": "explain why a graph is slow on the runtime, and fix it",
    },
    "prove": {
        "calibrate": "make a classifier's confidence match its accuracy",
    },
    "ship": {
        "keys": "create, show and rotate the keys that sign releases",
        "publish": "create a signed release of a model",
        "policy": "show or change what the offline keys allow rollouts",
        "rollout": "deliver a release to devices in stages, or roll back",
        "repo": "check a repository, sign what is staged, renew it",
    },
    "watch": {
        "query": "ask a fleet for private sums of its statistics",
        "helper": "run the second aggregation server of private sums",
    },
    "run the fleet": {
        "serve": "run the control plane with its web page",
        "fleet": "list devices and alerts, enrol devices, give access",
    },
    "this machine": {
        "device": "enrol this device, update its model, show its state",
        "doctor": "show runtime, CPU features, sensors and disk",
    },
}
# Loaded only when named, so that a device's commands start fast.
VERBS = {verb: f"edgewright.cli.commands.{verb}" for verbs in GROUPS.values() for verb in verbs}


class _Parser(argparse.ArgumentParser):
    """Lists the verbs by group, on one screen."""

    def format_help(self) -> str:
        """Return usage, groups of verbs and where to read on."""
        lines = [self.format_usage(), f"\n{self.description}\n\n"]
        for group, verbs in GROUPS.items():
            for number, (verb, summary) in enumerate(verbs.items()):
                lines.append(f"{'' if number else group:14} {verb:10} {summary}\n")
        return "".join([*lines, f"\n{self.epilog}\n"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns 0 done, 1 the work failed, 2 the input or usage is wrong."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(
        prog="edgewright",
        description="Fit a trained model to edge devices, prove it, ship it, and keep it working there.",
        epilog="Run 'edgewright VERB --help' for a verb's options and examples.",
    )
    parser.add_argument("--version", action="version", version=f"edgewright {edgewright.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=argparse.ArgumentParser)
    for verb, module in VERBS.items():
        if verb in given:
            try:
                importlib.import_module(module).register(verbs)
            except ModuleNotFoundError as error:
                return _missing(verb, error, as_json="--json" in given)
        else:
            verbs.add_parser(verb)
    try:
        arguments = parser.parse_args(given)
    except SystemExit as ended:
        if ended.code == 2 and "--json" in given:
            print_failure("usage", "the arguments cannot be read", "See the message on stderr, and --help.")
        raise
    return run_guarded(arguments.run, arguments)


def _missing(verb: str, error: ModuleNotFoundError, *, as_json: bool) -> int:
    """Tell which library a bare installation lacks, and how to get it."""
    if (error.name or "").partition(".")[0] == "edgewright":
        raise error
    extra = "server" if verb == "serve" else "studio"
    remedy = f"Install what this verb needs: pip install 'edgewright[{extra}]'."
    print(f"edgewright: error: the library {error.name} is not installed.\n  {remedy}", file=sys.stderr)
    if as_json:
        print_failure("invalid_input", f"the library {error.name} is not installed", remedy)
    return 2
