"""`edgewright device`: enrol a device, keep its model up to date, ask it."""

import argparse
import datetime
import os
import shlex
import signal
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewright.cli.console import SCHEMA_VERSION, parse_label, print_json, show_progress
from edgewright.cli.records import read_record
from edgewright.contract.errors import DataError, InputError
from edgewright.contract.query.query import DeviceQueryLimits
from edgewright.device.agent import Agent
from edgewright.device.control_plane_client import ControlPlaneClient
from edgewright.device.encryption_keys import IDENTITY_KEY_FILE, read_fleet_key
from edgewright.device.enrolment import enrol_at_server, enrol_offline
from edgewright.device.run_loop import run_forever
from edgewright.device.serving.http_server import LOOPBACK_HOSTS, create_tcp_server, create_unix_server
from edgewright.device.update.journal import JournalRecord
from edgewright.device.update.self_test import Probation
from edgewright.profiling.job_runner import run_jobs
from edgewright.trust.client.fetcher import open_pool
from edgewright.trust.keys.device_identity import load_or_create_device_key

__all__ = ["register"]

_EPILOG = """\
examples:
  edgewright device enrol --repo https://updates.example --root 1.root.json --device-class default --state STATE
  edgewright device enrol --server https://fleet.example --token TOKEN --root 1.root.json --state STATE
  edgewright device run --once --state STATE
  edgewright device run --socket /run/edgewright/model.sock --state STATE
  edgewright device predict --state STATE --input x.npz --json
  edgewright device status --state STATE --json

EDGEWRIGHT_TOKEN is what requests to a running agent must bear; EDGEWRIGHT_TCTI says how to reach the TPM.
exit codes: 0 done; 1 the device refused an update, or rejected an input; 2 the input or usage is wrong.
"""
_INTERVAL_SECONDS = 3600.0
# Longest wait for the control plane and for the next bytes from it, seconds.
_TIMEOUT_SECONDS = 20.0
_PROBATION = Probation()
_PCRS = "sha256:0,2,4,7"
_TOKEN = "EDGEWRIGHT_TOKEN"  # noqa: S105 - the name of a variable


