"""The `edgewright` command."""

import argparse
import importlib
import sys
from collections.abc import Sequence

import edgewright
from edgewright.cli.console import print_failure, run_guarded

__all__ = ["main"]

# Verb to module; loaded only when named, so that a device's commands start fast.
VERBS = {
    "compress": "edgewright.cli.commands.compress",
    "profile": "edgewright.cli.commands.profile",
    "lint": "edgewright.cli.commands.lint",
    "calibrate": "edgewright.cli.commands.calibrate",
    "keys": "edgewright.cli.commands.keys",
    "publish": "edgewright.cli.commands.publish",
    "policy": "edgewright.cli.commands.policy",
    "rollout": "edgewright.cli.commands.rollout",
    "repo": "edgewright.cli.commands.repo",
    "device": "edgewright.cli.commands.device",
    "serve": "edgewright.cli.commands.serve",
    "fleet": "edgewright.cli.commands.fleet",
    "query": "edgewright.cli.commands.query",
    "helper": "edgewright.cli.commands.helper",
    "init": "edgewright.cli.commands.init",
    "doctor": "edgewright.cli.commands.doctor",
}

SUMMARIES = {
    "compress": "make a model fit a device, with a certificate",
    "profile": "measure a model on a target",
    "lint": "explain why a graph is slow on the runtime, and mend it",
    "calibrate": "make a classifier's confidence mean what it says",
    "keys": "make, show, add and replace the keys that sign releases and rollouts",
    "publish": "make a signed release of a model",
    "policy": "show or change what the offline keys allow rollouts to do",
    "rollout": "bring a release to devices in stages, or take it back",
    "repo": "check a repository, sign what is staged, renew what expires",
    "device": "enrol this device, keep its model up to date, ask it",
    "serve": "run the control plane: devices check in, rollouts advance by themselves, a page shows it",
    "fleet": "ask a control plane about its devices and alerts, invite devices, give access",
    "query": "ask a fleet for sums that tell nothing of one device",
    "helper": "be the second operator of private sums",
    "init": "write a commented edgewright.toml from a model and data",
    "doctor": "show the runtime, CPU features, sensors and disk of this machine",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns 0 done, 1 the work failed, 2 the input or usage is wrong."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="edgewright",
        description="Fit a trained model to a class of edge devices and prove that it fits.",
        epilog="Run 'edgewright VERB --help' for a verb's options and examples.",
    )
    parser.add_argument("--version", action="version", version=f"edgewright {edgewright.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, module in VERBS.items():
        if verb in given:
            try:
                importlib.import_module(module).register(verbs)
            except ModuleNotFoundError as error:
                return _missing(verb, error, as_json="--json" in given)
        else:
            verbs.add_parser(verb, help=SUMMARIES[verb])
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
