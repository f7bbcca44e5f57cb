"""A process that trains one job after the other: orders come in on stdin, progress and outcomes go out on stdout.

It ends when its stdin closes, so that a parent that dies leaves nothing running.
"""

import importlib
import os
import struct
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import IO

import msgspec

from edgewright.compress.train.config import CurvePoint
from edgewright.compress.train.data.teacher_outputs import Answers, read_answers
from edgewright.compress.train.data.training_data import Lessons, read_lessons
from edgewright.compress.train.engine.job import Job, Outcome, checkpoint_name, perform

__all__ = ["Order", "Progress", "receive", "send"]

_LENGTH = struct.Struct("<Q")
_TELL_S = 0.5  # between two messages about the same epoch


class Order(msgspec.Struct, frozen=True):
    """What a worker is to do.

    Attributes:
        job: The training.
        lessons: Folder of the lessons.
        answers: Folder of the teacher's answers, "" without a teacher.
        checkpoints: Folder.
        seconds: Until the deadline, None without one.
    """

    job: Job
    lessons: str
    answers: str
    checkpoints: str
    seconds: float | None


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far the order is."""

    share: float
    point: CurvePoint | None


def send(stream: IO[bytes], message: msgspec.Struct) -> None:
    """Write one message."""
    content = msgspec.msgpack.encode(message)
    stream.write(_LENGTH.pack(len(content)) + content)
    stream.flush()


def receive(stream: IO[bytes]) -> bytes:
    """Return the next message's content, b"" if the other side has gone."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return b""
    size = _LENGTH.unpack(head)[0]
    content = stream.read(size)
    return content if len(content) == size else b""


def serve() -> None:
    """Perform orders until stdin closes."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library or a recipe prints must not end up among the replies
    orders: SimpleQueue[Order] = SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    # PyTorch is loaded while the first order is still being prepared.
    importlib.import_module("edgewright.compress.train.engine.train_network")
    lessons: dict[str, Lessons] = {}
    answers: dict[str, Answers | None] = {"": None}
    while True:
        order = orders.get()
        if order.lessons not in lessons:
            lessons = {order.lessons: read_lessons(Path(order.lessons))}
        if order.answers not in answers:
            answers = {"": None, order.answers: read_answers(Path(order.answers))}
        send(replies, _perform(order, lessons[order.lessons], answers[order.answers], replies))


def _perform(order: Order, lessons: Lessons, answers: Answers | None, replies: IO[bytes]) -> Outcome:
    told = 0.0
    last: CurvePoint | None = None

    def tell(share: float, point: CurvePoint | None) -> None:
        nonlocal told, last
        now = time.monotonic()
        if point != last or now - told >= _TELL_S:
            told, last = now, point
            send(replies, Progress(share, point))

    return perform(
        order.job,
        lessons,
        answers,
        checkpoint=Path(order.checkpoints) / checkpoint_name(order.job, lessons, answers),
        deadline=None if order.seconds is None else time.monotonic() + order.seconds,
        tell=tell,
    )


def _listen(orders: SimpleQueue[Order]) -> None:
    while content := receive(sys.stdin.buffer):
        orders.put(msgspec.msgpack.decode(content, type=Order))
    os._exit(0)


if __name__ == "__main__":
    serve()