def register(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "device",
        help="enrol this device, keep its model up to date, ask it",
        description="Enrol this device, keep its model up to date, ask it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    acts = parser.add_subparsers(dest="act", metavar="ACT", required=True)
    joins = acts.add_parser("enrol", help="make this device's state")
    joins.add_argument("--server", metavar="URL", help="of a control plane, which says the rest but the root")
    joins.add_argument("--token", metavar="TOKEN", help="with --server: enrols one device")
    joins.add_argument("--repo", metavar="URL", help="of the repository, in a fleet without a control plane")
    joins.add_argument("--root", metavar="FILE", required=True, type=Path, help="root that the device believes")
    joins.add_argument("--device-class", metavar="CLASS", default="", help="of this device (default)")
    joins.add_argument(
        "--limits", metavar="FILE", type=Path, help="JSON with what this device may tell in private sums"
    )
    joins.add_argument("--model", metavar="NAME", default="", help="the only one with a rollout if not given")
    joins.add_argument("--label", metavar="L=V", action="append", default=[], help="of this device; repeatable")
    joins.add_argument("--channel", metavar="NAME", default="", help="of this device")
    joins.add_argument("--plain", action="store_true", help="store models without encryption")
    joins.add_argument("--tpm", metavar="PCRS", nargs="?", const=_PCRS, default="", help="seal the key to the TPM")
    joins.add_argument(
        "--fleet-key", metavar="FILE", action="append", default=[], type=Path, help="of the fleet; repeatable"
    )
    joins.add_argument(
        "--installer", metavar="COMMAND", default="", help="for agents and firmware: rauc, or a command of your own"
    )
    joins.set_defaults(run=run_enrol)
    runs = acts.add_parser("run", help="keep the model up to date")
    runs.add_argument("--once", action="store_true", help="check once: update, self-test, switch")
    runs.add_argument(
        "--every", metavar="S", type=float, default=_INTERVAL_SECONDS, help="seconds between checks (3600)"
    )
    runs.add_argument("--socket", metavar="PATH", type=Path, help="answer other processes on this Unix socket")
    runs.add_argument("--port", metavar="N", type=int, help="answer on this port; 0 for any")
    runs.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help="of that port (127.0.0.1)")
    runs.add_argument(
        "--inferences", metavar="N", type=int, default=_PROBATION.min_inferences, help="of a probation (100)"
    )
    runs.add_argument(
        "--seconds",
        metavar="S",
        type=float,
        default=_PROBATION.min_seconds,
        help="of a probation, if fewer came (600)",
    )
    runs.add_argument(
        "--bench", action="store_true", help="measure models that the control plane's operators send here"
    )
    runs.set_defaults(run=run_agent)
    asks = acts.add_parser("predict", help="run the model on samples")
    asks.add_argument("--input", metavar="FILE", required=True, type=Path, help=".npz with an array for each input")
    asks.set_defaults(run=run_predict)
    acts.add_parser("status", help="show what the device says of itself").set_defaults(run=run_device_status)
    acts.add_parser("monitor", help="show whether what the model sees still looks as it did").set_defaults(
        run=run_monitor
    )
    acts.add_parser("privacy", help="show what this device was asked, what it told, what that cost").set_defaults(
        run=run_privacy
    )
    acts.add_parser("rollback", help="return to the release that was proven before").set_defaults(run=run_rollback)
    acts.add_parser("verify", help="check the stored models and heal what is broken").set_defaults(run=run_verify)
    for act in acts.choices.values():
        act.add_argument("--state", metavar="STATE", required=True, type=Path, help="folder of this device's state")
        act.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def run_enrol(arguments: argparse.Namespace) -> int:
    """Make a device's state.

    Raises:
        InputError: The folder is not empty, the root cannot be read, or something is no name or URL.
        WorkError: The control plane does not enrol this device.
    """
    at_server = _is_at_server(arguments)
    try:
        root = arguments.root.read_bytes()
    except OSError as error:
        raise InputError(
            f"{arguments.root} cannot be read: {error.strerror}",
            remedy="Name metadata/1.root.json of the repository.",
        ) from error
    own: dict[str, Any] = {
        "root": root,
        "model": arguments.model,
        "encrypted": not arguments.plain,
        "installer": shlex.split(arguments.installer),
        "tpm_pcrs": arguments.tpm,
        "fleet_keys": {path.stem: read_fleet_key(path) for path in arguments.fleet_key},
        "query_limits": None
        if arguments.limits is None
        else read_record(
            arguments.limits, DeviceQueryLimits, "limits", "See docs/reference/query.md for its form."
        ),
    }
    if at_server:
        settings = enrol_at_server(arguments.state, server_url=arguments.server, token=arguments.token, **own)
    else:
        settings = enrol_offline(
            arguments.state,
            repository_url=arguments.repo,
            device_class=arguments.device_class or "default",
            labels=dict(parse_label(text) for text in arguments.label),
            channel=arguments.channel,
            **own,
        )
    public = load_or_create_device_key(arguments.state / IDENTITY_KEY_FILE).public.hex()
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "device": settings, "public_key": public})
    else:
        print(f"Enrolled device {settings.device_id} as {settings.device_class} in {arguments.state}.")
    return 0


def _is_at_server(arguments: argparse.Namespace) -> bool:
    """Whether a control plane enrols this device.

    Raises:
        InputError: What only one of the two ways takes was given for the other, or for none.
    """
    own = {
        "--repo": arguments.repo,
        "--device-class": arguments.device_class,
        "--label": arguments.label,
        "--channel": arguments.channel,
    }
    given = [option for option, value in own.items() if value]
    if arguments.server and arguments.token and not given:
        return True
    if arguments.repo and arguments.server is None and arguments.token is None:
        return False
    told = [option for option in ("--server", "--token") if getattr(arguments, option[2:]) is not None]
    raise InputError(
        f"a control plane enrols a device, or nobody does; given is {', '.join([*told, *given]) or 'neither'}",
        remedy="Give --server and --token, or --repo with --device-class, --label and --channel as they apply.",
    )


