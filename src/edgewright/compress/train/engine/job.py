"""One training as data, what comes of it, and its performance: a function of start, data, settings and seed."""

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import msgspec

from edgewright.compress.train.config import CurvePoint, TrainingConfig
from edgewright.compress.train.data.teacher_outputs import TeacherOutputs
from edgewright.compress.train.data.training_data import TrainingData
from edgewright.contract.errors import EdgewrightError

__all__ = ["JobProgressFunction", "JobResult", "KeepZeros", "TrainingJob", "checkpoint_name", "run_training_job"]

JobProgressFunction: TypeAlias = Callable[[str, float, CurvePoint | None], None]
"""Told a job's key, the share of its steps that are done, and its newest epoch."""


class KeepZeros(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Zeros of the start that stay zero.

    Attributes:
        layers: Names of the layers whose zeros stay; empty means every sparse one.
    """

    layers: tuple[str, ...] = ()


class TrainingJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One training.

    Attributes:
        key: Names it among the jobs of one run.
        model: The ONNX graph to start from: a float one, or what `qat.quantized_start` made.
        settings: How it is trained.
        seed: Of the order of rows, augmentation and dropout.
        keep_zeros: Zeros to keep, None keeps none.
        recipe: The user's own recipe, "module:function"; None is ours.
    """

    key: str
    model: bytes
    settings: TrainingConfig
    seed: int
    keep_zeros: KeepZeros | None = None
    recipe: str | None = None


class JobResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="outcome"):
    """What came of a job.

    Attributes:
        key: The job's.
        model: The trained graph, None if the job failed.
        curve: Its epochs.
        seconds: Wall time of the last attempt.
        error: Why it failed, for people; None if it did not.
        note: What happened besides, for people.
    """

    key: str
    model: bytes | None
    curve: tuple[CurvePoint, ...]
    seconds: float
    error: str | None = None
    note: str = ""


def run_training_job(
    job: TrainingJob,
    data: TrainingData,
    teacher_outputs: TeacherOutputs | None = None,
    *,
    checkpoint: Path | None = None,
    deadline: float | None = None,
    report_progress: Callable[[float, CurvePoint | None], None] | None = None,
) -> JobResult:
    """Train, and never raise: what goes wrong is in the outcome.

    The same job, lessons and answers give the same bytes on the same kind of machine, whichever engine runs it
    and however often it was interrupted. Sets torch to one thread and to deterministic operations.

    Args:
        job: What to do.
        data: Rows to train on, inputs in the order of the graph's.
        teacher_outputs: A teacher's answers to the same rows.
        checkpoint: File to go on from, and to keep while it lasts.
        deadline: Of `time.monotonic()`; training ends there with the best state so far.
        report_progress: Told the share of steps done and each epoch.
    """
    # PyTorch takes seconds to load: only what trains waits for it.
    from edgewright.compress.train.engine.train_network import train_network

    began = time.monotonic()
    try:
        model, curve = train_network(
            job.model,
            data,
            teacher_outputs,
            job.settings,
            seed=job.seed,
            held=None if job.keep_zeros is None else job.keep_zeros.layers,
            recipe=job.recipe,
            checkpoint=checkpoint,
            deadline=deadline,
            report_progress=report_progress,
        )
    except EdgewrightError as error:
        return JobResult(job.key, None, (), time.monotonic() - began, error.message)
    except (Exception, SystemExit) as error:  # the user's recipe and torch raise what they like
        said = (str(error).strip().splitlines() or ["without a message"])[0]
        return JobResult(job.key, None, (), time.monotonic() - began, f"{type(error).__name__}: {said[:300]}")
    return JobResult(job.key, model, curve, time.monotonic() - began)


def checkpoint_name(job: TrainingJob, data: TrainingData, teacher_outputs: TeacherOutputs | None) -> str:
    """Return a file name for a job's checkpoint, another one for whatever would train otherwise."""
    digest = hashlib.blake2b(msgspec.json.encode(job), digest_size=8)
    digest.update(data.fingerprint.encode())
    digest.update(b"" if teacher_outputs is None else teacher_outputs.fingerprint.encode())
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', job.key)[:60]}-{digest.hexdigest()}.pt"
