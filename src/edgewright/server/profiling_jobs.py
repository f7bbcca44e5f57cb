"""Jobs for bench devices: who takes one, how it stands, when nobody waits for it any more.

What a job holds is between its maker and the device; here only its head is read. A device that asks for work has
none, so the lease is short: it only keeps a request that was sent twice from getting two jobs.
"""

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.names import checked_name
from edgewright.contract.refusal import RefusedError
from edgewright.profiling.job_archive import MOST_BYTES, MOST_REPLY_BYTES, Failure, head_of
from edgewright.server.errors import MissingError
from edgewright.server.services import Services
from edgewright.server.store.records import Job

__all__ = [
    "KIND",
    "MOST_BYTES",
    "MOST_REPLY_BYTES",
    "add_job",
    "cancel_job",
    "end_job",
    "find_bench",
    "take_job",
]

KIND = "profile"
_LEASE_S = 15.0
_MOST_WAITING = 32
_LEAST_DIGITS, _DIGITS = 6, 32
_LABEL = "name"


def find_bench(services: Services, name: str) -> str:
    """Return the id of a bench device.

    Args:
        services: Of the server.
        name: Its id, its label `name`, or the first 6 or more digits of its id; looked for in this order.

    Raises:
        InputError: There is none, or more than one.
    """
    checked_name("device", name)
    devices = services.store.devices
    if len(name) == _DIGITS and (known := devices.get(name)) is not None:
        if not known.bench or known.retired_s is not None:
            raise InputError(f"{name} takes no jobs", remedy="Mark it as a bench device first.")
        return known.id
    found = [device.id for device in devices.page(bench=True, labels={_LABEL: name}, limit=2)]
    if not found and len(name) >= _LEAST_DIGITS:
        found = [
            device.id for device in devices.page(bench=True, after=name, limit=2) if device.id.startswith(name)
        ]
    if len(found) > 1:
        raise InputError(f"more than one bench device is called {name}", remedy="Name its whole id.")
    if not found:
        raise InputError(
            f"there is no bench device {name}",
            remedy="Give the id of one, 6 or more of its first digits, or its label `name`.",
        )
    return found[0]


def add_job(services: Services, who: str, name: str, kind: str, body: bytes) -> str:
    """Return the id of a new job.

    Args:
        services: Of the server.
        who: Makes it: `user:NAME` or `token:NAME`; has the right to "run jobs".
        name: Of the device; see `find_bench`.
        kind: `profile`.
        body: From `profile.parcel.pack`.

    Raises:
        InputError: There is no such device or kind, too many of its jobs wait, or the body is no job.
    """
    if kind != KIND:
        raise InputError(f"there is no job {kind[:80]!r}", remedy=f"Use {KIND!r}.")
    try:
        head_of(body)
    except RefusedError as error:
        raise InputError(error.message, remedy=error.remedy) from error
    device_id = find_bench(services, name)
    now_s = services.now()
    if services.store.jobs.unanswered(device_id) >= _MOST_WAITING:
        raise InputError(f"{_MOST_WAITING} jobs wait for {name}", remedy="Wait until some are done.")
    job = services.store.jobs.add(device_id, kind, body, made_by=who, now_s=now_s)
    services.store.audit.write(
        who, "add job", device_id, at_s=now_s, detail={"job": job, "kind": kind, "bytes": len(body)}
    )
    return job


def cancel_job(services: Services, who: str, job_id: str) -> bool:
    """End a job that nobody waits for; return whether it was not over already.

    Raises:
        MissingError: There is none of that name.
    """
    job = _known(services, job_id)
    ended = services.store.jobs.cancel(job_id, _unwanted(f"{who} has cancelled it"), now_s=services.now())
    if ended:
        services.store.audit.write(who, "cancel job", job.device_id, at_s=services.now(), detail={"job": job_id})
    return ended


def take_job(services: Services, device_id: str) -> tuple[str, bytes] | None:
    """Return the oldest job of a device that somebody still waits for, None if there is none.

    Args:
        services: Of the server.
        device_id: Whose request this is, by its proof.
    """
    jobs = services.store.jobs
    device = services.store.devices.get(device_id)
    if device is None or not device.bench or device.retired_s is not None:
        return None
    now_s = services.now()
    while (job := jobs.take(device_id, now_s=now_s, lease_s=_LEASE_S)) is not None:
        if now_s < job.made_s + head_of(job.request).wanted_s:
            return job.id, job.request
        jobs.end(job.id, device_id, _unwanted("nobody waits for it any more"), good=False, now_s=now_s)
    return None


def end_job(services: Services, device_id: str, job_id: str, result: bytes, *, good: bool) -> bool:
    """Keep what a device says of its job; the first answer counts.

    Args:
        services: Of the server.
        device_id: Whose request this is, by its proof.
        job_id: Of the job.
        result: The worker's reply, or a `Failure`.
        good: Which of them.

    Returns:
        Whether this was it; otherwise it was answered, was cancelled, or is none of this device's.

    Raises:
        InputError: The result is too large.
    """
    if len(result) > MOST_REPLY_BYTES:
        raise InputError(f"a result of {len(result)} bytes", remedy=f"{MOST_REPLY_BYTES} bytes are the most.")
    return services.store.jobs.end(job_id, device_id, result, good=good, now_s=services.now())


def _known(services: Services, job_id: str) -> Job:
    job = services.store.jobs.get(job_id)
    if job is None:
        raise MissingError(f"there is no job {job_id[:80]!r}", remedy="Look at the list of jobs.")
    return job


def _unwanted(why: str) -> bytes:
    return msgspec.json.encode(Failure("target", f"the job was not done: {why}", "Ask again."))