def run_agent(arguments: argparse.Namespace) -> int:
    """Check once, or until a signal ends it.

    Raises:
        InputError: Jobs are to be taken, and this device knows no control plane, or is to check only once.
    """
    agent = Agent(arguments.state, probation=Probation(arguments.inferences, arguments.seconds))
    agent.require_ownership()
    door = _job_client(agent, arguments) if arguments.bench else None
    if arguments.once:
        with show_progress("checking, fetching, testing"):
            record = agent.check_for_update()
        return _shown(agent, record, as_json=arguments.json)
    ended = threading.Event()

    def end(*_: object) -> None:
        agent.prepare_exit()
        ended.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, end)
    servers = []
    token = os.environ.get(_TOKEN, "")
    if arguments.socket is not None:
        servers.append(create_unix_server(agent, arguments.socket, token=token))
    if arguments.port is not None:
        hosts = dict.fromkeys((*LOOPBACK_HOSTS, arguments.host))
        servers.append(
            create_tcp_server(agent, arguments.port, host=arguments.host, allowed_hosts=tuple(hosts), token=token)
        )
        print(f"http://{arguments.host}:{servers[-1].server_address[1]}", file=sys.stderr, flush=True)
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    if door is not None:
        threading.Thread(target=run_jobs, args=(door, ended), kwargs={"report": _log}, daemon=True).start()
    run_forever(agent, ended, check_interval_seconds=arguments.every, report=_log_error)
    for server in servers:
        server.shutdown()
    status = agent.status()
    agent.close()
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, **status})
    return 0


def _job_client(agent: Agent, arguments: argparse.Namespace) -> ControlPlaneClient:
    """Return where this device's jobs come from."""
    settings = agent.settings
    if arguments.once:
        raise InputError("--bench takes jobs for as long as the agent runs", remedy="Leave --once out.")
    if not settings.server_url:
        raise InputError(
            "this device knows no control plane, which jobs come from",
            remedy="Enrol it with 'edgewright device enrol --server URL'.",
        )
    key = load_or_create_device_key(arguments.state / IDENTITY_KEY_FILE)
    return ControlPlaneClient(settings.server_url, settings.audience, key, open_pool(_TIMEOUT_SECONDS), _now)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _log(line: str) -> None:
    print(f"edgewright: {line}", file=sys.stderr, flush=True)


def _log_error(agent: Agent, error: Exception | None) -> None:
    if error is not None:
        print(f"edgewright: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    print(msgspec.json.encode(agent.status()).decode(), file=sys.stderr, flush=True)


def run_predict(arguments: argparse.Namespace) -> int:
    """Run the model on samples; 1 if one is rejected.

    Raises:
        DataError: The file holds no samples for the model.
    """
    agent = Agent(arguments.state)
    feeds = _sample_inputs(arguments.input, agent)
    answers = [agent.predict(feed) for feed in feeds]
    agent.settle_probation()
    rejected = [answer.rejection for answer in answers if answer.rejection is not None]
    release = answers[0].release if answers else None
    if arguments.json:
        print_json(
            {
                "schema": SCHEMA_VERSION,
                "model": None if release is None else release.name,
                "version": None if release is None else release.version,
                "outputs": [{name: array.tolist() for name, array in answer.outputs.items()} for answer in answers],
                "rejections": [
                    None if answer.rejection is None else vars_of(answer.rejection) for answer in answers
                ],
            }
        )
    else:
        for answer in answers:
            if answer.rejection is not None:
                print(f"rejected ({answer.rejection.check}): {answer.rejection.reason}")
            for name, array in answer.outputs.items():
                print(f"{name}: {np.array2string(array, precision=4, threshold=20)}")
    return 1 if rejected else 0


def run_device_status(arguments: argparse.Namespace) -> int:
    """Show what the device says of itself."""
    return _shown(Agent(arguments.state, serves_model=False), None, as_json=arguments.json)


def run_monitor(arguments: argparse.Namespace) -> int:
    """Show what was counted of inputs and answers, and what that says; none of it leaves the device by name."""
    agent = Agent(arguments.state)
    monitor = agent.monitor
    found = None if monitor is None else monitor.describe()
    agent.close()
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "version": agent.status()["version"], "monitor": found})
    elif found is None:
        print("Nothing is watched: the release came without a reference profile.")
    else:
        since = datetime.datetime.fromtimestamp(found["since"], datetime.UTC).isoformat(timespec="seconds")
        which = f" since {since}: {', '.join(found['drifted_signals'])}" if found["drifted_signals"] else ""
        print(f"{found['verdict']}{which} ({found['observations']} observations)")
        for signal_ in found["signals"]:
            distance = f"PSI {signal_['psi']:.3f}" if "psi" in signal_ else "nothing seen yet"
            print(f"  {signal_['name']}: {distance}")
    return 0


