"""The device side, the hot path: plain ASGI, signatures verified, check-ins written in batches.

A check-in is answered once its batch is on the disk. Nothing is allocated for a body before its length is known to
be within the limit and its sender known, a body that does not come in time is not waited for, and of all requests
together no more than so much is held: who comes then is to come again.
"""

import asyncio
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import msgspec

from edgewright.contract.api.device_api import (
    JOB,
    PROOF,
    CheckInRequest,
    CheckInResponse,
    EnrolRequest,
    EnrolResponse,
    ErrorResponse,
)
from edgewright.contract.api.device_status import StageOutcome
from edgewright.contract.errors import EdgewrightError
from edgewright.contract.rollout.plan import RolloutPlan
from edgewright.server.access_control import secret_hash
from edgewright.server.auth.rate_limits import RateLimiter, limited_network
from edgewright.server.controller.signed_plans import live_plans
from edgewright.server.controller.stage_participants import is_outcome_kept, rollout_subject
from edgewright.server.device_api.asgi import (
    UNREADABLE_ERRORS,
    AsgiReceive,
    AsgiScope,
    AsgiSend,
    ResponseError,
    bad_request,
    not_found,
    read_body,
    send_response,
    service_unavailable,
    too_many_requests,
)
from edgewright.server.device_api.repository_files import RepositoryFiles
from edgewright.server.errors import error_body
from edgewright.server.metrics import CHECK_INS, FLUSHES, OVERLOADED_CHECK_INS, REFUSED_REQUESTS, observe_seconds
from edgewright.server.profiling_jobs import MAX_JOB_REPLY_BYTES, claim_profiling_job, finish_profiling_job
from edgewright.server.services import Services
from edgewright.server.store.database import DatabaseUnavailableError
from edgewright.server.store.devices import DeviceCredentials
from edgewright.server.store.records import CheckIn
from edgewright.trust.keys.device_identity import AuthenticationError, RequestVerifier, parse_proof

__all__ = ["DeviceEndpoint"]

DEVICE_LOG = logging.getLogger("edgewright.server")
_T = TypeVar("_T")

# Bytes of a body, by what it is for; sums and jobs carry vectors and profiles.
_MAX_SMALL_BODY_BYTES, _MAX_SUM_MESSAGE_BYTES = 32 << 10, 64 << 20
_BODY_SECONDS, _SUM_MESSAGE_SECONDS = 10.0, 60.0
_BATCH, _MAX_WAITING, _GATHER_SECONDS = 500, 5000, 0.002
# Requests that are being answered, and bytes of their bodies: more than this is not held in memory at a time.
_MAX_CONCURRENT, _MAX_HELD = 8000, 256 << 20
# Keys of devices that checked in lately; a retired device is believed for so long at most.
_MAX_KEYS, _KEY_SECONDS = 250_000, 60.0
_PLANS_SECONDS = 5.0
_JOB_END = re.compile(r"/device/job/([0-9a-f]{16})/(done|failed)", re.ASCII)
_DEVICE_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_MAX_PROOF = 2000
_decode_check_in = msgspec.json.Decoder(CheckInRequest).decode
_decode_enrolling = msgspec.json.Decoder(EnrolRequest).decode
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class _Waiting:
    check_in: CheckIn
    request: CheckInRequest
    answer: "asyncio.Future[bool | None]"


