"""What a bench device does: asks the control plane for jobs, measures, and answers.

Whom a job comes from, and what it can do. It comes from an operator of the fleet, or from whoever has an
operator's token, and no offline key has signed it; so it may measure models, and nothing else. No code comes with
a job: this device runs its own `worker.py`. The request may name the worker's actions and a model's options and no
more (`parcel.Request`): no path of this device, no library of operators, no provider that sends inputs over the
network. A model is read before a session sees it, and one whose tensors lie in any file but those beside it is
refused. The worker is a process of its own that is ended after a time that the job states and this device bounds;
it may not use more memory, processor time and disk than it is granted, and is the first that the system ends when
memory is short. What is left: a model may keep the device busy for as long as that, and onnxruntime reads and runs
it with the rights of the agent's user. So jobs run only where the device's owner said so, beside the server's mark.

No libraries but a bare installation's are loaded.
"""

import json
import math
import os
import random
import re
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgewright.contract.api.device_api import JOB
from edgewright.contract.errors import CandidateError, EdgewrightError, ModelError, TargetError
from edgewright.contract.refusal import RefusedError
from edgewright.device.control_plane_client import Door, UnansweredError
from edgewright.profiling.job_archive import MOST_BYTES, MOST_REPLY_BYTES, Failure, Head, unpack
from edgewright.profiling.target import FREE_SPACE_HERE, LocalTarget
from edgewright.runtime.external_data import external_locations

__all__ = ["Grant", "Outcome", "do_errand", "run_errands"]

# Providers that hand the input to somebody else.
_NOT_LOCAL = ("AzureExecutionProvider",)
_NAME = re.compile(r"[0-9A-Za-z]{1,64}", re.ASCII)
_OK, _NONE = 200, 204
# For a job to come over a slow line, seconds.
_PATIENCE_S = 600.0
# Kept; and not read, none of this device's, not wanted any more, too large: sent again, it would fare no better.
_FINAL = (200, 204, 400, 404, 409, 413)
# Between two questions for work; within a minute of a job not longer than the second of them: whoever
# measures one thing goes on with another.
_FIRST_PAUSE_S, _SESSION_PAUSE_S, _LONGEST_PAUSE_S, _GROWTH = 0.2, 1.0, 10.0, 1.5
_SESSION_S = 60.0
_TROUBLED_PAUSE_S = 60.0
# So often an answer is sent; the last comes a quarter of an hour after the first.
_SENDINGS = 12
_HERE = "here"


@dataclass(frozen=True, slots=True)
class Grant:
    """What a worker may use.

    Attributes:
        memory_bytes: That it may write to.
        disk_bytes: Of the largest file that it may write.
    """

    memory_bytes: int
    disk_bytes: int = 256 << 20

    @classmethod
    def usual(cls) -> "Grant":
        """Three quarters of this machine's memory."""
        return cls(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 3 // 4)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job.

    Attributes:
        good: Whether the worker replied.
        content: Its reply, or a `Failure`, as JSON.
    """

    good: bool
    content: bytes


def do_errand(body: bytes, grant: Grant) -> Outcome:
    """Do a job, whatever its bytes are; what goes wrong is part of the outcome.

    Args:
        body: As it came.
        grant: What the worker may use.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="edgewright-job-") as folder:
            head, paths = unpack(body, Path(folder))
            _check(head, paths)
            request = msgspec.json.decode(msgspec.json.encode(head.request), type=dict[str, Any])
            limited = {**request, "limits": _limits(head, grant)}
            reply = LocalTarget(name=_HERE).run(limited, paths, timeout_s=head.timeout_s)
        content = json.dumps(reply).encode()
        if len(content) > MOST_REPLY_BYTES:
            raise TargetError(f"a reply of {len(content)} bytes", remedy="Measure fewer models at a time.")
    except EdgewrightError as error:
        return _failed(error)
    except OSError as error:
        return _failed(TargetError(f"the files could not be unpacked: {error.strerror}", remedy=FREE_SPACE_HERE))
    return Outcome(True, content)


