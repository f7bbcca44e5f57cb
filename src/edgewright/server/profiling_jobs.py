"""Jobs for bench devices: who takes one, how it stands, when nobody waits for it any more.

What a job holds is between its maker and the device; here only its head is read. A device that asks for work has
none, so the lease is short: it only keeps a request that was sent twice from getting two jobs.
"""

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.names import checked_name
from edgewright.contract.refusal import RefusedError
from edgewright.profiling.job_archive import MAX_JOB_BYTES, MAX_JOB_REPLY_BYTES, JobFailure, job_header
from edgewright.server.errors import NotFoundError
from edgewright.server.services import Services
from edgewright.server.store.records import ProfilingJob

__all__ = [
    "MAX_JOB_BYTES",
    "MAX_JOB_REPLY_BYTES",
    "PROFILE_JOB_KIND",
    "cancel_profiling_job",
    "claim_profiling_job",
    "create_profiling_job",
    "find_profiling_device",
    "finish_profiling_job",
]

PROFILE_JOB_KIND = "profile"
_LEASE_SECONDS = 15.0
_MAX_WAITING = 32
_MIN_DIGITS, _DIGITS = 6, 32
_LABEL = "name"


def find_profiling_device(services: Services, name: str) -> str:
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
        if not known.profiling or known.retired_at is not None:
            raise InputError(f"{name} takes no jobs", remedy="Mark it as a bench device first.")
        return known.id
    found = [device.id for device in devices.list_devices(profiling=True, labels={_LABEL: name}, limit=2)]
    if not found and len(name) >= _MIN_DIGITS:
        found = [
            device.id
            for device in devices.list_devices(profiling=True, after=name, limit=2)
            if device.id.startswith(name)
        ]
    if len(found) > 1:
        raise InputError(f"more than one bench device is called {name}", remedy="Name its whole id.")
    if not found:
        raise InputError(
            f"there is no bench device {name}",
            remedy="Give the id of one, 6 or more of its first digits, or its label `name`.",
        )
    return found[0]


def create_profiling_job(services: Services, principal: str, name: str, kind: str, body: bytes) -> str:
    """Return the id of a new job.

    Args:
        services: Of the server.
        principal: Makes it: `user:NAME` or `token:NAME`; has the right to "run jobs".
        name: Of the device; see `find_profiling_device`.
        kind: `profile`.
        body: From `profile.parcel.pack`.

    Raises:
        InputError: There is no such device or kind, too many of its jobs wait, or the body is no job.
    """
    if kind != PROFILE_JOB_KIND:
        raise InputError(f"there is no job {kind[:80]!r}", remedy=f"Use {PROFILE_JOB_KIND!r}.")
    try:
        job_header(body)
    except RefusedError as error:
        raise InputError(error.message, remedy=error.remedy) from error
    device_id = find_profiling_device(services, name)
    now = services.now()
    if services.store.jobs.count_unanswered(device_id) >= _MAX_WAITING:
        raise InputError(f"{_MAX_WAITING} jobs wait for {name}", remedy="Wait until some are done.")
    job = services.store.jobs.add(device_id, kind, body, created_by=principal, now=now)
    services.store.audit.write(
        principal, "add job", device_id, at=now, detail={"job": job, "kind": kind, "bytes": len(body)}
    )
    return job


def cancel_profiling_job(services: Services, principal: str, job_id: str) -> bool:
    """End a job that nobody waits for; return whether it was not over already.

    Raises:
        MissingError: There is none of that name.
    """
    job = _existing_job(services, job_id)
    ended = services.store.jobs.cancel(job_id, _not_needed(f"{principal} has cancelled it"), now=services.now())
    if ended:
        services.store.audit.write(
            principal, "cancel job", job.device_id, at=services.now(), detail={"job": job_id}
        )
    return ended


def claim_profiling_job(services: Services, device_id: str) -> tuple[str, bytes] | None:
    """Return the oldest job of a device that somebody still waits for, None if there is none.

    Args:
        services: Of the server.
        device_id: Whose request this is, by its proof.
    """
    jobs = services.store.jobs
    device = services.store.devices.get(device_id)
    if device is None or not device.profiling or device.retired_at is not None:
        return None
    now = services.now()
    while (job := jobs.claim(device_id, now=now, lease_seconds=_LEASE_SECONDS)) is not None:
        if now < job.created_at + job_header(job.request).expires_after_seconds:
            return job.id, job.request
        jobs.finish(job.id, device_id, _not_needed("nobody waits for it any more"), succeeded=False, now=now)
    return None


def finish_profiling_job(
    services: Services, device_id: str, job_id: str, result: bytes, *, succeeded: bool
) -> bool:
    """Keep what a device says of its job; the first answer counts.

    Args:
        services: Of the server.
        device_id: Whose request this is, by its proof.
        job_id: Of the job.
        result: The worker's reply, or a `Failure`.
        succeeded: Which of them.

    Returns:
        Whether this was it; otherwise it was answered, was cancelled, or is none of this device's.

    Raises:
        InputError: The result is too large.
    """
    if len(result) > MAX_JOB_REPLY_BYTES:
        raise InputError(f"a result of {len(result)} bytes", remedy=f"{MAX_JOB_REPLY_BYTES} bytes are the most.")
    return services.store.jobs.finish(job_id, device_id, result, succeeded=succeeded, now=services.now())


def _existing_job(services: Services, job_id: str) -> ProfilingJob:
    job = services.store.jobs.get(job_id)
    if job is None:
        raise NotFoundError(f"there is no job {job_id[:80]!r}", remedy="Look at the list of jobs.")
    return job


def _not_needed(reason: str) -> bytes:
    return msgspec.json.encode(JobFailure("target", f"the job was not done: {reason}", "Ask again."))
