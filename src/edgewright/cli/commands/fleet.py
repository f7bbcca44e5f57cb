"""`edgewright fleet`: what a control plane knows of its devices, and what people tell it."""

import argparse
import datetime
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from edgewright.cli.api_client import (
    SERVER_VARIABLE,
    TOKEN_VARIABLE,
    ControlPlaneApi,
    add_remote_options,
    open_api,
    quote_path,
)
from edgewright.cli.console import SCHEMA_VERSION, parse_label, print_json, show_progress
from edgewright.contract.api.operator_api import (
    CreatedResource,
    CreatedSecrets,
    CreateEnrolmentTokens,
    CreateToken,
    CreateUser,
    ReasonBody,
    SetProfiling,
    SilenceAlert,
)
from edgewright.contract.errors import InputError

__all__ = ["register"]

_EPILOG = f"""\
examples:
  edgewright fleet status --fleet FLEET
  edgewright fleet devices --offline 3600 --server https://fleet.example
  edgewright fleet invite --device-class camera --label site=berlin --fleet FLEET
  edgewright fleet alerts --fleet FLEET
  edgewright fleet silence NAME --for 3600 --why 'maintenance' --fleet FLEET
  edgewright fleet bench DEVICE --fleet FLEET
  edgewright fleet token NAME --role viewer --fleet FLEET
  edgewright fleet backup fleet.backup --fleet FLEET
  edgewright fleet restore fleet.backup --fleet OTHER

The control plane is named by --fleet DIR on its own machine, else by --server or {SERVER_VARIABLE} with a token in
{TOKEN_VARIABLE}.
exit codes: 0 done; 1 alerts fire, or the server cannot do it; 2 the input or usage is wrong, or the token may not.
"""


def register(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "fleet",
        help="ask a control plane about its devices and alerts, invite devices, give access",
        description="Ask a control plane about its devices and alerts, invite devices, give access.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    acts = parser.add_subparsers(dest="act", metavar="ACT", required=True)
    acts.add_parser("status", help="show the fleet at a glance").set_defaults(run=run_fleet_status)
    lists = acts.add_parser("devices", help="list devices")
    lists.add_argument("--device-class", metavar="CLASS", default="", help="only of this class")
    lists.add_argument("--version", metavar="VERSION", help="only those that run it")
    lists.add_argument("--label", metavar="L=V", action="append", default=[], help="only with it; repeatable")
    lists.add_argument("--offline", metavar="S", type=float, help="only those that were offline for so long")
    lists.add_argument("--limit", metavar="N", type=int, default=100, help="at most, 1000 (100)")
    lists.add_argument("--after", metavar="DEVICE", default="", help="last of the page before")
    lists.set_defaults(run=run_devices)
    shows = acts.add_parser("device", help="show one device")
    retires = acts.add_parser("retire", help="believe a device no more")
    marks = acts.add_parser("bench", help="have a device take profiling jobs")
    marks.add_argument("--off", action="store_true", help="no more")
    for act, run in ((shows, run_device), (retires, run_retire), (marks, run_profiling)):
        act.add_argument("device", metavar="DEVICE", help="its name")
        act.set_defaults(run=run)
    invites = acts.add_parser("invite", help="make tokens with which devices enrol")
    invites.add_argument(
        "--device-class", metavar="CLASS", default="default", help="that they enrol into (default)"
    )
    invites.add_argument("--label", metavar="L=V", action="append", default=[], help="that they get; repeatable")
    invites.add_argument("--channel", metavar="NAME", default="", help="that they get")
    invites.add_argument("--bench", action="store_true", help="they take profiling jobs")
    invites.add_argument("--count", metavar="N", type=int, default=1, help="of the tokens (1)")
    invites.add_argument("--seconds", metavar="S", type=float, default=86400.0, help="until they are void (86400)")
    invites.set_defaults(run=run_invite)
    acts.add_parser("alerts", help="show alerts; 1 if one fires").set_defaults(run=run_alerts)
    silences = acts.add_parser("silence", help="tell nobody of an alert for a while")
    silences.add_argument("rule", metavar="NAME", help="of the alert's rule")
    silences.add_argument("--device-class", metavar="CLASS", default="", help="that it is about")
    silences.add_argument(
        "--for", dest="for_seconds", metavar="S", type=float, default=3600.0, help="seconds (3600)"
    )
    silences.set_defaults(run=run_silence)
    acts.add_parser("approvals", help="list actions that wait for approval").set_defaults(run=run_approvals)
    for name, words in (("approve", "approve an action"), ("refuse", "refuse an action")):
        settles = acts.add_parser(name, help=words)
        settles.add_argument("item", metavar="ITEM", help="as 'fleet approvals' shows it")
        settles.set_defaults(run=run_settle)
    tokens = acts.add_parser("token", help="make a token for a program, or make one void")
    tokens.add_argument("name", metavar="NAME", help="of the token")
    tokens.add_argument("--role", metavar="ROLE", default="viewer", help="viewer, operator or 'release manager'")
    tokens.add_argument("--days", metavar="N", type=float, default=90.0, help="until it is void (90)")
    tokens.add_argument("--retire", action="store_true", help="make it void")
    tokens.set_defaults(run=run_token)
    users = acts.add_parser("user", help="let somebody log in on the page, or no more")
    users.add_argument("name", metavar="NAME", help="of the user")
    users.add_argument("--role", metavar="ROLE", default="viewer", help="viewer, operator or 'release manager'")
    users.add_argument("--retire", action="store_true", help="no more")
    users.set_defaults(run=run_user)
    backs_up = acts.add_parser(
        "backup", help="write all that the database holds to a file, while the fleet goes on"
    )
    restores = acts.add_parser("restore", help="fill an empty database from such a file")
    for act, run in ((backs_up, run_backup), (restores, run_restore)):
        act.add_argument("file", metavar="FILE", type=Path, help="of the backup")
        act.add_argument("--database", metavar="URL", default="", help="PostgreSQL's, instead of SQLite in DIR")
        act.set_defaults(run=run)
    for name in ("retire", "silence", "approve", "refuse"):
        acts.choices[name].add_argument("--why", metavar="TEXT", default="", help="for the audit log")
    for act in acts.choices.values():
        add_remote_options(act)
        act.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def _remote(arguments: argparse.Namespace) -> ControlPlaneApi:
    found = open_api(arguments)
    if found is None:
        raise InputError(
            "no control plane is named", remedy=f"Give --fleet DIR or --server URL, or set {SERVER_VARIABLE}."
        )
    return found


def _print_found(arguments: argparse.Namespace, name: str, found: Any, words: str) -> int:
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, name: found})
    else:
        print(words)
    return 0