def _check(head: Head, paths: Mapping[str, Path]) -> None:
    """Refuse what would make the runtime look elsewhere."""
    for each in head.request.subjects:
        for provider in each.options.providers:
            if provider in _NOT_LOCAL:
                raise RefusedError(
                    "requirement", "", f"{provider} is none of this device's own", remedy="Leave it out."
                )
        folder = each.model.rpartition("/")[0]
        try:
            locations = external_locations(paths[each.model].read_bytes())
        except ModelError as error:
            raise CandidateError(error.message, remedy="Export the model again.") from error
        for location in sorted(locations):
            if (f"{folder}/{location}" if folder else location) not in paths:
                raise RefusedError(
                    "external data",
                    "",
                    f"the model keeps tensors in {location[:200]!r}, which did not come with it",
                    remedy="Save it with all data inside.",
                )


def _limits(head: Head, grant: Grant) -> dict[str, int]:
    cores = os.cpu_count() or 1
    return {
        "DATA": grant.memory_bytes,
        "CPU": int(cores * head.timeout_s) + 1,
        "FSIZE": grant.disk_bytes,
        "CORE": 0,
    }


def _failed(error: EdgewrightError) -> Outcome:
    message = error.message.removeprefix(f"{_HERE}: ")
    if isinstance(error, RefusedError):
        failure = Failure("refused", f"the device refuses: {message}", error.remedy)
    elif isinstance(error, CandidateError):
        failure = Failure("candidate", message, error.remedy)
    else:
        failure = Failure("target", message, error.remedy)
    return Outcome(False, msgspec.json.encode(failure))


def run_errands(
    door: Door,
    ended: threading.Event,
    *,
    grant: Grant | None = None,
    tell: Callable[[str], None] = lambda _: None,
    longest_pause_s: float = _LONGEST_PAUSE_S,
) -> None:
    """Do one job after the other until told to end.

    A device that asks for work has none: so a job of its that the server thinks it has was lost with its power.

    Args:
        door: Where jobs come from.
        ended: Set by whoever wants an end.
        grant: What a worker may use; the usual if not given.
        tell: Is told what happens, in a line.
        longest_pause_s: Between two questions while there is nothing to do.
    """
    chance = random.Random(door.key.public)  # noqa: S311 - nothing secret
    granted = grant or Grant.usual()
    pause, worked = _FIRST_PAUSE_S, -math.inf
    while not ended.is_set():
        try:
            found = _fetch(door)
            if found is not None:
                name, body = found
                tell(f"job {name}: {len(body)} bytes")
                outcome = do_errand(body, granted)
                tell(f"job {name}: {'done' if outcome.good else outcome.content.decode('utf-8', 'replace')}")
                _deliver(door, name, outcome, ended)
                pause, worked = _FIRST_PAUSE_S, time.monotonic()
                continue
            session = time.monotonic() - worked < _SESSION_S
            pause = min(pause * _GROWTH, _SESSION_PAUSE_S if session else longest_pause_s)
        except Exception as error:  # whatever it is, the next job may be sound, and the agent goes on
            tell(f"{type(error).__name__}: {error}")
            pause = min(pause * 2 * _GROWTH, max(_TROUBLED_PAUSE_S, longest_pause_s))
        ended.wait(pause * (0.9 + 0.2 * chance.random()))


def _fetch(door: Door) -> tuple[str, bytes] | None:
    """Return a job and its name, None if there is none."""
    answer = door.ask("/device/job", largest=MOST_BYTES, patience_s=_PATIENCE_S)
    if answer.status == _NONE:
        return None
    name = answer.headers.get(JOB, "")
    if answer.status != _OK or not _NAME.fullmatch(name):
        raise TargetError(f"the server gives no job: status {answer.status}", remedy="It is asked again.")
    return name, answer.content


def _tell(door: Door, name: str, outcome: Outcome) -> bool:
    """Send what came of a job; return whether the server has it, or does not want it."""
    path = f"/device/job/{name}/{'done' if outcome.good else 'failed'}"
    return door.ask(path, outcome.content, patience_s=_PATIENCE_S).status in _FINAL


def _deliver(door: Door, name: str, outcome: Outcome, ended: threading.Event) -> None:
    """Send an outcome until it arrives: measuring again would cost more."""
    pause = _FIRST_PAUSE_S
    for _ in range(_SENDINGS):
        try:
            if _tell(door, name, outcome):
                return
        except UnansweredError:
            pass
        if ended.wait(pause):
            return
        pause = min(2 * pause, 2 * _TROUBLED_PAUSE_S)
    raise TargetError(f"job {name}: the answer did not arrive", remedy="The server gives it out again.")
