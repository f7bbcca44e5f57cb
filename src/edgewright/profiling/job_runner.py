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
from edgewright.device.control_plane_client import ControlPlaneClient, ServerUnavailableError
from edgewright.profiling.job_archive import MAX_JOB_BYTES, MAX_JOB_REPLY_BYTES, JobFailure, JobHeader, unpack_job
from edgewright.profiling.target import FREE_SPACE_ADVICE, LocalTarget
from edgewright.runtime.external_data import external_locations

__all__ = ["JobOutcome", "WorkerLimits", "run_job", "run_jobs"]

# Providers that hand the input to somebody else.
_REMOTE_PROVIDERS = ("AzureExecutionProvider",)
_JOB_NAME = re.compile(r"[0-9A-Za-z]{1,64}", re.ASCII)
_OK, _NO_CONTENT = 200, 204
# For a job to come over a slow line, seconds.
_TIMEOUT_SECONDS = 600.0
# Kept; and not read, none of this device's, not wanted any more, too large: sent again, it would fare no better.
_FINAL_STATUSES = (200, 204, 400, 404, 409, 413)
# Between two questions for work; within a minute of a job not longer than the second of them: whoever
# measures one thing goes on with another.
_FIRST_PAUSE_SECONDS, _ACTIVE_PAUSE_SECONDS, _MAX_PAUSE_SECONDS, _PAUSE_GROWTH = 0.2, 1.0, 10.0, 1.5
_ACTIVE_PERIOD_SECONDS = 60.0
_ERROR_PAUSE_SECONDS = 60.0
# So often an answer is sent; the last comes a quarter of an hour after the first.
_MAX_SEND_ATTEMPTS = 12
_LOCAL_FOLDER = "here"


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What a worker may use.

    Attributes:
        memory_bytes: That it may write to.
        disk_bytes: Of the largest file that it may write.
    """

    memory_bytes: int
    disk_bytes: int = 256 << 20

    @classmethod
    def default(cls) -> "WorkerLimits":
        """Three quarters of this machine's memory."""
        return cls(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 3 // 4)


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """What came of a job.

    Attributes:
        succeeded: Whether the worker replied.
        content: Its reply, or a `Failure`, as JSON.
    """

    succeeded: bool
    content: bytes


def run_job(job: bytes, limits: WorkerLimits) -> JobOutcome:
    """Do a job, whatever its bytes are; what goes wrong is part of the outcome.

    Args:
        job: As it came.
        limits: What the worker may use.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="edgewright-job-") as folder:
            head, paths = unpack_job(job, Path(folder))
            _check_models(head, paths)
            request = msgspec.json.decode(msgspec.json.encode(head.request), type=dict[str, Any])
            limited = {**request, "limits": _resource_limits(head, limits)}
            reply = LocalTarget(name=_LOCAL_FOLDER).run(limited, paths, timeout_seconds=head.timeout_seconds)
        content = json.dumps(reply).encode()
        if len(content) > MAX_JOB_REPLY_BYTES:
            raise TargetError(f"a reply of {len(content)} bytes", remedy="Measure fewer models at a time.")
    except EdgewrightError as error:
        return _failed_outcome(error)
    except OSError as error:
        return _failed_outcome(
            TargetError(f"the files could not be unpacked: {error.strerror}", remedy=FREE_SPACE_ADVICE)
        )
    return JobOutcome(True, content)


def _check_models(header: JobHeader, paths: Mapping[str, Path]) -> None:
    """Refuse what would make the runtime look elsewhere."""
    for each in header.request.workloads:
        for provider in each.options.providers:
            if provider in _REMOTE_PROVIDERS:
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


def _resource_limits(header: JobHeader, limits: WorkerLimits) -> dict[str, int]:
    cores = os.cpu_count() or 1
    return {
        "DATA": limits.memory_bytes,
        "CPU": int(cores * header.timeout_seconds) + 1,
        "FSIZE": limits.disk_bytes,
        "CORE": 0,
    }


def _failed_outcome(error: EdgewrightError) -> JobOutcome:
    message = error.message.removeprefix(f"{_LOCAL_FOLDER}: ")
    if isinstance(error, RefusedError):
        failure = JobFailure("refused", f"the device refuses: {message}", error.remedy)
    elif isinstance(error, CandidateError):
        failure = JobFailure("candidate", message, error.remedy)
    else:
        failure = JobFailure("target", message, error.remedy)
    return JobOutcome(False, msgspec.json.encode(failure))


def run_jobs(
    client: ControlPlaneClient,
    stop_event: threading.Event,
    *,
    limits: WorkerLimits | None = None,
    report: Callable[[str], None] = lambda _: None,
    max_pause_seconds: float = _MAX_PAUSE_SECONDS,
) -> None:
    """Do one job after the other until told to end.

    A device that asks for work has none: so a job of its that the server thinks it has was lost with its power.

    Args:
        client: Where jobs come from.
        stop_event: Set by whoever wants an end.
        limits: What a worker may use; the usual if not given.
        report: Is told what happens, in a line.
        max_pause_seconds: Between two questions while there is nothing to do.
    """
    chance = random.Random(client.key.public)  # noqa: S311 - nothing secret
    granted = limits or WorkerLimits.default()
    pause, worked = _FIRST_PAUSE_SECONDS, -math.inf
    while not stop_event.is_set():
        try:
            found = _fetch_job(client)
            if found is not None:
                name, body = found
                report(f"job {name}: {len(body)} bytes")
                outcome = run_job(body, granted)
                report(f"job {name}: {'done' if outcome.succeeded else outcome.content.decode('utf-8', 'replace')}")
                _deliver_outcome(client, name, outcome, stop_event)
                pause, worked = _FIRST_PAUSE_SECONDS, time.monotonic()
                continue
            session = time.monotonic() - worked < _ACTIVE_PERIOD_SECONDS
            pause = min(pause * _PAUSE_GROWTH, _ACTIVE_PAUSE_SECONDS if session else max_pause_seconds)
        except Exception as error:  # whatever it is, the next job may be sound, and the agent goes on
            report(f"{type(error).__name__}: {error}")
            pause = min(pause * 2 * _PAUSE_GROWTH, max(_ERROR_PAUSE_SECONDS, max_pause_seconds))
        stop_event.wait(pause * (0.9 + 0.2 * chance.random()))


def _fetch_job(client: ControlPlaneClient) -> tuple[str, bytes] | None:
    """Return a job and its name, None if there is none."""
    answer = client.request("/device/job", max_bytes=MAX_JOB_BYTES, timeout_seconds=_TIMEOUT_SECONDS)
    if answer.status == _NO_CONTENT:
        return None
    name = answer.headers.get(JOB, "")
    if answer.status != _OK or not _JOB_NAME.fullmatch(name):
        raise TargetError(f"the server gives no job: status {answer.status}", remedy="It is asked again.")
    return name, answer.content


def _send_outcome(client: ControlPlaneClient, name: str, outcome: JobOutcome) -> bool:
    """Send what came of a job; return whether the server has it, or does not want it."""
    path = f"/device/job/{name}/{'done' if outcome.succeeded else 'failed'}"
    return client.request(path, outcome.content, timeout_seconds=_TIMEOUT_SECONDS).status in _FINAL_STATUSES


def _deliver_outcome(
    client: ControlPlaneClient, name: str, outcome: JobOutcome, stop_event: threading.Event
) -> None:
    """Send an outcome until it arrives: measuring again would cost more."""
    pause = _FIRST_PAUSE_SECONDS
    for _ in range(_MAX_SEND_ATTEMPTS):
        try:
            if _send_outcome(client, name, outcome):
                return
        except ServerUnavailableError:
            pass
        if stop_event.wait(pause):
            return
        pause = min(2 * pause, 2 * _ERROR_PAUSE_SECONDS)
    raise TargetError(f"job {name}: the answer did not arrive", remedy="The server gives it out again.")
