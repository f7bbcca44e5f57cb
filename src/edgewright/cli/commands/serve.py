"""`edgewright serve`: the control plane, all of it in one process, or a part of it."""

import argparse
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from edgewright.cli.api_client import store_access
from edgewright.cli.console import SCHEMA_VERSION, print_json
from edgewright.contract.config.fleet import FleetConfig, load_fleet
from edgewright.contract.errors import InputError
from edgewright.server.app import create_app
from edgewright.server.commands.service import CommandService
from edgewright.server.controller.leader_loop import LeaderStep, lead_until
from edgewright.server.leader_tasks import leader_steps, tend_sums
from edgewright.server.process import free_port, run_server
from edgewright.server.queries.coordinator import QueryCoordinator
from edgewright.server.queries.findings import cohort_findings
from edgewright.server.services import Services
from edgewright.server.state_folder import ServerLocation, create_first_access, open_services
from edgewright.server.web.router import page_router

__all__ = ["register"]

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_EPILOG = """\
examples:
  edgewright keys init --keys KEYS --repo FLEET/repo --online FLEET/keys
  edgewright serve --state FLEET --port 8765
  edgewright serve --state FLEET --port 8765 --project edgewright.toml
  edgewright serve --state W1 --database postgresql://edgewright@db/fleet --repo s3://bucket/fleet --only api
  edgewright serve --state C --database postgresql://edgewright@db/fleet --repo s3://bucket/fleet --only controller

FLEET holds the database, the signed repository in `repo` and the online key in `keys`. Offline keys are never here.
exit codes: 0 ended by a signal; 1 the database or the repository does not answer; 2 the input or usage is wrong.
"""


def register(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "serve",
        help="run the control plane: devices check in, rollouts advance by themselves, a page shows it",
        description="Run the control plane of a fleet: devices check in, rollouts advance or are taken back by "
        "themselves, alerts are told, and a page shows it all.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--state", metavar="DIR", type=Path, required=True, help="folder of the control plane")
    parser.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help="to listen on (127.0.0.1)")
    parser.add_argument("--port", metavar="N", type=int, default=8765, help="to listen on, 0 for any (8765)")
    parser.add_argument("--url", metavar="URL", default="", help="by which people and devices reach it")
    parser.add_argument("--database", metavar="URL", default="", help="PostgreSQL's, instead of SQLite in DIR")
    parser.add_argument("--repo", metavar="REPO", default="", help="folder or URL of the repository (DIR/repo)")
    parser.add_argument("--repo-url", metavar="URL", default="", help="by which devices reach it, such as a CDN's")
    parser.add_argument("--keys", metavar="KEYS", type=Path, help="folder with the online key (DIR/keys)")
    parser.add_argument("--root", metavar="FILE", type=Path, help="root that is believed, without --keys")
    parser.add_argument("--project", metavar="FILE", type=Path, help="edgewright.toml with alerts and actions")
    parser.add_argument("--helper", metavar="URL", default="", help="second operator of private sums")
    parser.add_argument("--only", choices=("api", "controller"), help="answer alone, or decide alone (both)")
    parser.add_argument(
        "--proxies", metavar="N", type=int, default=0, help="trusted ones in front, with X-Forwarded-For (0)"
    )
    parser.add_argument("--tls", metavar="CERT,KEY", default="", help="PEM files; else put a proxy in front")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout once it answers")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Answer and decide until a signal comes.

    Raises:
        InputError: There is no repository, offline keys lie here, or the port is taken.
        GoneError: The database does not answer.
    """
    _log()
    if arguments.proxies < 0:
        raise InputError(f"--proxies is {arguments.proxies}", remedy="Give 0 or how many there are.")
    fleet = FleetConfig() if arguments.project is None else load_fleet(arguments.project)
    where = ServerLocation(
        arguments.state,
        arguments.database,
        arguments.repo,
        arguments.keys,
        arguments.root,
        arguments.repo_url,
    )
    answers, decides = arguments.only != "controller", arguments.only != "api"
    services = open_services(where, fleet, signs=True, helper_url=arguments.helper.rstrip("/"))
    tls = _tls(arguments.tls)
    port = free_port(arguments.host, arguments.port) if answers else 0
    address = arguments.url.rstrip("/") or f"{'https' if tls else 'http'}://{_url_host(arguments.host)}:{port}"
    secure = address.startswith("https://")
    ended = threading.Event()
    hands, asking = CommandService(services), QueryCoordinator(services, handles_messages=answers)
    steps: Sequence[LeaderStep] = ()
    close: Callable[[], None] = services.store.close
    if decides:
        steps, close = leader_steps(services, asking, state=arguments.state, project=arguments.project)
    app = None
    if answers:
        pages = [page_router(services, hands, findings=cohort_findings(services), address=address)]
        app = create_app(services, hands, pages=pages, secure=secure, proxies=arguments.proxies)
    secret = create_first_access(services.store, now=services.now()) if answers else None
    if answers:
        store_access(arguments.state, address, secret)

    def ready() -> None:
        _print_address(arguments, services, address if answers else "", secret)

    works: list[Callable[[], None]] = [lambda: tend_sums(services, ended, asking)] if answers else []
    if steps:
        works.append(lambda: lead_until(services, ended, steps))
    try:
        run_server(app, arguments.host, port, ended=ended, ready=ready, works=works, tls=tls)
    finally:
        close()
        services.store.close()
    return 0


def _print_address(arguments: argparse.Namespace, services: Services, address: str, secret: str | None) -> None:
    """Say where the page is, and the first token, which is shown this once."""
    if services.online_keys is None and arguments.only != "api":
        folder = arguments.keys or arguments.state / "keys"
        print(
            f"edgewright: there is no online key in {folder}: nothing is signed here", file=sys.stderr, flush=True
        )
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "page": address, "token": secret, "audience": services.audience})
        return
    if address:
        print(f"page: {address}/")
    if secret is not None:
        print(f"first operator token: {secret}")
        print("It is the password of the user 'first' as well; it is shown this once.")
    sys.stdout.flush()


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _tls(text: str) -> tuple[Path, Path] | None:
    if not text:
        return None
    certificate, found, key = text.partition(",")
    if not found or not Path(certificate).is_file() or not Path(key).is_file():
        raise InputError(f"--tls {text!r} names no two files", remedy="Write CERT.pem,KEY.pem.")
    return Path(certificate), Path(key)


class _JsonLines(logging.Formatter):
    """One JSON object a line: what is logged as one already is kept as it is."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        try:
            known = json.loads(message)
        except ValueError:
            known = {"event": message}
        if not isinstance(known, dict):
            known = {"event": message}
        line = {"at": round(record.created, 3), "level": record.levelname.lower(), "log": record.name, **known}
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = repr(record.exc_info[1])
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _log() -> None:
    level = os.environ.get("EDGEWRIGHT_LOG", "INFO").upper()
    if level not in _LEVELS:
        raise InputError(f"EDGEWRIGHT_LOG is {level[:80]!r}", remedy=f"Set it to one of {', '.join(_LEVELS)}.")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("tuf").setLevel(logging.WARNING)
