"""A bench device: enrolled in the fleet, behind whatever firewall, measuring what the control plane hands it.

The request and its files go to the control plane as one job (`parcel`); the device fetches it when it asks for
work (`errand`), runs its own worker, and posts the reply. A job that nobody waits for is cancelled, and expires.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import msgspec
import urllib3

from edgewright.contract.api.device_api import ErrorResponse
from edgewright.contract.errors import CandidateError, EdgewrightError, InputError, TargetError
from edgewright.device.control_plane_client import HttpAnswer, ServerUnavailableError, send_http
from edgewright.profiling.job_archive import MAX_JOB_REPLY_BYTES, JobFailure, pack_job
from edgewright.trust.client.fetcher import open_pool

__all__ = ["PROFILING_DEVICE", "ProfilingDeviceTarget", "ProfilingJobStatus", "checked_server_url"]

PROFILING_DEVICE = re.compile(r"bench:(?P<device>[A-Za-z0-9][A-Za-z0-9._-]{0,63})", re.ASCII)
_SERVER_VARIABLE = "EDGEWRIGHT_SERVER"
_TOKEN_VARIABLE = "EDGEWRIGHT_API_TOKEN"  # noqa: S105 - the name of a variable

# Between two questions whether the job is done.
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS, _PAUSE_GROWTH = 0.2, 2.0, 1.3
# For the files to come to the device, and the reply back.
_TRANSFER_MARGIN_SECONDS = 60.0
# A server that restarts is away for so long at most.
_UNREACHABLE_SECONDS = 60.0
_CANCEL_SECONDS = 3.0
# Longest wait for a connection and for the next bytes; for a whole answer.
_REQUEST_TIMEOUT_SECONDS, _OFFLINE_TIMEOUT_SECONDS = 20.0, 600.0
_NOT_FOUND = 404
_LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


class ProfilingJobStatus(msgspec.Struct, frozen=True):
    """How a job stands, as the control plane shows it.

    Attributes:
        id: Of the job.
        state: Where it stands.
        device_id: Who does it.
        created_at: When it was made, by the server's clock.
        ended_at: When it was done or had failed.
        attempts: How often it was given out.
    """

    id: str
    state: Literal["waiting", "taken", "done", "failed"]
    device_id: str
    created_at: float
    ended_at: float | None = None
    attempts: int = 0


class _CreatedJob(msgspec.Struct, frozen=True):
    id: str


@dataclass(frozen=True, slots=True)
class ProfilingDeviceTarget:
    """A bench device of the fleet whose control plane EDGEWRIGHT_SERVER names.

    Attributes:
        name: As given to `open_target`.
        device_selector: Its id, the first 6 or more digits of it, or its label `name`.
        offline_timeout_seconds: For so long the device may be off, or busy with jobs of others.
    """

    name: str
    device_selector: str
    offline_timeout_seconds: float = 300.0

    def run(
        self, request: Mapping[str, Any], files: Mapping[str, Path], *, timeout_seconds: float
    ) -> dict[str, Any]:
        """Have the device run its worker; see `Target.run`.

        Raises:
            InputError: Server or token are not set or not accepted, the device is no bench, the job is too large.
        """
        api = _open_api(self.name, os.environ)
        try:
            body = pack_job(
                request,
                files,
                timeout_seconds=timeout_seconds,
                expires_after_seconds=self.offline_timeout_seconds + timeout_seconds,
            )
        except OSError as error:
            raise TargetError(
                f"{self.name}: the files to send could not be read here: {error}", remedy="Check the model's files."
            ) from error
        job = api.create_job(self.device_selector, body)
        try:
            view = self._await(api, job, timeout_seconds)
        except BaseException:
            api.cancel_job(job)
            raise
        if view.state == "failed":
            raise self._job_error(view, api.job_result(job))
        return self._reply(api.job_result(job))

    def _await(self, api: "_ProfilingApi", job: str, timeout_seconds: float) -> ProfilingJobStatus:
        """Return how the job ended."""
        began = seen = time.monotonic()
        taken: float | None = None
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                view = api.job_status(job)
                seen = time.monotonic()
            except TargetError:
                if time.monotonic() - seen > _UNREACHABLE_SECONDS:
                    raise
            else:
                if view.state in ("done", "failed"):
                    return view
                if view.state == "taken" and taken is None:
                    taken = seen
            now = time.monotonic()
            if taken is None and now - began > self.offline_timeout_seconds:
                raise TargetError(
                    f"{self.name}: the device did not take the job within {self.offline_timeout_seconds:.0f} s",
                    remedy="Check that it is on, runs 'edgewright device run --bench', and is not busy.",
                )
            if taken is not None and now - taken > timeout_seconds + _TRANSFER_MARGIN_SECONDS:
                raise TargetError(
                    f"{self.name}: the device took the job and did not answer within {timeout_seconds:.0f} s",
                    remedy="Check whether it is still on; a job may have been too much for it.",
                )
            time.sleep(pause)
            pause = min(pause * _PAUSE_GROWTH, _MAX_PAUSE_SECONDS)

    def _job_error(self, status: ProfilingJobStatus, content: bytes) -> EdgewrightError:
        try:
            failure = msgspec.json.decode(content, type=JobFailure)
        except (msgspec.DecodeError, ValueError):
            return TargetError(
                f"{self.name}: the device took the job {status.attempts} times and never answered",
                remedy="Look at the device's log: a model that is too large for it may make it restart.",
            )
        if failure.kind == "candidate":
            return CandidateError(f"{self.name}: {failure.message}", remedy=failure.remedy)
        return TargetError(f"{self.name}: {failure.message}", remedy=failure.remedy)

    def _reply(self, content: bytes) -> dict[str, Any]:
        try:
            reply = json.loads(content)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict) or "machine" not in reply:
            raise TargetError(f"{self.name}: what the device answered is no reply", remedy="Update the device.")
        return reply


@dataclass(frozen=True, slots=True)
class _ProfilingApi:
    """What a bench target needs of the control plane.

    Attributes:
        name: Of the target, for messages.
        url: Of the server, with a slash at its end.
        token: That may run jobs.
        pool: Of connections.
    """

    name: str
    url: str
    token: str
    pool: urllib3.PoolManager

    def create_job(self, device: str, body: bytes) -> str:
        """Return the name of a new job."""
        answer = self._request("POST", f"?device={quote(device, safe='')}", body=body)
        try:
            return msgspec.json.decode(answer.content, type=_CreatedJob).id
        except (msgspec.DecodeError, ValueError) as error:
            raise self._unexpected(answer) from error

    def job_status(self, job: str) -> ProfilingJobStatus:
        """Return how a job stands."""
        answer = self._request("GET", f"/{quote(job, safe='')}")
        try:
            return msgspec.json.decode(answer.content, type=ProfilingJobStatus)
        except (msgspec.DecodeError, ValueError) as error:
            raise self._unexpected(answer) from error

    def job_result(self, job: str) -> bytes:
        """Return what came of a job, as the device said it; nothing if it said nothing."""
        answer = self._request(
            "GET", f"/{quote(job, safe='')}/result", max_bytes=MAX_JOB_REPLY_BYTES, allow_missing=True
        )
        return b"" if answer.status == _NOT_FOUND else answer.content

    def cancel_job(self, job: str) -> None:
        """Say that nobody waits any more; where that does not arrive, the job expires."""
        with contextlib.suppress(EdgewrightError):
            self._request("DELETE", f"/{quote(job, safe='')}", timeout_seconds=_CANCEL_SECONDS)

    def _request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        max_bytes: int = 1 << 16,
        timeout_seconds: float = _OFFLINE_TIMEOUT_SECONDS,
        allow_missing: bool = False,
    ) -> HttpAnswer:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/octet-stream"}
        url = f"{self.url}api/jobs{path}"
        try:
            answer = send_http(
                self.pool,
                url,
                body,
                max_bytes=max_bytes,
                timeout_seconds=timeout_seconds,
                headers=headers,
                method=method,
            )
        except ServerUnavailableError as error:
            raise TargetError(
                f"{self.name}: {error.message}", remedy="Check that the server runs and can be reached from here."
            ) from error
        if 200 <= answer.status < 300 or (allow_missing and answer.status == _NOT_FOUND):
            return answer
        problem = _http_error(answer)
        if answer.status in (401, 403):
            raise InputError(
                f"{self.name}: {self.url} does not accept the token ({problem.message})",
                remedy=f"Set {_TOKEN_VARIABLE} to a token of an operator of this fleet.",
            )
        kind = InputError if 400 <= answer.status < 500 and answer.status not in (408, 425, 429) else TargetError
        raise kind(f"{self.name}: {problem.message}", remedy=problem.remedy or "Look at the server's log.")

    def _unexpected(self, answer: HttpAnswer) -> TargetError:
        return TargetError(
            f"{self.name}: {self.url} answered {answer.content[:80]!r}",
            remedy=f"Check that {_SERVER_VARIABLE} names the control plane.",
        )


def _open_api(name: str, environment: Mapping[str, str]) -> _ProfilingApi:
    url, token = environment.get(_SERVER_VARIABLE, ""), environment.get(_TOKEN_VARIABLE, "").strip()
    if not url or not token:
        missing = _SERVER_VARIABLE if not url else _TOKEN_VARIABLE
        raise InputError(
            f"{name} is reached through the control plane, and {missing} is not set",
            remedy=f"Set {_SERVER_VARIABLE} to its address, and {_TOKEN_VARIABLE} to a token of it that may run jobs.",
        )
    if not token.isascii() or not token.isprintable():
        raise InputError(f"{_TOKEN_VARIABLE} holds no token", remedy="Set it to the token as it was shown.")
    return _ProfilingApi(name, checked_server_url(url), token, open_pool(_REQUEST_TIMEOUT_SECONDS))


def checked_server_url(url: str) -> str:
    """Return the address of a control plane, with a slash at its end.

    Raises:
        InputError: It is none, or everybody on the way would read the token.

    >>> checked_server_url("https://fleet.example")
    'https://fleet.example/'
    """
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound or parts.query or parts.fragment or parts.username or parts.password:
        raise InputError(
            f"{url[:200]!r} is no address of a control plane",
            remedy="Give it as https://host, with a :port if need be.",
        )
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK_HOSTS:
        raise InputError(
            f"{url[:200]} would have the token sent without encryption",
            remedy="Use https. Only this machine's own addresses do without.",
        )
    return url if url.endswith("/") else f"{url}/"


def _http_error(answer: HttpAnswer) -> ErrorResponse:
    try:
        return msgspec.json.decode(answer.content, type=ErrorResponse)
    except (msgspec.DecodeError, ValueError):
        return ErrorResponse("", f"the answer has status {answer.status}")