@dataclass(slots=True)
class DeviceEndpoint:
    """Answers devices.

    Attributes:
        services: What it works with.
    """

    services: Services
    _files: RepositoryFiles = field(init=False)
    _verifier: RequestVerifier = field(init=False)
    _request_count: int = field(init=False, default=0)
    _held_bytes: int = field(init=False, default=0)
    _keys: OrderedDict[str, tuple[float, DeviceCredentials]] = field(init=False, default_factory=OrderedDict)
    _wanted: dict[str, "list[asyncio.Future[bool]]"] = field(init=False, default_factory=dict)
    _looking: bool = field(init=False, default=False)
    _waiting: list[_Waiting] = field(init=False, default_factory=list)
    _flushing: bool = field(init=False, default=False)
    _tasks: set["asyncio.Task[None]"] = field(init=False, default_factory=set)
    _plans: tuple[float, dict[tuple[str, str], list[RolloutPlan]]] | None = field(init=False, default=None)
    _enrolments: RateLimiter = field(init=False, default_factory=lambda: RateLimiter(per_s=2.0, burst=60))
    _often: RateLimiter = field(init=False, default_factory=lambda: RateLimiter(per_s=0.5, burst=30))
    # Its own threads: whoever else waits for the database does not keep check-ins waiting.
    _threads: ThreadPoolExecutor = field(init=False, default_factory=lambda: ThreadPoolExecutor(2, "check-ins"))

    def __post_init__(self) -> None:
        """Believe what is signed for this fleet."""
        self._files = RepositoryFiles(self.services.repository_files)
        self._verifier = RequestVerifier(
            self.services.audience, self._public_key, lambda: datetime.fromtimestamp(self.services.now(), UTC)
        )

    async def __call__(self, scope: AsgiScope, receive: AsgiReceive, send: AsgiSend) -> None:
        """Answer one request under /device, /sums or /repo."""
        held = 0

        async def counted() -> dict[str, Any]:
            nonlocal held
            message = await receive()
            part = len(message.get("body", b""))
            held += part
            self._held_bytes += part
            if self._held_bytes > _MAX_HELD:
                raise service_unavailable("too much is sent at the same time")
            return message

        self._request_count += 1
        try:
            if self._request_count > _MAX_CONCURRENT:
                OVERLOADED_CHECK_INS.inc()
                raise service_unavailable("too many devices ask at the same time")
            await self._dispatch(scope, counted, send)
        except ResponseError as ended:
            await _refuse(scope, send, ended)
        except DatabaseUnavailableError:
            await _refuse(scope, send, service_unavailable("the database does not answer"))
        finally:
            self._request_count -= 1
            self._held_bytes -= held

    async def _dispatch(self, scope: AsgiScope, receive: AsgiReceive, send: AsgiSend) -> None:
        path: str = scope["path"]
        act: Callable[[AsgiScope, AsgiReceive, AsgiSend], Awaitable[None]]
        allowed: tuple[str, ...] = ("POST",)
        if path == "/device/check-in":
            act = self._check_in
        elif path.startswith("/repo/"):
            act, allowed = self._file, ("GET", "HEAD")
        elif path == "/device/enrol":
            act = self._enrol
        elif path == "/device/job":
            act = self._job
        elif _JOB_END.fullmatch(path):
            act = self._job_done
        elif path.startswith("/sums/") and self.services.aggregation.has_path(path):
            act = self._sum_message
        else:
            raise not_found(path)
        if scope["method"] not in allowed:
            problem = ErrorResponse(
                "invalid_input", f"{scope['method'][:20]} is not for this path", "See /openapi.json."
            )
            raise ResponseError(405, problem, (b"allow", ", ".join(allowed).encode()))
        await act(scope, receive, send)

    async def _check_in(self, scope: AsgiScope, receive: AsgiReceive, send: AsgiSend) -> None:
        known, nonce, body = await self._authenticate(scope, receive, _MAX_SMALL_BODY_BYTES, _BODY_SECONDS)
        if not self._often.allows(known.id, time.monotonic()):
            raise too_many_requests("a device checks in too often")
        try:
            asked = _decode_check_in(body)
        except UNREADABLE_ERRORS as error:
            raise bad_request(error) from error
        now = self.services.now()
        arm = asked.outcome.arm if asked.outcome is not None else ""
        check_in = CheckIn(known.id, known.device_class, asked.status, now, nonce, arm)
        if not await self._store_check_in(check_in, asked):
            raise _replayed()
        CHECK_INS.inc()
        job = known.profiling and await self._in_thread(
            partial(self.services.store.jobs.has_waiting, known.id, now=now)
        )
        await send_response(send, 200, _encode(CheckInResponse(now, job)))

    async def _store_check_in(self, check_in: CheckIn, request: CheckInRequest) -> bool:
        """Wait until a check-in is on the disk, and return whether it counts."""
        if len(self._waiting) >= _MAX_WAITING:
            OVERLOADED_CHECK_INS.inc()
            raise service_unavailable("too many devices check in at the same time")
        answer: asyncio.Future[bool | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(check_in, request, answer))
        if not self._flushing:
            self._flushing = True
            self._begin(self._flush())
        counts = await answer
        if counts is None:
            raise service_unavailable("the check-in cannot be kept at present")
        return counts

    async def _flush(self) -> None:
        """Write what waits, batch by batch, until nothing does."""
        try:
            while self._waiting:
                # Others come meanwhile: many that are written together cost little more than one.
                await asyncio.sleep(_GATHER_SECONDS)
                batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                counts: Sequence[bool | None] = [None] * len(batch)
                try:
                    with observe_seconds(FLUSHES):
                        counts = await self._in_thread(partial(self._store_batch, batch))
                except Exception as error:
                    # Whoever waits is told, and sends it again.
                    DEVICE_LOG.error(
                        _encode({"event": "flush", "error": type(error).__name__}).decode(), exc_info=error
                    )
                finally:
                    for one, good in zip(batch, counts, strict=True):
                        if not one.answer.done():  # else the device has gone away
                            one.answer.set_result(good)
        finally:
            self._flushing = False

    def _store_batch(self, batch: list[_Waiting]) -> list[bool | None]:
        """Keep check-ins, and return which of them count; None where one could not be kept."""
        try:
            return [*self._write(batch)]
        except DatabaseUnavailableError:
            return [None] * len(batch)
        except EdgewrightError as error:
            # One of them may be what the database cannot hold: the others must not suffer for it.
            if len(batch) > 1:
                return [good for one in batch for good in self._store_batch([one])]
            DEVICE_LOG.error(_encode({"event": "flush", "error": error.message}).decode())
            return [None]

    def _write(self, batch: list[_Waiting]) -> list[bool]:
        """Keep check-ins, and of those that are old enough the outcomes."""
        store, looking = self.services.store, self.services.fleet_config.monitoring
        old = [
            one.request.outcome is not None and one.request.outcome.age_seconds >= looking.outcome_age_seconds
            for one in batch
        ]
        # Before anything is kept: an outcome is not thrown away for a store that is away.
        live = self._live_rollouts() if any(old) else {}
        taken, now = store.check_ins.store_batch([one.check_in for one in batch]), self.services.now()
        said: dict[str, list[tuple[str, StageOutcome]]] = {}
        for one, good in zip(batch, taken, strict=True):
            outcome, runs = one.request.outcome, one.request.status.model
            if outcome is None or not good:
                continue
            for plan in live.get((one.check_in.device_class, outcome.rollout), ()):
                # A device that runs nothing yet does not say what it would run.
                if runs in ("", plan.model) and is_outcome_kept(plan, looking, outcome, now):
                    said.setdefault(rollout_subject(plan), []).append((one.check_in.device_id, outcome))
        for rollout, outcomes in said.items():
            store.outcomes.put(rollout, outcomes, at=now, deadline_at=now)
        return taken

    def _live_rollouts(self) -> dict[tuple[str, str], list[RolloutPlan]]:
        """Return the rollouts that there are, by device class and name: of others no outcomes are kept.

        Raises:
            GoneError: The store is away, and was so from the beginning.
        """
        known = self._plans
        if known is None or time.monotonic() - known[0] > _PLANS_SECONDS:
            try:
                found = live_plans(self.services)
            except EdgewrightError as error:
                if known is None:
                    raise DatabaseUnavailableError(
                        "the repository does not answer", remedy="Come again later."
                    ) from error
                found = known[1]  # of a store that is away for a while: what was known still holds
            known = self._plans = (time.monotonic(), found)
        return known[1]

    async def _enrol(self, scope: AsgiScope, receive: AsgiReceive, send: AsgiSend) -> None:
        client = (scope.get("client") or ("",))[0]
        if not self._enrolments.allows(limited_network(client), time.monotonic()):
            raise too_many_requests("too many enrolments from one address")
        body = await read_body(scope, receive, _MAX_SMALL_BODY_BYTES, _BODY_SECONDS)
        try:
            asked = _decode_enrolling(body)
        except UNREADABLE_ERRORS as error:
            raise bad_request(error) from error
        services = self.services

        def enrol() -> EnrolResponse:
            now = services.now()
            device = services.store.devices.enrol(asked.token, bytes.fromhex(asked.public_key), now=now)
            detail = {"token": secret_hash(asked.token)[:12]}
            who = f"device:{device.id}"
            services.store.audit.write(who, "enrol", device.device_class, at=now, detail=detail)
            return EnrolResponse(
                device.id,
                device.device_class,
                services.audience,
                services.repository_url,
                device.labels,
                device.channel,
                device.profiling,
            )

        try:
            answer = await asyncio.to_thread(enrol)
        except AuthenticationError as error:
            raise ResponseError(403, error_body(error)) from error
        await send_response(send, 200, _encode(answer))

    async def _job(self, scope: AsgiScope, receive: AsgiReceive, send: AsgiSend) -> None:
        known, _ = await self._authenticate_once(scope, receive, _MAX_SMALL_BODY_BYTES, _BODY_SECONDS)
        job = await asyncio.to_thread(claim_profiling_job, self.services, known.id)
        if job is None:
            await send_response(send, 204, b"")
        else:
            name, request = job
            kind = b"application/octet-stream"
            await send_response(send, 200, request, ((JOB.lower().encode(), name.encode()),), kind)

    async def _job_done(self, scope: AsgiScope, receive: AsgiReceive, send: AsgiSend) -> None:
        _, _, _, job, verdict = scope["path"].split("/")
        known, body = await self._authenticate_once(scope, receive, MAX_JOB_REPLY_BYTES, _SUM_MESSAGE_SECONDS)
        if not await asyncio.to_thread(
            finish_profiling_job, self.services, known.id, job, body, succeeded=verdict == "done"
        ):
            raise ResponseError(
                409, ErrorResponse("invalid_input", "the job is not this device's", "Ask for another one.")
            )
        await send_response(send, 204, b"")

    async def _sum_message(self, scope: AsgiScope, receive: AsgiReceive, send: AsgiSend) -> None:
        body = await read_body(scope, receive, _MAX_SUM_MESSAGE_BYTES, _SUM_MESSAGE_SECONDS)
        status, answer = await asyncio.to_thread(self.services.aggregation.handle, scope["path"], body)
        await send_response(send, status, answer, (), b"application/octet-stream")

    async def _file(self, scope: AsgiScope, _: AsgiReceive, send: AsgiSend) -> None:
        await self._files.respond(scope["path"].removeprefix("/repo/"), scope, send)

    async def _authenticate_once(
        self, scope: AsgiScope, receive: AsgiReceive, most: int, timeout_seconds: float
    ) -> tuple[DeviceCredentials, bytes]:
        """Return which device a request is from, that is no check-in, and its body; it is believed once."""
        known, nonce, body = await self._authenticate(scope, receive, most, timeout_seconds)
        store, now = self.services.store, self.services.now()
        if not await asyncio.to_thread(store.check_ins.use_nonce, known.id, nonce, now=now):
            raise _replayed()
        return known, body

    async def _authenticate(
        self, scope: AsgiScope, receive: AsgiReceive, most: int, timeout_seconds: float
    ) -> tuple[DeviceCredentials, str, bytes]:
        """Return which device signed a request, the request's nonce, and its body."""
        proof = next((value for name, value in scope["headers"] if name == _PROOF_NAME), b"")
        if not proof or len(proof) > _MAX_PROOF:
            raise _unauthenticated("the request carries no proof")
        try:
            read = parse_proof(proof.decode("latin-1"))
        except AuthenticationError as error:
            raise ResponseError(401, error_body(error)) from error
        claimed = read.claims.device_id
        if not _DEVICE_ID.fullmatch(claimed):
            raise _unauthenticated("the proof cannot be read")
        # Of a stranger no body is read; and in the time that it takes, the key may have been forgotten.
        if not await self._load_key(claimed):
            raise _unauthenticated("its device is unknown")
        body = await read_body(scope, receive, most, timeout_seconds)
        if claimed not in self._keys:
            await self._load_key(claimed)
        try:
            device_id, nonce = self._verifier.verify_parsed(read, scope["method"], scope["path"], body)
        except AuthenticationError as error:
            raise ResponseError(401, error_body(error)) from error
        return self._keys[device_id][1], nonce, body

    async def _load_key(self, device_id: str) -> bool:
        """See to it that a device's key is at hand, and return whether it has one."""
        known = self._keys.get(device_id)
        if known is not None and time.monotonic() - known[0] < _KEY_SECONDS:
            self._keys.move_to_end(device_id)
            return True
        # One for each that waits: whoever goes away takes no other's answer along.
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._wanted.setdefault(device_id, []).append(answer)
        if not self._looking:
            self._looking = True
            self._begin(self._look_up())
        if not await answer:
            raise service_unavailable("the database does not answer")
        return device_id in self._keys

    async def _look_up(self) -> None:
        """Look up the keys that are wanted, many at once, until none is."""
        try:
            while self._wanted:
                await asyncio.sleep(_GATHER_SECONDS)
                wanted = dict(list(self._wanted.items())[:_BATCH])
                good = False
                try:
                    found = await self._in_thread(partial(self.services.store.devices.credentials, list(wanted)))
                    self._remember(wanted, found)
                    good = True
                except Exception as error:
                    DEVICE_LOG.error(_encode({"event": "look up", "error": type(error).__name__}).decode())
                finally:
                    for device_id, answers in wanted.items():
                        del self._wanted[device_id]
                        for answer in answers:
                            if not answer.done():
                                answer.set_result(good)
        finally:
            self._looking = False

    def _remember(self, wanted: Iterable[str], found: dict[str, DeviceCredentials]) -> None:
        for device_id in wanted:
            before, known = self._keys.pop(device_id, None), found.get(device_id)
            if known is None:
                continue
            if before is not None and before[1] == known:
                known = before[1]  # else what others keep of it would be there twice
            self._keys[known.id] = (time.monotonic(), known)
        while len(self._keys) > _MAX_KEYS:
            self._keys.popitem(last=False)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _public_key(self, device_id: str) -> bytes | None:
        known = self._keys.get(device_id)
        return None if known is None else known[1].public_key


_PROOF_NAME = PROOF.lower().encode()


async def _refuse(scope: AsgiScope, send: AsgiSend, ended: ResponseError) -> None:
    REFUSED_REQUESTS.labels(ended.problem.code).inc()
    content = _encode(ended.problem)
    head_of = len(content) if scope["method"] == "HEAD" else None
    await send_response(send, ended.status, content, ended.extra, head_of=head_of)


def _unauthenticated(reason: str) -> ResponseError:
    return ResponseError(401, ErrorResponse("unauthenticated", reason, "Enrol the device."))


def _replayed() -> ResponseError:
    return ResponseError(409, ErrorResponse("replayed", "the request was sent before", "Sign a new one."))
