"""`edgewright rollout`: start, advance, pause, resume, abort a rollout, or return to an earlier release."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from edgewright.cli.api_client import ControlPlaneApi, add_remote_options, open_api, quote_path
from edgewright.cli.console import SCHEMA_VERSION, parse_label, print_json
from edgewright.cli.repository_options import add_options, open_repository
from edgewright.cli.signing_progress import signing
from edgewright.contract.api.operator_api import CreatedResource, ReasonBody, RequestedArm, StartRollout
from edgewright.contract.errors import InputError
from edgewright.contract.names import checked_name, checked_version, version_key
from edgewright.contract.rollout.plan import (
    DeviceSelector,
    HealthRule,
    InstallHours,
    RolloutArm,
    RolloutPlan,
    RolloutStage,
)
from edgewright.rollout.plan_transitions import PLAN_CHANGES, begin_plan, full_rollout, resolve_arms
from edgewright.trust.publishing.publish import current_plan, current_policy, list_releases, publish_plan, republish
from edgewright.trust.repository.repository import Repository, utc_now

__all__ = ["register"]

_EPILOG = """\
examples:
  edgewright rollout start digits==1.0.0 --device-class default --fraction 1.0 --keys KEYS --repo REPO
  edgewright rollout start digits==1.1.0 --device-class default --stages 0.01,0.1,1 --keys KEYS --repo REPO
  edgewright rollout advance digits --device-class default --keys KEYS --repo REPO
  edgewright rollout abort digits --device-class default --keys KEYS --repo REPO
  edgewright rollout rollback digits==1.0.0 --device-class default --keys KEYS --repo REPO
  edgewright rollout status digits --device-class default --keys KEYS --repo REPO
  edgewright rollout start digits==1.1.0 --stages 0.1,0.5,1 --rule crash=0.02 --fleet FLEET
  edgewright rollout pause digits --why 'complaints' --server https://fleet.example
  edgewright rollout why digits-1.1.0-2 --fleet FLEET

A control plane is named by --fleet DIR on its own machine, else by --server with a token in EDGEWRIGHT_API_TOKEN.
The online key signs, within the policy that the offline keys signed; a rollback needs the releases' keys as well.
exit codes: 0 done; 1 the repository cannot be believed or written, or a decision does not follow from its inputs;
2 the policy forbids it, or the usage is wrong.
"""


def register(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "rollout",
        help="bring a release to devices in stages, or take it back",
        description="Bring a release to devices in stages, or take it back. A rollout is a signed file.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    acts = parser.add_subparsers(dest="act", metavar="ACT", required=True)
    start = acts.add_parser("start", help="begin a rollout of one or more releases")
    start.add_argument("releases", metavar="NAME==VERSION", nargs="+", help="several are the arms of an A/B test")
    start.add_argument("--fraction", metavar="F", type=float, help="of the devices, in one stage")
    start.add_argument("--stages", metavar="F,F,…", help="fractions of several stages, such as 0.01,0.1,1")
    start.add_argument("--stage-seconds", metavar="S", type=float, default=0.0, help="least time of each stage (0)")
    start.add_argument("--weights", metavar="W,W,…", help="of the arms, in proportion (equal)")
    start.add_argument(
        "--label", metavar="L=V", action="append", default=[], help="only devices with it; repeatable"
    )
    start.add_argument("--channel", metavar="NAME", default="", help="only devices of this channel")
    start.add_argument("--start", metavar="TIME", default="", help="not before, ISO 8601, UTC")
    start.add_argument("--end", metavar="TIME", default="", help="not after, ISO 8601, UTC")
    start.add_argument("--min-battery", metavar="F", type=float, default=0.0, help="least state of charge (0)")
    start.add_argument("--hours", metavar="A-B", help="only in these hours of the device's day, such as 1-5")
    start.add_argument(
        "--rule", metavar="METRIC=MARGIN", action="append", default=[], help="not worse by more; repeatable"
    )
    start.add_argument("--replace", action="store_true", help="another rollout that is not at its end")
    start.add_argument(
        "--force", action="store_true", help="begin though the control plane's fleet is too small ever to decide it"
    )
    start.add_argument("--shadow", action="store_true", help="run it beside the old one and only compare")
    acts.add_parser("advance", help="go to the next stage")
    acts.add_parser("pause", help="no device begins an installation")
    acts.add_parser("resume", help="go on after a pause")
    acts.add_parser("abort", help="devices on trial return to their proven model")
    acts.add_parser("status", help="show the rollout")
    back = acts.add_parser("rollback", help="publish a higher version with an earlier one's bytes, for all devices")
    back.add_argument("releases", metavar="NAME==VERSION", nargs=1, help="release to return to")
    back.add_argument("--as", dest="as_version", metavar="VERSION", default="", help="of the new release")
    back.add_argument("--stage", action="store_true", help="leave the signing to 'repo sign'; then start it")
    cause = acts.add_parser("why", help="show every decision about a rollout, each decided again")
    cause.add_argument("rollout", metavar="ROLLOUT", help="its name, or MODEL/CLASS/NAME")
    cause.add_argument("--state", metavar="DIR", type=Path, help="its state folder, read without the control plane")
    cause.add_argument("--last", metavar="N", type=_count, default=50, help="how many decisions (50)")
    add_remote_options(cause)
    cause.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    cause.set_defaults(run=run_why)
    for name, act in acts.choices.items():
        if name == "why":
            continue
        if name not in ("start", "rollback"):
            act.add_argument("model", metavar="NAME", help="of the model")
        act.add_argument("--device-class", metavar="CLASS", default="default", help="that it is for (default)")
        add_options(act, signs=name != "status", served=name != "rollback")
        if name != "rollback":
            add_remote_options(act)
        if name in PLAN_CHANGES:
            act.add_argument("--why", metavar="TEXT", default="", help="for the control plane's audit log")
        act.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Change or show a rollout.

    Raises:
        InputError: The policy forbids it, or there is no such release or rollout.
        TrustError: The repository cannot be believed.
    """
    remote = None if arguments.repo is not None else open_api(arguments)
    if remote is not None and arguments.act != "rollback":
        return _change_on_server(arguments, remote)
    repository = open_repository(arguments)
    if arguments.act == "rollback":
        return _publish_earlier(arguments, repository)
    if arguments.act == "start":
        plan = _start_in_repository(_start_request(arguments), repository)
    else:
        known = current_plan(repository, arguments.model, arguments.device_class)
        if known is None:
            raise InputError(
                f"there is no rollout of {arguments.model} for {arguments.device_class}",
                remedy="Begin one with 'edgewright rollout start'.",
            )
        plan = known if arguments.act == "status" else PLAN_CHANGES[arguments.act](known, utc_now())
    if arguments.act != "status":
        with signing(arguments.keys, "signing") as keys:
            publish_plan(repository, keys, plan)
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "rollout": plan})
    else:
        _print(plan)
    return 0