def run_privacy(arguments: argparse.Namespace) -> int:
    """Show what this device was asked, what it told and what that cost.

    Raises:
        RefusedError: What it told is not known any more; then it tells nothing.
    """
    found = Agent(arguments.state, serves_model=False).privacy_report()
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, **found})
        return 0
    limits = found["limits"]
    print(f"This device's key is {found['public_key']}.")
    print(
        f"It may spend rho {limits.rho_per_period:g} in {limits.period_seconds / 86400:g} days, with at least"
        f" {limits.min_cohort} devices in a sum; it has answered {found['total_answers']} times."
    )
    for entry in found["answers"]:
        print(
            f"{entry.query_id}: {', '.join(entry.summed)} from {entry.window_start} to {entry.window_end},"
            f" epsilon {entry.epsilon:.2f} if the others are honest, {entry.local_epsilon:.2f} by its own noise"
        )
    for name, step in found["progress"].items():
        print(f"{name}: {step}")
    for name, refusal in found["refusals"].items():
        print(f"{name} was not answered ({refusal.code}): {refusal.reason}")
    return 0


def run_rollback(arguments: argparse.Namespace) -> int:
    """Return to what was proven before.

    Raises:
        NoTrialError: There is nothing to return to.
    """
    agent = Agent(arguments.state)
    agent.roll_back()
    return _shown(agent, None, as_json=arguments.json)


def run_verify(arguments: argparse.Namespace) -> int:
    """Check the stored models; 1 if something was broken."""
    agent = Agent(arguments.state)
    with show_progress("verifying every byte"):
        found = agent.verify_slots()
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "found": found, "status": agent.status()})
    else:
        for refusal in found:
            print(f"{refusal.code}: {refusal.reason}")
        print(f"{len(found)} releases were broken.")
    return 1 if found else 0


def _shown(agent: Agent, record: JournalRecord | None, *, as_json: bool) -> int:
    status = agent.status()
    if as_json:
        print_json({"schema": SCHEMA_VERSION, **status})
    else:
        version = status["version"] or "no model"
        print(f"{status['model'] or ''} {version}: {status['state']}".strip())
        if status["last_refusal"] is not None:
            refusal = status["last_refusal"]
            print(f"refused ({refusal.code}): {refusal.reason}")
        server = status["server"]
        if server is not None:
            trouble = f", not since: {server['last_error']}" if server["last_error"] else ""
            print(f"{server['url']} was reached {server['last_success_at'] or 'never'}{trouble}")
    return 1 if record is not None and record.last_refusal is not None else 0


def _sample_inputs(path: Path, agent: Agent) -> list[dict[str, NDArray[Any]]]:
    """Return one feed per sample of a file."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no .npz file: {error}", remedy="Save it with numpy.savez.") from error
    engine = agent.predictor.current
    names = list(arrays) if engine is None else [spec.name for spec in engine.guard.contract.inputs]
    if len(names) == 1 and len(arrays) == 1:
        arrays = {names[0]: next(iter(arrays.values()))}
    chosen = {name: array for name, array in arrays.items() if name in names}
    count = min((len(array) for array in chosen.values() if array.ndim), default=0)
    if not count:
        raise DataError(
            f"{path} holds {', '.join(arrays) or 'nothing'}, the model takes {', '.join(names)}",
            remedy="Name the arrays as the model's inputs.",
        )
    return [{name: array[number : number + 1] for name, array in chosen.items()} for number in range(count)]


def vars_of(rejection: Any) -> dict[str, str]:
    """Return a rejection as a JSON object."""
    return {"check": rejection.check, "tensor": rejection.tensor, "reason": rejection.reason}
