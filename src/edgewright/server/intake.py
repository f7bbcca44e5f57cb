"""The device side, the hot path: plain ASGI, signatures verified, check-ins written in batches.

A check-in is answered once its batch is on the disk. Nothing is allocated for a body before its length is known to
be within the limit, and a body that does not come in time is not waited for.
"""

import asyncio
import base64
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from edgewright.contract.door import JOB, PROOF, CheckedIn, CheckingIn, Enrolled, Enrolling, Problem
from edgewright.contract.errors import EdgewrightError, InputError
from edgewright.contract.plan import Plan
from edgewright.contract.status import StageOutcome
from edgewright.server.access import hash_of
from edgewright.server.bench import MOST_REPLY_BYTES, end_job, take_job
from edgewright.server.limits import Limiter
from edgewright.server.measures import FLUSHES, OVERLOADED, REFUSED, TAKEN, seconds
from edgewright.server.plans import live_plans
from edgewright.server.services import Services
from edgewright.server.stages import counts, subject_of
from edgewright.server.store.database import GoneError
from edgewright.server.store.devices import Known
from edgewright.server.store.kept import CheckIn
from edgewright.trust.identity import Requests, UnknownError

__all__ = ["Intake"]

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

# Bytes of a body, by what it is for; sums and jobs carry vectors and profiles.
_SMALL, _JOB_RESULT, _LETTER = 32 << 10, MOST_REPLY_BYTES, 64 << 20
_BODY_S, _LETTER_S = 10.0, 60.0
_BATCH, _MOST_WAITING = 500, 5000
# Keys of devices that checked in lately; a retired device is believed for so long at most.
_MOST_KEYS, _KEY_S = 250_000, 60.0
_PLANS_S = 5.0
_PUBLIC = re.compile(r"(?:metadata|targets|blobs|cards)/[A-Za-z0-9._/-]{1,300}")
_FOREVER = b"public, max-age=31536000, immutable"
_decode_check_in = msgspec.json.Decoder(CheckingIn).decode
_decode_enrolling = msgspec.json.Decoder(Enrolling).decode
_encode = msgspec.json.Encoder().encode


class _AnswerError(Exception):
    """A request that ends here."""

    def __init__(self, status: int, problem: Problem, *, after_s: int = 0) -> None:
        self.status, self.problem, self.after_s = status, problem, after_s
        super().__init__(problem.message)


@dataclass(slots=True)
class _Waiting:
    check_in: CheckIn
    asked: CheckingIn
    answer: "asyncio.Future[bool]"