def run_why(arguments: argparse.Namespace) -> int:
    """Show what was decided about a rollout, and whether it would be decided again.

    Raises:
        InputError: There is no such rollout, or nobody who knows of it was named.
    """
    # Loaded for this alone: it takes what decides.
    from edgewright.cli.rollout_why import explain_by, print_explanation, print_why

    remote = None if arguments.state is not None else open_api(arguments)
    if arguments.state is not None:
        decisions = print_explanation(arguments.state, arguments.rollout)[-arguments.last :]
    elif remote is not None:
        decisions = explain_by(remote, arguments.rollout, last=arguments.last)
    else:
        raise InputError(
            "nobody was named who knows", remedy="Name --fleet or --state with its folder, or --server."
        )
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "decisions": decisions})
    else:
        print_why(Console(), decisions)
    return int(any(each.replays is False for each in decisions))


def _start_request(arguments: argparse.Namespace) -> StartRollout:
    """Return what is to begin."""
    named = [_release(text) for text in arguments.releases]
    models = {model for model, _ in named}
    if len(models) != 1:
        raise InputError(
            f"a rollout is of one model, not of {', '.join(sorted(models))}", remedy="Start one for each."
        )
    weights = _numbers("--weights", arguments.weights) if arguments.weights else [1.0] * len(named)
    if len(weights) != len(named):
        raise InputError(f"{len(weights)} weights for {len(named)} releases", remedy="Give one for each.")
    if (arguments.fraction is None) == (arguments.stages is None):
        raise InputError("a rollout needs --fraction or --stages", remedy="Give one of them.")
    fractions = [arguments.fraction] if arguments.stages is None else _numbers("--stages", arguments.stages)
    rules = tuple(_rule(text) for text in arguments.rule)
    return StartRollout(
        model=models.pop(),
        device_class=arguments.device_class,
        arms=tuple(RequestedArm(version, weight) for (_, version), weight in zip(named, weights, strict=True)),
        stages=tuple(RolloutStage(fraction, arguments.stage_seconds, rules) for fraction in fractions),
        selector=DeviceSelector(dict(parse_label(text) for text in arguments.label), arguments.channel),
        start_at=arguments.start,
        end_at=arguments.end,
        min_battery_level=arguments.min_battery,
        hours=None if arguments.hours is None else _hours(arguments.hours),
        shadow=arguments.shadow,
        replace=arguments.replace,
        force=arguments.force,
    )


