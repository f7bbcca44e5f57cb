"""`edgewright query`: what a fleet may be asked, asking it, and collecting the answers."""

import argparse
import datetime
import os
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from edgewright.cli.commands.judge import read_cohort_sums
from edgewright.cli.console import SCHEMA_VERSION, parse_label, print_json, show_progress
from edgewright.cli.device_list import read_enrolled
from edgewright.cli.query_collect import CollectTimeouts, collect_sum
from edgewright.cli.records import read_record
from edgewright.cli.repository_options import add_options, open_repository
from edgewright.cli.signing_progress import signing
from edgewright.contract.errors import InputError
from edgewright.contract.query.permit import QueryPermit
from edgewright.contract.query.query import CountedSignal, DeviceQueryLimits, QueryBackend, QueryTemplate
from edgewright.contract.timestamps import parse_iso8601
from edgewright.device.monitoring.aggregates import CONFIDENCE_BINS, counter_widths
from edgewright.fleet.cohort_drift import assess_cohorts
from edgewright.privacy.private_sum import sum_as_json, sums_by_signal
from edgewright.privacy.query_calibration import draft_query, query_cost
from edgewright.trust.publishing.publish import list_releases
from edgewright.trust.publishing.signed_queries import (
    current_permit,
    current_queries,
    publish_permit,
    publish_query,
    reference_profile_of,
)
from edgewright.trust.repository.repository import Repository

__all__ = ["register"]

_EPILOG = """\
examples:
  edgewright query permit digits --signals 1.0.0 --server http://sums.example --helper KEY --keys KEYS --repo REPO
  edgewright query ask digits --release 1.0.0 --id monday --start 2026-11-23T00 --end 2026-11-24T00 \\
      --keys KEYS --repo REPO
  edgewright query status digits --keys KEYS --repo REPO
  edgewright query collect digits --id monday --enrolled devices.txt \\
      --helper-url http://helper.example --keys KEYS --repo REPO
  edgewright query judge digits --release 1.0.0 --sum cohort1.json --sum cohort2.json --keys KEYS --repo REPO

The offline keys sign what may be asked, the online keys what is asked; a device has limits of its own besides.
exit codes: 0 done; 1 too few devices answered, cohorts have moved, or the repository cannot be believed; 2 the
input is wrong.
"""
_DAY_SECONDS = 86400.0
_STATE = "keeps letters in case it is broken off (collected)"
_SECAGG = "permit sums without a helper too; devices cannot tell there whether the server adds devices of its own"
# Of one device, in units of the clip; what an answer costs bounds it as well.
_MIN_NOISE = 0.05


