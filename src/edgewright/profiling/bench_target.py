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

from edgewright.contract.api.device_api import Problem
from edgewright.contract.errors import CandidateError, EdgewrightError, InputError, TargetError
from edgewright.device.control_plane_client import Answer, UnansweredError, send
from edgewright.profiling.job_archive import MOST_REPLY_BYTES, Failure, pack
from edgewright.trust.client.fetcher import open_pool

__all__ = ["BENCH", "BenchTarget", "JobView", "checked_server"]

BENCH = re.compile(r"bench:(?P<device>[A-Za-z0-9][A-Za-z0-9._-]{0,63})", re.ASCII)
_SERVER = "EDGEWRIGHT_SERVER"
_TOKEN = "EDGEWRIGHT_API_TOKEN"  # noqa: S105 - the name of a variable

# Between two questions whether the job is done.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _GROWTH = 0.2, 2.0, 1.3
# For the files to come to the device, and the reply back.
_ON_THE_WAY_S = 60.0
# A server that restarts is away for so long at most.
_AWAY_S = 60.0
_CANCEL_S = 3.0
# Longest wait for a connection and for the next bytes; for a whole answer.
_TIMEOUT_S, _PATIENCE_S = 20.0, 600.0
_ABSENT = 404
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class JobView(msgspec.Struct, frozen=True):
    """How a job stands, as the control plane shows it.

    Attributes:
        id: Of the job.
        state: Where it stands.
        device_id: Who does it.
        made_s: When it was made, by the server's clock.
        ended_s: When it was done or had failed.
        tries: How often it was given out.
    """

    id: str
    state: Literal["waiting", "taken", "done", "failed"]
    device_id: str
    made_s: float
    ended_s: float | None = None
    tries: int = 0


class _Made(msgspec.Struct, frozen=True):
    id: str