def _start_in_repository(request: StartRollout, repository: Repository) -> RolloutPlan:
    published = dict(list_releases(repository, request.model))
    return begin_plan(
        request.model,
        request.device_class,
        resolve_arms(request.model, [(arm.version, arm.weight) for arm in request.arms], published),
        request.stages,
        policy=current_policy(repository, request.model, request.device_class),
        before=current_plan(repository, request.model, request.device_class),
        now=utc_now(),
        selector=request.selector,
        start_at=request.start_at,
        end_at=request.end_at,
        min_battery_level=request.min_battery_level,
        install_hours=request.hours,
        shadow_mode=request.shadow,
        replace=request.replace,
    )


def _change_on_server(arguments: argparse.Namespace, remote: ControlPlaneApi) -> int:
    """Have the control plane do it, or say how it stands."""
    notes: tuple[str, ...] = ()
    if arguments.act == "start":
        asked = _start_request(arguments)
        notes = remote.post("rollouts", asked, CreatedResource).notes
        plan = remote.get(quote_path("rollouts", asked.model, asked.device_class), RolloutPlan)
    elif arguments.act == "status":
        plan = remote.get(quote_path("rollouts", arguments.model, arguments.device_class), RolloutPlan)
    else:
        path = quote_path("rollouts", arguments.model, arguments.device_class, arguments.act)
        plan = remote.post(path, ReasonBody(arguments.why), RolloutPlan)
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "rollout": plan, "notes": notes})
    else:
        for note in notes:
            print(f"warning: {note}", file=sys.stderr)
        _print(plan)
    return 0


def _publish_earlier(arguments: argparse.Namespace, repository: Repository) -> int:
    """Publish the earlier bytes as a higher version, and roll it out as fast as the policy allows."""
    model, version = _release(arguments.releases[0])
    plan = None
    with signing(arguments.keys, "signing") as keys:
        published = republish(
            repository,
            keys,
            model,
            version,
            as_version=arguments.as_version,
            created=repository.now().isoformat(),
            only_stage=arguments.stage,
        )
        new = published.manifest.version
        if published.published:
            plan = full_rollout(
                model,
                arguments.device_class,
                RolloutArm(new, published.digest),
                policy=current_policy(repository, model, arguments.device_class),
                before=current_plan(repository, model, arguments.device_class),
                now=utc_now(),
            )
            publish_plan(repository, keys, plan)
    if arguments.json:
        print_json(
            {"schema": SCHEMA_VERSION, "release": f"{model}=={new}", "landed": published.published, "rollout": plan}
        )
    elif plan is None:
        print(f"{model} {new}, with the bytes of {version}, waits for signatures; then start its rollout.")
    else:
        _print(plan)
    return 0


def _release(text: str) -> tuple[str, str]:
    model, found, version = text.partition("==")
    if not found:
        raise InputError(f"{text!r} is no release", remedy="Write NAME==VERSION, such as digits==1.0.0.")
    checked_name("model", model)
    version_key(version)
    return model, checked_version(version)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _numbers(what: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{what} {text!r} are no numbers", remedy="Write them with commas: 0.01,0.1,1.") from error


def _rule(text: str) -> HealthRule:
    metric, _, margin = text.rpartition("=")
    try:
        return HealthRule(metric, float(margin))
    except ValueError as error:
        raise InputError(f"--rule {text!r} is no rule", remedy="Write outcome:correction=0.05.") from error


def _hours(text: str) -> InstallHours:
    first, _, last = text.partition("-")
    if not (first.isdigit() and last.isdigit()):
        raise InputError(f"--hours {text!r} are no hours", remedy="Write them as 1-5.")
    return InstallHours(int(first), int(last))


def _print(plan: RolloutPlan) -> None:
    console = Console()
    arms = ", ".join(arm.version for arm in plan.arms)
    console.print(
        f"{plan.model} {arms} for {plan.device_class}: {plan.state}, stage {plan.stage + 1} of {len(plan.stages)}, "
        f"{plan.fraction:.4g} of the devices"
    )
