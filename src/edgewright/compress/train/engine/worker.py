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
from edgewright.compress.train.data.teacher_outputs import TeacherOutputs, read_teacher_outputs
from edgewright.compress.train.data.training_data import TrainingData, read_training_data
from edgewright.compress.train.engine.job import JobResult, TrainingJob, checkpoint_name, run_training_job

__all__ = ["WorkerOrder", "WorkerProgress", "receive_message", "send_message"]

_LENGTH = struct.Struct("<Q")
_PROGRESS_INTERVAL_SECONDS = 0.5  # between two messages about the same epoch


class WorkerOrder(msgspec.Struct, frozen=True):
    """What a worker is to do.

    Attributes:
        job: The training.
        data_folder: Folder of the lessons.
        teacher_outputs_folder: Folder of the teacher's answers, "" without a teacher.
        checkpoint_folder: Folder.
        seconds: Until the deadline, None without one.
    """

    job: TrainingJob
    data_folder: str
    teacher_outputs_folder: str
    checkpoint_folder: str
    seconds: float | None


class WorkerProgress(msgspec.Struct, frozen=True, tag="progress"):
    """How far the order is."""

    share: float
    point: CurvePoint | None


def send_message(stream: IO[bytes], message: msgspec.Struct) -> None:
    """Write one message."""
    content = msgspec.msgpack.encode(message)
    stream.write(_LENGTH.pack(len(content)) + content)
    stream.flush()


def receive_message(stream: IO[bytes]) -> bytes:
    """Return the next message's content, b"" if the other side has gone."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return b""
    size = _LENGTH.unpack(head)[0]
    content = stream.read(size)
    return content if len(content) == size else b""


def serve_orders() -> None:
    """Perform orders until stdin closes."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library or a recipe prints must not end up among the replies
    orders: SimpleQueue[WorkerOrder] = SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    # PyTorch is loaded while the first order is still being prepared.
    importlib.import_module("edgewright.compress.train.engine.train_network")
    lessons: dict[str, TrainingData] = {}
    answers: dict[str, TeacherOutputs | None] = {"": None}
    while True:
        order = orders.get()
        if order.data_folder not in lessons:
            lessons = {order.data_folder: read_training_data(Path(order.data_folder))}
        if order.teacher_outputs_folder not in answers:
            answers = {
                "": None,
                order.teacher_outputs_folder: read_teacher_outputs(Path(order.teacher_outputs_folder)),
            }
        send_message(
            replies, _perform(order, lessons[order.data_folder], answers[order.teacher_outputs_folder], replies)
        )


def _perform(
    order: WorkerOrder, data: TrainingData, answers: TeacherOutputs | None, replies: IO[bytes]
) -> JobResult:
    told = 0.0
    last: CurvePoint | None = None

    def tell(share: float, point: CurvePoint | None) -> None:
        nonlocal told, last
        now = time.monotonic()
        if point != last or now - told >= _PROGRESS_INTERVAL_SECONDS:
            told, last = now, point
            send_message(replies, WorkerProgress(share, point))

    return run_training_job(
        order.job,
        data,
        answers,
        checkpoint=Path(order.checkpoint_folder) / checkpoint_name(order.job, data, answers),
        deadline=None if order.seconds is None else time.monotonic() + order.seconds,
        report_progress=tell,
    )


def _listen(orders: SimpleQueue[WorkerOrder]) -> None:
    while content := receive_message(sys.stdin.buffer):
        orders.put(msgspec.msgpack.decode(content, type=WorkerOrder))
    os._exit(0)


if __name__ == "__main__":
    serve_orders()