@dataclass(frozen=True, slots=True)
class BenchTarget:
    """A bench device of the fleet whose control plane EDGEWRIGHT_SERVER names.

    Attributes:
        name: As given to `open_target`.
        device: Its id, the first 6 or more digits of it, or its label `name`.
        patience_s: For so long the device may be off, or busy with jobs of others.
    """

    name: str
    device: str
    patience_s: float = 300.0

    def run(self, request: Mapping[str, Any], files: Mapping[str, Path], *, timeout_s: float) -> dict[str, Any]:
        """Have the device run its worker; see `Target.run`.

        Raises:
            InputError: Server or token are not set or not accepted, the device is no bench, the job is too large.
        """
        api = _api_of(self.name, os.environ)
        try:
            body = pack(request, files, timeout_s=timeout_s, wanted_s=self.patience_s + timeout_s)
        except OSError as error:
            raise TargetError(
                f"{self.name}: the files to send could not be read here: {error}", remedy="Check the model's files."
            ) from error
        job = api.add(self.device, body)
        try:
            view = self._await(api, job, timeout_s)
        except BaseException:
            api.cancel(job)
            raise
        if view.state == "failed":
            raise self._problem(view, api.result(job))
        return self._reply(api.result(job))

    def _await(self, api: "_Api", job: str, timeout_s: float) -> JobView:
        """Return how the job ended."""
        began = seen = time.monotonic()
        taken: float | None = None
        pause = _FIRST_PAUSE_S
        while True:
            try:
                view = api.view(job)
                seen = time.monotonic()
            except TargetError:
                if time.monotonic() - seen > _AWAY_S:
                    raise
            else:
                if view.state in ("done", "failed"):
                    return view
                if view.state == "taken" and taken is None:
                    taken = seen
            now = time.monotonic()
            if taken is None and now - began > self.patience_s:
                raise TargetError(
                    f"{self.name}: the device did not take the job within {self.patience_s:.0f} s",
                    remedy="Check that it is on, runs 'edgewright device run --bench', and is not busy.",
                )
            if taken is not None and now - taken > timeout_s + _ON_THE_WAY_S:
                raise TargetError(
                    f"{self.name}: the device took the job and did not answer within {timeout_s:.0f} s",
                    remedy="Check whether it is still on; a job may have been too much for it.",
                )
            time.sleep(pause)
            pause = min(pause * _GROWTH, _LONGEST_PAUSE_S)

    def _problem(self, view: JobView, content: bytes) -> EdgewrightError:
        try:
            failure = msgspec.json.decode(content, type=Failure)
        except (msgspec.DecodeError, ValueError):
            return TargetError(
                f"{self.name}: the device took the job {view.tries} times and never answered",
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
class _Api:
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

    def add(self, device: str, body: bytes) -> str:
        """Return the name of a new job."""
        answer = self._ask("POST", f"?device={quote(device, safe='')}", body=body)
        try:
            return msgspec.json.decode(answer.content, type=_Made).id
        except (msgspec.DecodeError, ValueError) as error:
            raise self._strange(answer) from error

    def view(self, job: str) -> JobView:
        """Return how a job stands."""
        answer = self._ask("GET", f"/{quote(job, safe='')}")
        try:
            return msgspec.json.decode(answer.content, type=JobView)
        except (msgspec.DecodeError, ValueError) as error:
            raise self._strange(answer) from error

    def result(self, job: str) -> bytes:
        """Return what came of a job, as the device said it; nothing if it said nothing."""
        answer = self._ask("GET", f"/{quote(job, safe='')}/result", largest=MOST_REPLY_BYTES, absent=True)
        return b"" if answer.status == _ABSENT else answer.content

    def cancel(self, job: str) -> None:
        """Say that nobody waits any more; where that does not arrive, the job expires."""
        with contextlib.suppress(EdgewrightError):
            self._ask("DELETE", f"/{quote(job, safe='')}", patience_s=_CANCEL_S)

    def _ask(
        self,
        method: str,
        rest: str,
        body: bytes = b"",
        *,
        largest: int = 1 << 16,
        patience_s: float = _PATIENCE_S,
        absent: bool = False,
    ) -> Answer:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/octet-stream"}
        url = f"{self.url}api/jobs{rest}"
        try:
            answer = send(
                self.pool, url, body, largest=largest, patience_s=patience_s, headers=headers, method=method
            )
        except UnansweredError as error:
            raise TargetError(
                f"{self.name}: {error.message}", remedy="Check that the server runs and can be reached from here."
            ) from error
        if 200 <= answer.status < 300 or (absent and answer.status == _ABSENT):
            return answer
        problem = _problem(answer)
        if answer.status in (401, 403):
            raise InputError(
                f"{self.name}: {self.url} does not accept the token ({problem.message})",
                remedy=f"Set {_TOKEN} to a token of an operator of this fleet.",
            )
        kind = InputError if 400 <= answer.status < 500 and answer.status not in (408, 425, 429) else TargetError
        raise kind(f"{self.name}: {problem.message}", remedy=problem.remedy or "Look at the server's log.")

    def _strange(self, answer: Answer) -> TargetError:
        return TargetError(
            f"{self.name}: {self.url} answered {answer.content[:80]!r}",
            remedy=f"Check that {_SERVER} names the control plane.",
        )


def _api_of(name: str, environment: Mapping[str, str]) -> _Api:
    url, token = environment.get(_SERVER, ""), environment.get(_TOKEN, "").strip()
    if not url or not token:
        missing = _SERVER if not url else _TOKEN
        raise InputError(
            f"{name} is reached through the control plane, and {missing} is not set",
            remedy=f"Set {_SERVER} to its address, and {_TOKEN} to a token of it that may run jobs.",
        )
    if not token.isascii() or not token.isprintable():
        raise InputError(f"{_TOKEN} holds no token", remedy="Set it to the token as it was shown.")
    return _Api(name, checked_server(url), token, open_pool(_TIMEOUT_S))


def checked_server(url: str) -> str:
    """Return the address of a control plane, with a slash at its end.

    Raises:
        InputError: It is none, or everybody on the way would read the token.

    >>> checked_server("https://fleet.example")
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
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise InputError(
            f"{url[:200]} would have the token sent without encryption",
            remedy="Use https. Only this machine's own addresses do without.",
        )
    return url if url.endswith("/") else f"{url}/"


def _problem(answer: Answer) -> Problem:
    try:
        return msgspec.json.decode(answer.content, type=Problem)
    except (msgspec.DecodeError, ValueError):
        return Problem("", f"the answer has status {answer.status}")