def _ago(at: float | None, now: float) -> str:
    if not at:
        return "never"
    return f"{datetime.timedelta(seconds=max(0, round(now - at)))} ago"


def run_fleet_status(arguments: argparse.Namespace) -> int:
    """Show the fleet at a glance."""
    found = _remote(arguments).get("fleet", dict)
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "fleet": found})
        return 0
    console = Console()
    console.print(
        f"{found['devices']} devices, {found['offline']} of them offline for {found['offline_seconds']:g} s; "
        f"{found['firing']} alerts fire, {found['pending_actions']} actions wait for approval",
        highlight=False,
    )
    table = Table("class", "model", "version", "state", "refusal", "devices")
    for group in found["groups"]:
        table.add_row(
            *(str(group[name]) for name in ("device_class", "model", "version", "state", "refusal", "devices"))
        )
    if found["groups"]:
        console.print(table)
    for each in found["rollouts"]:
        last = f"; {each['verdict']} {_ago(each['decided_at'], found['at'])}" if each["verdict"] else ""
        console.print(
            f"{each['model']} {', '.join(each['versions'])} for {each['device_class']}: {each['state']}, stage "
            f"{each['stage'] + 1} of {each['stages']}, {each['fraction']:.4g} of the devices{last}",
            highlight=False,
        )
    return 0


def run_devices(arguments: argparse.Namespace) -> int:
    """List devices."""
    remote = _remote(arguments)
    found = remote.get(
        "devices",
        list,
        {
            "after": arguments.after or None,
            "limit": arguments.limit,
            "device_class": arguments.device_class or None,
            "version": arguments.version,
            "label": ["=".join(parse_label(text)) for text in arguments.label] or None,
            "offline": arguments.offline,
        },
    )
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "devices": found})
        return 0
    now = remote.get("fleet", dict)["at"]
    table = Table("device", "class", "labels", "version", "state", "last check-in", "refusal")
    for one in found:
        status = one["status"]
        labels = " ".join(f"{name}={value}" for name, value in sorted(one["labels"].items()))
        refusal = (status["refusal"] or {}).get("code", "")
        seen = _ago(one["last_seen_at"], now)
        table.add_row(one["id"], one["device_class"], labels, status["version"], status["state"], seen, refusal)
    Console().print(table)
    return 0


def run_device(arguments: argparse.Namespace) -> int:
    """Show one device."""
    found = _remote(arguments).get(quote_path("devices", arguments.device), dict)
    print_json({"schema": SCHEMA_VERSION, "device": found})
    return 0


def run_retire(arguments: argparse.Namespace) -> int:
    """Believe a device no more."""
    made = _remote(arguments).post(
        quote_path("devices", arguments.device, "retire"), ReasonBody(arguments.why), CreatedResource
    )
    return _print_found(arguments, "device", made, f"{made.id} is believed no more. {' '.join(made.notes)}")