def register(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "query",
        help="ask a fleet for sums that tell nothing of one device",
        description="Say what a fleet may be asked, ask it, and collect the answers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    acts = parser.add_subparsers(dest="act", metavar="ACT", required=True)
    permits = acts.add_parser("permit", help="have the offline keys sign what may be asked")
    permits.add_argument("--server", metavar="URL", required=True, help="that answers are sent to")
    permits.add_argument("--helper", metavar="KEY", default="", help="helper's key; none for secagg only")
    permits.add_argument("--secagg", action="store_true", help=_SECAGG)
    permits.add_argument("--signals", metavar="VERSION", help="all signals of a release, as template 'signals'")
    permits.add_argument("--template", metavar="FILE", type=Path, action="append", default=[], help="in JSON")
    permits.add_argument(
        "--clip", metavar="N", type=float, default=100.0, help="observations of a signal from a device (100)"
    )
    permits.add_argument("--least-cohort", metavar="N", type=int, default=100, help="devices in a sum (100)")
    permits.add_argument(
        "--dearest", metavar="RHO", type=float, default=0.05, help="most that an answer costs (0.05)"
    )
    permits.add_argument("--every", metavar="DAYS", type=float, default=1.0, help="between two answers (1)")
    permits.add_argument("--by", metavar="LABEL", action="append", default=[], help="subgroups by it; repeatable")
    permits.add_argument(
        "--outcome", metavar="NAME", action="append", default=[], help="with --signals: this too; repeatable"
    )
    permits.add_argument("--expires", metavar="DATE", help="not asked after (in a year)")
    permits.add_argument("--stage", action="store_true", help="leave the signing to 'repo sign'")
    permits.set_defaults(run=run_permit)
    asks = acts.add_parser("ask", help="ask, within what is permitted")
    asks.add_argument("--template", metavar="NAME", default="signals", help="that is asked (signals)")
    asks.add_argument("--release", metavar="VERSION", required=True, help="that it is about")
    asks.add_argument("--id", metavar="NAME", required=True, help="of the query")
    asks.add_argument("--subgroup", metavar="L=V", action="append", default=[], help="only these; repeatable")
    asks.add_argument("--start", metavar="TIME", required=True, help="of what is counted, a whole hour, UTC")
    asks.add_argument("--end", metavar="TIME", required=True, help="of what is counted, a whole hour, UTC")
    asks.add_argument("--deadline", metavar="TIME", help="no answers after (a day after the end)")
    asks.add_argument("--epsilon", metavar="X", type=float, default=1.0, help="that an answer costs at most (1)")
    asks.add_argument("--cohort", metavar="N", type=int, help="devices that must answer (what is permitted)")
    asks.add_argument("--largest", metavar="N", type=int, help="that may answer (100 times as many)")
    asks.add_argument("--backend", choices=("helper", "secagg"), default="helper", help="how (helper)")
    asks.set_defaults(run=run_ask)
    shows = acts.add_parser("status", help="show what may be asked and what is")
    shows.set_defaults(run=run_query_status)
    ends = acts.add_parser("end", help="ask no more")
    ends.add_argument("--id", metavar="NAME", required=True, help="of the query")
    ends.set_defaults(run=run_end)
    collects = acts.add_parser("collect", help="take the answers, and show their sum")
    collects.add_argument("--id", metavar="NAME", required=True, help="of the query")
    collects.add_argument("--helper-url", metavar="URL", default="", help="of the helper, where it has one")
    collects.add_argument(
        "--enrolled", metavar="FILE", required=True, type=Path, help="public keys of all devices, one a line"
    )
    collects.add_argument("--devices", metavar="N", type=int, help="to wait for (all that are enrolled)")
    collects.add_argument("--state", metavar="FOLDER", type=Path, default=Path("collected"), help=_STATE)
    collects.add_argument("--wait", metavar="S", type=float, default=_DAY_SECONDS, help="at most, seconds (a day)")
    collects.add_argument("--step", metavar="S", type=float, default=60.0, help="for late ones at each step (60)")
    collects.add_argument("--host", metavar="HOST", default="127.0.0.1", help="to listen on (127.0.0.1)")
    collects.add_argument("--port", metavar="PORT", type=int, default=8600, help="to listen on (8600)")
    collects.set_defaults(run=run_collect)
    judges = acts.add_parser("judge", help="say whether cohorts have moved, and whether subgroups fare alike")
    judges.add_argument(
        "--sum", metavar="FILE", type=Path, action="append", required=True, help="from collect --json"
    )
    judges.add_argument("--release", metavar="VERSION", required=True, help="that the sums are about")
    judges.add_argument("--size", metavar="X", type=float, default=0.05, help="shift worth finding (0.05)")
    judges.add_argument("--alpha", metavar="X", type=float, default=0.05, help="false alarms allowed (0.05)")
    judges.set_defaults(run=run_judge)
    for act in acts.choices.values():
        act.add_argument("model", metavar="NAME", help="of the model")
        act.add_argument("--device-class", metavar="CLASS", default="default", help="that is asked (default)")
        add_options(act, signs=act in (permits, asks, ends))


def run_permit(arguments: argparse.Namespace) -> int:
    """Have the offline keys sign what may be asked.

    Raises:
        InputError: A template is none, or a release has no reference profile.
        TrustError: The repository cannot be believed.
    """
    repository = open_repository(arguments)
    model, device_class = arguments.model, arguments.device_class
    templates = [
        read_record(path, QueryTemplate, "template", "See docs/reference/query.md for its form.")
        for path in arguments.template
    ]
    if arguments.signals is not None:
        templates.append(_signals(repository, arguments))
    strict = [each.name for each in templates if "secagg" in each.backends]
    if strict and not arguments.secagg:
        raise InputError(
            f"the template {strict[0]} permits secagg",
            remedy="Take it out, or add --secagg: devices have no list there, so a server can add its own.",
        )
    before = current_permit(repository, model, device_class)
    record = QueryPermit(
        model,
        device_class,
        1 if before is None else before.revision + 1,
        arguments.server,
        arguments.helper,
        tuple(templates),
    )
    with signing(arguments.keys, "signing") as keys:
        landed = publish_permit(repository, keys, record, only_stage=arguments.stage)
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "permit": record, "landed": landed})
    else:
        names = ", ".join(template.name for template in templates) or "nothing"
        print(f"Devices of {device_class} may be asked: {names}." + ("" if landed else " It waits for signatures."))
    return 0