@dataclass(slots=True)
class Intake:
    """Answers devices.

    Attributes:
        services: What it works with.
    """

    services: Services
    _requests: Requests = field(init=False)
    _keys: OrderedDict[str, tuple[float, Known]] = field(init=False, default_factory=OrderedDict)
    _waiting: list[_Waiting] = field(init=False, default_factory=list)
    _flushing: bool = field(init=False, default=False)
    _tasks: set["asyncio.Task[None]"] = field(init=False, default_factory=set)
    _wanted: list[tuple[str, "asyncio.Future[None]"]] = field(init=False, default_factory=list)
    _loading: bool = field(init=False, default=False)
    _plans: tuple[float, dict[tuple[str, str], list[Plan]]] = field(init=False, default=(-1e9, {}))
    _enrolments: Limiter = field(init=False, default_factory=lambda: Limiter(per_s=2.0, burst=60))
    _often: Limiter = field(init=False, default_factory=lambda: Limiter(per_s=0.5, burst=30))

    def __post_init__(self) -> None:
        """Believe what is signed for this fleet."""
        self._requests = Requests(
            self.services.audience, self._public, lambda: datetime.fromtimestamp(self.services.now(), UTC)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request under /device, /sums or /repo."""
        path, method = scope["path"], scope["method"]
        try:
            if path == "/device/check-in" and method == "POST":
                await self._check_in(scope, receive, send)
            elif path.startswith("/repo/") and method in ("GET", "HEAD"):
                await self._file(path.removeprefix("/repo/"), scope, send)
            elif path == "/device/enrol" and method == "POST":
                await self._enrol(scope, receive, send)
            elif path == "/device/job" and method == "POST":
                await self._job(scope, receive, send)
            elif path.startswith("/device/job/") and method == "POST":
                await self._job_done(scope, receive, send)
            elif path.startswith("/sums/") and method == "POST":
                await self._letter(scope, receive, send)
            else:
                raise _none(path)
        except _AnswerError as ended:
            REFUSED.labels(ended.problem.error).inc()
            extra = ((b"retry-after", str(ended.after_s).encode()),) if ended.after_s else ()
            await _say(send, ended.status, _encode(ended.problem), extra)

    async def _check_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(scope, receive, _SMALL, _BODY_S)
        known, nonce = await self._proved(scope, body)
        if not self._often.allows(known.id, time.monotonic()):
            raise _too_many("a device checks in too often")
        try:
            asked = _decode_check_in(body)
        except (msgspec.MsgspecError, InputError) as error:
            raise _bad(error) from error
        now = self.services.now()
        arm = asked.outcome.arm if asked.outcome is not None else ""
        check_in = CheckIn(known.id, known.device_class, asked.status, now, nonce, arm)
        if not await self._kept(check_in, asked):
            raise _AnswerError(409, Problem("UnknownError", "the request was sent before", "Sign a new one."))
        TAKEN.inc()
        job = known.bench and await asyncio.to_thread(self.services.store.jobs.waiting, known.id, now_s=now)
        await _say(send, 200, _encode(CheckedIn(now, job)))

    async def _kept(self, check_in: CheckIn, asked: CheckingIn) -> bool:
        """Wait until a check-in is on the disk, and return whether it counts."""
        if len(self._waiting) >= _MOST_WAITING:
            OVERLOADED.inc()
            raise _busy("too many devices check in at the same time")
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(check_in, asked, answer))
        if not self._flushing:
            self._flushing = True
            self._start(self._flush())
        try:
            return await answer
        except GoneError as error:
            raise _busy("the database does not answer") from error

    async def _flush(self) -> None:
        """Write what waits, batch by batch, until nothing does."""
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                try:
                    with seconds(FLUSHES):
                        taken = await asyncio.to_thread(self._write, batch)
                except Exception as error:  # whoever waits is told, and sends it again
                    taken = [_gone(error)] * len(batch)
                for one, good in zip(batch, taken, strict=True):
                    if one.answer.done():  # the device has gone away
                        continue
                    if isinstance(good, GoneError):
                        one.answer.set_exception(good)
                    else:
                        one.answer.set_result(good)
        finally:
            self._flushing = False

    def _write(self, batch: list[_Waiting]) -> list[Any]:
        """Keep check-ins, and of those that are old enough the outcomes."""
        store, looking = self.services.store, self.services.fleet.looking
        taken = store.check_ins.take([one.check_in for one in batch])
        said: dict[str, list[tuple[str, StageOutcome]]] = {}
        now = self.services.now()
        for one, good in zip(batch, taken, strict=True):
            outcome = one.asked.outcome
            if not good or outcome is None:
                continue
            for plan in self._live().get((one.check_in.device_class, outcome.rollout), ()):
                if counts(plan, looking, outcome, now):
                    said.setdefault(subject_of(plan), []).append((one.check_in.device_id, outcome))
        for rollout, outcomes in said.items():
            store.outcomes.put(rollout, outcomes, at_s=now, deadline_s=now)
        return list(taken)

    def _live(self) -> dict[tuple[str, str], list[Plan]]:
        """Return the rollouts that there are: of others no outcomes are kept."""
        at, known = self._plans
        if time.monotonic() - at > _PLANS_S:
            with suppress(EdgewrightError):  # a store that is away for a while: what was known still holds
                known = live_plans(self.services)
            self._plans = (time.monotonic(), known)
        return known

    async def _enrol(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = (scope.get("client") or ("",))[0]
        body = await _body(scope, receive, _SMALL, _BODY_S)
        if not self._enrolments.allows(client, time.monotonic()):
            raise _too_many("too many enrolments from one address")
        try:
            asked = _decode_enrolling(body)
        except (msgspec.MsgspecError, InputError) as error:
            raise _bad(error) from error
        services = self.services
        try:
            device = await asyncio.to_thread(
                services.store.devices.enrol, asked.token, bytes.fromhex(asked.public), now_s=services.now()
            )
            await asyncio.to_thread(
                services.store.audit.write,
                f"device:{device.id}",
                "enrol",
                device.device_class,
                at_s=services.now(),
                detail={"token": hash_of(asked.token)[:12]},
            )
        except UnknownError as error:
            raise _AnswerError(403, _problem(error)) from error
        except GoneError as error:
            raise _busy("the database does not answer") from error
        answer = Enrolled(
            device.id,
            device.device_class,
            services.audience,
            services.repository_url,
            device.labels,
            device.channel,
            device.bench,
        )
        await _say(send, 200, _encode(answer))

    async def _job(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(scope, receive, _SMALL, _BODY_S)
        known = await self._once(scope, body)
        job = await asyncio.to_thread(take_job, self.services, known.id)
        if job is None:
            await _say(send, 204, b"")
        else:
            name, request = job
            kind = b"application/octet-stream"
            await _say(send, 200, request, ((JOB.lower().encode(), name.encode()),), kind)

    async def _job_done(self, scope: Scope, receive: Receive, send: Send) -> None:
        match = re.fullmatch(r"/device/job/([0-9a-f]{16})/(done|failed)", scope["path"])
        if match is None:
            raise _none(scope["path"])
        body = await _body(scope, receive, _JOB_RESULT, _LETTER_S)
        known = await self._once(scope, body)
        if not await asyncio.to_thread(end_job, self.services, known.id, match[1], body, good=match[2] == "done"):
            raise _AnswerError(409, Problem("InputError", "the job is not this device's", "Ask for another one."))
        await _say(send, 204, b"")

    async def _letter(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if not self.services.desk.knows(path):
            raise _none(path)
        body = await _body(scope, receive, _LETTER, _LETTER_S)
        status, answer = await asyncio.to_thread(self.services.desk.handle, path, body)
        await _say(send, status, answer, (), b"application/octet-stream")

    async def _file(self, name: str, scope: Scope, send: Send) -> None:
        if not _PUBLIC.fullmatch(name) or ".." in name.split("/") or "" in name.split("/"):
            raise _none(f"/repo/{name}")
        try:
            content = await asyncio.to_thread(self.services.files.read, name)
        except EdgewrightError as error:
            raise _busy("the repository's store does not answer") from error
        if content is None:
            raise _none(f"/repo/{name}")
        headers = dict(scope["headers"])
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'.encode()
        cached = _FOREVER if name.startswith("blobs/") else b"no-cache"
        extra: list[tuple[bytes, bytes]] = [
            (b"etag", tag),
            (b"cache-control", cached),
            (b"accept-ranges", b"bytes"),
        ]
        if headers.get(b"if-none-match") == tag:
            await _say(send, 304, b"", extra)
            return
        status, begin = 200, _begin(headers.get(b"range", b""), len(content))
        if begin is not None:
            if begin >= len(content):
                await _say(send, 416, b"", [(b"content-range", f"bytes */{len(content)}".encode())])
                return
            status = 206
            extra.append((b"content-range", f"bytes {begin}-{len(content) - 1}/{len(content)}".encode()))
            content = content[begin:]
        await _say(send, status, content, extra, b"application/octet-stream", head=scope["method"] == "HEAD")

    async def _once(self, scope: Scope, body: bytes) -> Known:
        """Return which device a request is from, that is no check-in; the same request is believed once."""
        known, nonce = await self._proved(scope, body)
        store, now = self.services.store, self.services.now()
        if not await asyncio.to_thread(store.check_ins.spend, known.id, nonce, now_s=now):
            raise _AnswerError(409, Problem("UnknownError", "the request was sent before", "Sign a new one."))
        return known

    async def _proved(self, scope: Scope, body: bytes) -> tuple[Known, str]:
        proof = next((value for name, value in scope["headers"] if name == _PROOF_NAME), b"")
        if not proof or len(proof) > 2000:
            raise _unproved("the request carries no proof")
        text = proof.decode("latin-1")
        claimed = _device_of(text)
        if claimed is None:
            raise _unproved("the proof cannot be read")
        await self._load(claimed)
        try:
            device_id, nonce = self._requests.proved(text, scope["method"], scope["path"], body)
        except UnknownError as error:
            raise _AnswerError(401, _problem(error)) from error
        return self._keys[device_id][1], nonce

    async def _load(self, device_id: str) -> None:
        """See to it that a device's key is at hand, if it has one: many are asked for together."""
        known = self._keys.get(device_id)
        if known is not None and time.monotonic() - known[0] < _KEY_S:
            self._keys.move_to_end(device_id)
            return
        if len(self._wanted) >= _MOST_WAITING:
            OVERLOADED.inc()
            raise _busy("too many devices check in at the same time")
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted.append((device_id, answer))
        if not self._loading:
            self._loading = True
            self._start(self._load_wanted())
        try:
            await answer
        except GoneError as error:
            raise _busy("the database does not answer") from error

    async def _load_wanted(self) -> None:
        """Read keys of devices that are wanted, batch by batch, until none are."""
        try:
            while self._wanted:
                batch, self._wanted = self._wanted[:_BATCH], self._wanted[_BATCH:]
                names = sorted({device_id for device_id, _ in batch})
                failed: GoneError | None = None
                try:
                    found = await asyncio.to_thread(self.services.store.devices.known, names)
                except Exception as error:  # whoever waits is told, and asks again
                    failed = _gone(error)
                else:
                    now = time.monotonic()
                    for device_id in names:
                        self._remember(device_id, found.get(device_id), now)
                for _, answer in batch:
                    if answer.done():  # the device has gone away
                        continue
                    if failed is None:
                        answer.set_result(None)
                    else:
                        answer.set_exception(failed)
        finally:
            self._loading = False

    def _remember(self, device_id: str, known: Known | None, now_s: float) -> None:
        self._keys.pop(device_id, None)
        if known is not None:
            self._keys[device_id] = (now_s, known)
            if len(self._keys) > _MOST_KEYS:
                self._keys.popitem(last=False)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _public(self, device_id: str) -> bytes | None:
        known = self._keys.get(device_id)
        return None if known is None else known[1].public


_PROOF_NAME = PROOF.lower().encode()


class _Claimed(msgspec.Struct):
    device_id: str


_decode_claimed = msgspec.json.Decoder(_Claimed).decode


def _device_of(proof: str) -> str | None:
    """Return whose a proof says it is, which is not believed yet."""
    try:
        content = base64.b64decode(proof.partition(".")[0], altchars=b"-_", validate=True)
        return _decode_claimed(content).device_id
    except (ValueError, msgspec.MsgspecError):
        return None


async def _body(scope: Scope, receive: Receive, most: int, patience_s: float) -> bytes:
    """Return a request's body, whose length was told and is within the limit, if it comes in time."""
    length = b""
    for name, value in scope["headers"]:
        if name == b"content-length":
            length = value
        elif name == b"content-encoding" and value != b"identity":
            raise _AnswerError(415, Problem("InputError", "compressed requests are not read", "Send it plain."))
    if not (length.isdigit() and len(length) < 12):
        raise _AnswerError(411, Problem("InputError", "the request does not tell its length", "Tell it."))
    if int(length) > most:
        message = f"the request has {int(length)} bytes, at most {most} are read"
        raise _AnswerError(413, Problem("InputError", message, "Send less."))
    parts: list[bytes] = []
    left = int(length)
    try:
        async with asyncio.timeout(patience_s):
            while left > 0:
                message_ = await receive()
                if message_["type"] != "http.request":
                    raise _AnswerError(400, Problem("InputError", "the request broke off", "Send it again."))
                parts.append(message_.get("body", b""))
                left -= len(parts[-1])
                if not message_.get("more_body", False):
                    break
    except TimeoutError:
        raise _AnswerError(408, Problem("InputError", "the request came too slowly", "Send it again.")) from None
    if left:
        raise _AnswerError(400, Problem("InputError", "the request is not as long as it says", "Send it again."))
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _begin(asked: bytes, length: int) -> int | None:
    """Return from where on a file is wanted; None for all of it, also where the wish is not understood."""
    match = re.fullmatch(rb"bytes=(\d{1,15})-", asked)
    return None if match is None or length == 0 else int(match[1])


async def _say(
    send: Send,
    status: int,
    content: bytes,
    extra: Iterable[tuple[bytes, bytes]] = (),
    kind: bytes = b"application/json",
    *,
    head: bool = False,
) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(content)).encode()), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else content})


def _problem(error: EdgewrightError) -> Problem:
    return Problem(type(error).__name__, error.message, error.remedy)


def _bad(error: Exception) -> _AnswerError:
    if isinstance(error, EdgewrightError):
        return _AnswerError(400, _problem(error))
    return _AnswerError(400, Problem("InputError", f"the request cannot be read: {error}", "See /openapi.json."))


def _busy(why: str) -> _AnswerError:
    return _AnswerError(503, Problem("GoneError", why, "Come again later."), after_s=5)


def _gone(error: Exception) -> GoneError:
    return error if isinstance(error, GoneError) else GoneError(str(error), remedy="")


def _too_many(why: str) -> _AnswerError:
    return _AnswerError(429, Problem("InputError", why, "Come again later."), after_s=60)


def _none(path: str) -> _AnswerError:
    return _AnswerError(404, Problem("InputError", f"there is nothing at {path[:80]}", "See /openapi.json."))


def _unproved(why: str) -> _AnswerError:
    return _AnswerError(401, Problem("UnknownError", why, "Enrol the device."))