def run_profiling(arguments: argparse.Namespace) -> int:
    """Have a device take profiling jobs, or not."""
    made = _remote(arguments).post(
        quote_path("devices", arguments.device, "profiling"), SetProfiling(not arguments.off), CreatedResource
    )
    return _print_found(
        arguments, "device", made, f"{made.id} takes {'no ' if arguments.off else ''}profiling jobs."
    )


def run_invite(arguments: argparse.Namespace) -> int:
    """Make tokens with which devices enrol."""
    asked = CreateEnrolmentTokens(
        arguments.device_class,
        dict(parse_label(text) for text in arguments.label),
        arguments.channel,
        arguments.bench,
        arguments.seconds,
        arguments.count,
    )
    made = _remote(arguments).post("invitations", asked, CreatedSecrets)
    return _print_found(arguments, "tokens", made.secrets, "\n".join(made.secrets))


def run_alerts(arguments: argparse.Namespace) -> int:
    """Show alerts; 1 if one fires."""
    found = _remote(arguments).get("alerts", list)
    firing = [each for each in found if each["state"] == "firing"]
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "alerts": found})
    else:
        for each in found:
            print(f"{each['state']}: {each['rule']} {each['subject']}: {each['message']}")
        if not found:
            print("No rule has fired yet.")
    return 1 if firing else 0


def run_silence(arguments: argparse.Namespace) -> int:
    """Tell nobody of an alert for a while."""
    asked = SilenceAlert(arguments.rule, arguments.device_class, arguments.for_seconds, arguments.why)
    made = _remote(arguments).post("alerts/silence", asked, CreatedResource)
    return _print_found(
        arguments, "silenced", made, f"Nobody is told of {made.id} for {arguments.for_seconds:g} s."
    )


def run_approvals(arguments: argparse.Namespace) -> int:
    """List actions that wait for approval."""
    found = _remote(arguments).get("approvals", list)
    words = "\n".join(f"{each['id']}: {each['action']} {each['subject']}: {each['reason']}" for each in found)
    return _print_found(arguments, "approvals", found, words or "Nothing waits.")


def run_settle(arguments: argparse.Namespace) -> int:
    """Approve or refuse an action."""
    made = _remote(arguments).post(
        quote_path("approvals", arguments.item, arguments.act), ReasonBody(arguments.why), CreatedResource
    )
    return _print_found(arguments, "settled", made, f"{made.id}: {arguments.act}. {' '.join(made.notes)}")


def run_token(arguments: argparse.Namespace) -> int:
    """Make a token for a program, or make one void."""
    remote = _remote(arguments)
    if arguments.retire:
        made = remote.delete(quote_path("tokens", arguments.name), CreatedResource)
        return _print_found(arguments, "retired", made, f"{made.id} is void.")
    secret = remote.post(
        "tokens", CreateToken(arguments.name, arguments.role, arguments.days * 86400), CreatedSecrets
    )
    return _print_found(arguments, "tokens", secret.secrets, secret.secrets[0])


def _database(arguments: argparse.Namespace) -> str:
    if bool(arguments.database) == bool(arguments.fleet):
        raise InputError("no database is named, or two are", remedy="Give --fleet DIR or --database URL.")
    return arguments.database or f"sqlite:///{(arguments.fleet / 'fleet.db').absolute()}"


def run_backup(arguments: argparse.Namespace) -> int:
    """Write all that the database holds to a file.

    Raises:
        OutputError: The file cannot be written, or is there.
        GoneError: The database does not answer.
    """
    from edgewright.server.store.store import open_fleet_store

    store = open_fleet_store(_database(arguments))
    with show_progress("writing"):
        rows = store.backup(arguments.file, now=time.time())
    store.close()
    return _print_found(
        arguments, "rows", rows, f"{rows} rows in {arguments.file}. Keep it as safe as the database."
    )


def run_restore(arguments: argparse.Namespace) -> int:
    """Fill an empty database from a file.

    Raises:
        InputError: The file is none, is damaged, or the database is not empty.
        GoneError: The database does not answer.
    """
    from edgewright.server.store.store import create_store

    if arguments.fleet is not None:
        arguments.fleet.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = create_store(_database(arguments))
    with show_progress("reading"):
        rows = store.restore(arguments.file)
    store.close()
    return _print_found(arguments, "rows", rows, f"{rows} rows restored.")


def run_user(arguments: argparse.Namespace) -> int:
    """Let somebody log in on the page, or no more."""
    from edgewright.cli.passphrase import ask_new_passphrase

    remote = _remote(arguments)
    if arguments.retire:
        made = remote.delete(quote_path("users", arguments.name), CreatedResource)
        return _print_found(arguments, "retired", made, f"{made.id} may log in no more.")
    made = remote.post("users", CreateUser(arguments.name, arguments.role, ask_new_passphrase()), CreatedResource)
    return _print_found(arguments, "user", made, f"{made.id} may log in.")