def run_ask(arguments: argparse.Namespace) -> int:
    """Ask.

    Raises:
        InputError: It is not permitted, or devices would refuse it.
        TrustError: The repository cannot be believed.
    """
    repository = open_repository(arguments)
    model, device_class = arguments.model, arguments.device_class
    known = current_permit(repository, model, device_class)
    permitted = () if known is None else known.templates
    template = next((each for each in permitted if each.name == arguments.template), None)
    if template is None:
        raise InputError(
            f"no template {arguments.template} is permitted for {model} on {device_class}",
            remedy="Have the offline keys sign it with 'edgewright query permit'.",
        )
    start, end = (_hour(what, getattr(arguments, what)) for what in ("start", "end"))
    deadline = end + datetime.timedelta(days=1) if arguments.deadline is None else parse_iso8601(arguments.deadline)
    cohort = arguments.cohort or template.min_cohort
    query = draft_query(
        template,
        query_id=arguments.id,
        window=(start, end),
        deadline=deadline,
        release=_digest(repository, model, arguments.release),
        epsilon=arguments.epsilon,
        seed=os.urandom(32).hex(),
        backend=arguments.backend,
        min_cohort=cohort,
        max_cohort=arguments.largest or 100 * cohort,
        subgroup=dict(parse_label(text) for text in arguments.subgroup),
    )
    cost = query_cost(
        query,
        template,
        DeviceQueryLimits(min_cohort=2, rho_per_period=max(DeviceQueryLimits().rho_per_period, query.rho)),
    )
    with signing(arguments.keys, "signing") as keys:
        publish_query(repository, keys, model, device_class, query=query)
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "query": query, "price": msgspec.to_builtins(cost)})
    else:
        print(
            f"{query.id} is asked: epsilon {cost.cost.epsilon:.2f} if the others are honest, "
            f"{cost.cost.local_epsilon:.3g} by own noise; each summed number has noise of {cost.noise_sd:.3g}."
        )
    return 0


def run_end(arguments: argparse.Namespace) -> int:
    """Ask no more.

    Raises:
        InputError: It is not asked.
        TrustError: The repository cannot be believed.
    """
    repository = open_repository(arguments)
    with signing(arguments.keys, "signing") as keys:
        left = publish_query(repository, keys, arguments.model, arguments.device_class, without=arguments.id)
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "questions": left})
    else:
        print(f"{arguments.id} is not asked any more.")
    return 0


def run_query_status(arguments: argparse.Namespace) -> int:
    """Show what may be asked and what is.

    Raises:
        TrustError: The repository cannot be believed.
    """
    repository = open_repository(arguments)
    known = current_permit(repository, arguments.model, arguments.device_class)
    questions = current_queries(repository, arguments.model, arguments.device_class)
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "permit": known, "questions": questions})
        return 0
    console = Console()
    for template in () if known is None else known.templates:
        console.print(
            f"may be asked: {template.name}, {template.values} numbers, of {template.min_cohort} devices or more, "
            f"for rho {template.max_rho:g} at most, until {template.expires_at}",
            highlight=False,
        )
    for query in questions.queries:
        console.print(
            f"is asked: {query.id}, {query.template} from {query.window_start} to {query.window_end}, "
            f"until {query.deadline}",
            highlight=False,
        )
    return 0


def run_collect(arguments: argparse.Namespace) -> int:
    """Take the answers, and show their sum.

    Raises:
        InputError: It is not asked, or has a helper and none is named.
        WorkError: Too few devices answered.
        TrustError: The repository cannot be believed.
    """
    repository = open_repository(arguments)
    known = current_permit(repository, arguments.model, arguments.device_class)
    questions = current_queries(repository, arguments.model, arguments.device_class)
    query = next((each for each in questions.queries if each.id == arguments.id), None)
    template = None if known is None or query is None else known.template(query)
    if query is None or template is None:
        raise InputError(f"query {arguments.id} is not asked", remedy="See 'edgewright query status'.")
    if query.backend == "helper" and not arguments.helper_url:
        raise InputError(f"query {query.id} has a helper", remedy="Name it with --helper-url.")
    enrolled = read_enrolled(arguments.enrolled)
    devices = min(arguments.devices or len(enrolled.devices), query.max_cohort)
    with show_progress(f"waiting for {devices} devices"):
        found = collect_sum(
            query,
            template,
            arguments.helper_url,
            (arguments.host, arguments.port),
            CollectTimeouts(devices, arguments.wait, arguments.step),
            enrolled=enrolled,
            state=arguments.state,
        )
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION} | sum_as_json(found, query, template))
    else:
        Console().print(
            f"{found.device_count} devices; each number has noise of {found.noise_sd:.3g}.", highlight=False
        )
        if found.out_of_range:
            print(f"{found.out_of_range} numbers lie where no honest sum does: a device lied, or the sum wrapped.")
        for name, values in sums_by_signal(found, template).items():
            print(f"  {name}: {' '.join(f'{value:.0f}' for value in values)}")
    return 0


