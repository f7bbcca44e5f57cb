"""`edgewright policy`: what the offline keys allow rollouts to do."""

import argparse

import msgspec
from rich.console import Console

from edgewright.cli.console import SCHEMA_VERSION, print_json
from edgewright.cli.repository_options import add_options, open_repository
from edgewright.cli.signing_progress import signing
from edgewright.contract.errors import InputError
from edgewright.contract.names import checked_version
from edgewright.contract.rollout.plan import RolloutPolicy
from edgewright.trust.publishing.publish import current_policy, list_releases, new_salt, set_policy
from edgewright.trust.repository.repository import Repository

__all__ = ["register"]

_EPILOG = """\
examples:
  edgewright policy show digits --keys KEYS --repo REPO
  edgewright policy set digits --min-version 1.1.0 --holdout-fraction 0.05 --max-stage-step 0.25 --keys KEYS --repo REPO
  edgewright policy set digits --deny 1.2.0 --keys KEYS --repo REPO
  edgewright policy set digits --channel beta=2.0.0 --channel =1.1.0 --keys KEYS --repo REPO

The offline keys sign it; a rollout may only be stricter. What is not named stays as it is.
exit codes: 0 done; 1 the repository cannot be believed or written; 2 the input or usage is wrong.
"""
_NUMBERS = {
    "max_stage_step": "by how much a stage may raise the fraction",
    "min_stage_seconds": "least time of a stage, seconds",
    "holdout_fraction": "share of the devices that keeps what it has",
    "min_battery_level": "least state of charge, 0 to 1",
}


def register(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "policy",
        help="show or change what the offline keys allow rollouts to do",
        description="Show or change what the offline keys allow rollouts of a model to do.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    acts = parser.add_subparsers(dest="act", metavar="ACT", required=True)
    acts.add_parser("show", help="show it").set_defaults(run=run)
    sets = acts.add_parser("set", help="change it")
    sets.add_argument("--min-version", metavar="VERSION", help="lowest that may be installed or returned to")
    sets.add_argument(
        "--deny", metavar="VERSION", action="append", default=[], help="may not be installed; repeatable"
    )
    sets.add_argument(
        "--channel", metavar="NAME=VERSION", action="append", default=[], help="highest for a channel; repeatable"
    )
    for name, meaning in _NUMBERS.items():
        sets.add_argument(f"--{name.replace('_', '-')}", metavar="X", type=float, help=meaning)
    sets.add_argument("--new-salt", action="store_true", help="draw the cohorts anew; plans begin anew as well")
    sets.add_argument("--stage", action="store_true", help="leave the signing to 'repo sign'")
    sets.set_defaults(run=run)
    for act in acts.choices.values():
        act.add_argument("model", metavar="NAME", help="of the model")
        act.add_argument("--device-class", metavar="CLASS", default="default", help="that it is for (default)")
        add_options(act, signs=act is sets)


def run(arguments: argparse.Namespace) -> int:
    """Show or change a policy.

    Raises:
        InputError: There is none yet, or a value is none.
        TrustError: The repository cannot be believed.
    """
    repository = open_repository(arguments)
    policy = current_policy(repository, arguments.model, arguments.device_class)
    if policy is None:
        raise InputError(
            f"there is no policy for {arguments.model} on {arguments.device_class}",
            remedy="Publish a release first: the first one brings a policy.",
        )
    landed = True
    if arguments.act == "set":
        policy = _changed(policy, arguments, repository)
        with signing(arguments.keys, "signing") as keys:
            landed = set_policy(repository, keys, policy, only_stage=arguments.stage)
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "policy": policy, "landed": landed})
        return 0
    console = Console()
    for name, value in msgspec.structs.asdict(policy).items():
        console.print(f"{name}: {value}", markup=False, highlight=False)
    if not landed:
        console.print("It waits for signatures.")
    return 0


def _changed(policy: RolloutPolicy, arguments: argparse.Namespace, repository: Repository) -> RolloutPolicy:
    changes: dict[str, object] = {
        name: getattr(arguments, name)
        for name in (*_NUMBERS, "min_version")
        if getattr(arguments, name) is not None
    }
    if arguments.deny:
        known = dict(list_releases(repository, policy.model))
        for version in arguments.deny:
            if version not in known:
                raise InputError(
                    f"{policy.model} {version} is not published", remedy=f"There are {', '.join(known)}."
                )
        changes["denied_manifests"] = tuple(
            dict.fromkeys([*policy.denied_manifests, *(known[version] for version in arguments.deny)])
        )
    if arguments.channel:
        channels = dict(policy.channel_ceilings)
        for text in arguments.channel:
            name, found, version = text.partition("=")
            if not found:
                raise InputError(f"--channel {text!r} is no channel", remedy="Write beta=2.0.0.")
            channels[name] = checked_version(version)
        changes["channel_ceilings"] = channels
    if arguments.new_salt:
        changes |= {"salt": new_salt(), "epoch": policy.epoch + 1}
    if not changes:
        raise InputError(
            "nothing is to be changed", remedy="Name what: --min-version, --deny, --holdout-fraction, …"
        )
    return msgspec.structs.replace(policy, revision=policy.revision + 1, **changes)