def run_judge(arguments: argparse.Namespace) -> int:
    """Say whether cohorts have moved; 1 if they have.

    Raises:
        InputError: A file holds no sum, or a number is out of range.
        TrustError: The repository cannot be believed.
    """
    if not 0 < arguments.size <= 0.5 or not 0 < arguments.alpha < 0.5:
        raise InputError(
            f"a shift of {arguments.size} at alpha {arguments.alpha}",
            remedy="A shift lies between 0 and 0.5, as alpha does.",
        )
    repository = open_repository(arguments)
    profile = reference_profile_of(repository, arguments.model, arguments.release, arguments.device_class)
    cohorts = [read_cohort_sums(path) for path in arguments.sum]
    release = _digest(repository, arguments.model, arguments.release)
    found = assess_cohorts(profile, cohorts, release=release, size=arguments.size, alpha=arguments.alpha)
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, **found})
    else:
        _show(found)
    return 1 if found["drifting"] else 0


def _show(found: dict[str, Any]) -> None:
    console = Console()

    def say(what: str) -> None:
        console.print(what, highlight=False, markup=False)

    for warning in found["warnings"]:
        say(f"warning: {warning}")
    for name, one in found["signals"].items():
        say(f"{name}: {one['says']}")
    for name, one in found["outcomes"].items():
        for label, each in one["rates"].items():
            say(f"{name}, {label}: {_share_of(each)}")
    for label, shares in found["classes"].items():
        for number, each in enumerate(shares):
            say(f"class {number}, {label}: {_share_of(each)}")
    for name, groups in found["calibration"].items():
        for label, tenths in groups.items():
            for number, each in enumerate(tenths):
                say(f"{name}, confidence from {number / 10:g}, {label}: {_share_of(each)} right")


def _share_of(each: dict[str, Any]) -> str:
    if each["reason"]:
        return str(each["reason"])
    assumed = f" (if {each['assumes']})" if each["assumes"] else ""
    return f"{each['value']:.3f} [{each['low']:.3f}, {each['high']:.3f}]{assumed}"


def _signals(repository: Repository, arguments: argparse.Namespace) -> QueryTemplate:
    """Return a template for all that devices count under a release."""
    backends: list[QueryBackend] = ["helper"] if arguments.helper else []
    if arguments.secagg:
        backends.append("secagg")
    if not backends:
        raise InputError(
            "sums have neither a helper nor do without one",
            remedy="Give --helper KEY, or --secagg, under which a server can add devices of its own.",
        )
    profile = reference_profile_of(repository, arguments.model, arguments.signals, arguments.device_class)
    counted = [CountedSignal(signal.name, len(signal.edges) + 2) for signal in profile.signals]
    counted += [CountedSignal(name, bins) for name, bins in counter_widths().items()]
    for name in arguments.outcome:
        counted += [CountedSignal(f"outcome.{name}", 2), CountedSignal(f"calibration.{name}", 2 * CONFIDENCE_BINS)]
    expires = arguments.expires or (repository.now() + datetime.timedelta(days=365)).isoformat()
    return QueryTemplate(
        "signals",
        "histogram",
        arguments.device_class,
        clip=arguments.clip,
        min_noise=_MIN_NOISE,
        min_cohort=arguments.least_cohort,
        max_rho=arguments.dearest,
        min_interval_seconds=arguments.every * _DAY_SECONDS,
        expires_at=parse_iso8601(expires).isoformat(),
        model=arguments.model,
        signals=tuple(counted),
        backends=tuple(backends),
        subgroups=tuple(arguments.by),
    )


def _digest(repository: Repository, model: str, version: str) -> str:
    known = dict(list_releases(repository, model))
    if version not in known:
        raise InputError(
            f"{model} {version} is not published", remedy=f"There are {', '.join(known) or 'no releases'}."
        )
    return known[version]


def _hour(what: str, text: str) -> datetime.datetime:
    found = parse_iso8601(text)
    if found.timestamp() % 3600:
        raise InputError(f"--{what} {text} is no whole hour", remedy="Devices count by the hour, UTC.")
    return found
