"""A profiling job as one body of bytes, and what comes back when it failed.

Magic, length of the head (4 bytes, big-endian), the head as JSON, then the contents of the files, one after the
other. Contents that several files have are there once. There is no compression, no link, no mode and no owner in
it: what a job cannot say needs no refusing. The same request and files always make the same bytes.
"""

import hashlib
import math
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.refusal import RefusedError
from edgewright.runtime.options import RuntimeOptions

__all__ = [
    "MAX_JOB_BYTES",
    "MAX_JOB_REPLY_BYTES",
    "MAX_JOB_SECONDS",
    "JobFailure",
    "JobHeader",
    "JobSubject",
    "WorkerRequest",
    "job_header",
    "pack_job",
    "unpack_job",
]

MAX_JOB_BYTES = 64 << 20
MAX_JOB_REPLY_BYTES = 16 << 20
MAX_JOB_SECONDS = 6 * 3600.0

_MAGIC = b"edgewright.job.1\n"
_LENGTH_PREFIX = struct.Struct(">I")
_MAX_HEADER_BYTES, _MAX_FILES, _MAX_NAME_LENGTH = 1 << 20, 4096, 512
_MAX_THREADS, _MAX_WORKLOADS = 1024, 256
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_PROVIDER = re.compile(r"[A-Za-z0-9]{1,40}ExecutionProvider", re.ASCII)

WorkerAction = Literal["machine", "latency", "memory", "sustained", "contention", "energy", "probe"]


class JobSubject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model of a request.

    Attributes:
        model: Name of its file.
        inputs_file: Name of the file with its inputs.
        input_names: Names of the inputs, in the order of that file.
        options: Of the session.
    """

    model: str
    inputs_file: str
    input_names: tuple[str, ...]
    options: RuntimeOptions

    def __post_init__(self) -> None:
        """Refuse models of a form that is not read first, and what is no number of threads or no provider."""
        if not self.model.endswith(".onnx"):
            raise ValueError(f"{self.model[-80:]!r} does not end with .onnx")
        if not 1 <= self.options.threads <= _MAX_THREADS:
            raise ValueError(f"{self.options.threads} threads")
        for provider in self.options.providers:
            if not _PROVIDER.fullmatch(provider):
                raise ValueError(f"{provider[:80]!r} is no execution provider")


class WorkerRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the worker is asked, and nothing else that it could be asked.

    Attributes:
        action: Of the worker.
        workloads: Models.
        seconds: For the measurement.
        seed: Of orders.
    """

    action: WorkerAction
    workloads: tuple[JobSubject, ...] = ()
    seconds: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no time, and what takes no model or too many."""
        if not 0 <= self.seconds <= MAX_JOB_SECONDS or not 0 <= self.seed < 1 << 64:
            raise ValueError(f"{self.seconds} seconds with seed {self.seed}")
        if len(self.workloads) > _MAX_WORKLOADS or bool(self.workloads) == (self.action == "machine"):
            raise ValueError(f"{len(self.workloads)} models for {self.action!r}")


class JobHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands before the contents.

    Attributes:
        request: For the worker.
        timeout_seconds: After which the worker is ended.
        expires_after_seconds: For so long after it was made somebody waits for the job; later nobody need do it.
        files: Name of each file, and the sha256 of its content.
        contents: The sha256 and the size of each content, in the order in which they lie in the body.
    """

    request: WorkerRequest
    timeout_seconds: float
    expires_after_seconds: float
    files: dict[str, str]
    contents: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        """Refuse names that lead elsewhere, sizes that cannot be, and files without content."""
        if not 0 < self.timeout_seconds <= MAX_JOB_SECONDS or not 0 < self.expires_after_seconds < math.inf:
            raise ValueError(f"a timeout of {self.timeout_seconds} s, wanted for {self.expires_after_seconds} s")
        if len(self.files) > _MAX_FILES:
            raise ValueError(f"{len(self.files)} files")
        digests = [digest for digest, _ in self.contents]
        if len(set(digests)) != len(digests) or set(digests) != set(self.files.values()):
            raise ValueError("files and contents do not belong together")
        if any(size < 0 or not _DIGEST.fullmatch(digest) for digest, size in self.contents):
            raise ValueError("a content has no size or digest")
        folders = {name[: found.start()] for name in self.files for found in re.finditer("/", name)}
        for name in self.files:
            _check_name(name)
            if name in folders:
                raise ValueError(f"{name[:80]!r} is a file and a folder")
        for each in self.request.workloads:
            if each.model not in self.files or each.inputs_file not in self.files:
                raise ValueError(f"{each.model[:80]!r} or its inputs are missing")


class JobFailure(msgspec.Struct, frozen=True):
    """Why a job came to nothing.

    Attributes:
        kind: Whether the model failed, the device, or the device refused.
        message: What is wrong.
        remedy: What to do.
    """

    kind: Literal["candidate", "target", "refused"]
    message: str
    remedy: str


def pack_job(
    request: Mapping[str, Any], files: Mapping[str, Path], *, timeout_seconds: float, expires_after_seconds: float
) -> bytes:
    """Return a job.

    Args:
        request: For the worker, as `Target.run` takes it.
        files: Names on the device, relative, and where the files are here.
        timeout_seconds: After which the worker is ended; at most 6 hours.
        expires_after_seconds: For so long somebody waits.

    Raises:
        InputError: It is larger than a bench device takes, or names what no job may.
        OSError: A file cannot be read.
    """
    # Before anything is read: what is too large may not fit into the memory either.
    sizes = {(status.st_dev, status.st_ino): status.st_size for status in map(os.stat, files.values())}
    if sum(sizes.values()) > MAX_JOB_BYTES:
        raise _size_error(sum(sizes.values()))
    read: dict[Path, str] = {}
    contents: dict[str, bytes] = {}
    for _, path in sorted(files.items()):
        if path not in read:
            content = path.read_bytes()
            read[path] = hashlib.sha256(content).hexdigest()
            contents.setdefault(read[path], content)
    try:
        head = JobHeader(
            msgspec.convert(request, WorkerRequest),
            min(timeout_seconds, MAX_JOB_SECONDS),
            expires_after_seconds,
            {name: read[path] for name, path in files.items()},
            tuple((digest, len(content)) for digest, content in contents.items()),
        )
    except (msgspec.ValidationError, ValueError) as error:
        raise InputError(
            f"this cannot be measured on a bench device: {error}", remedy="Measure it locally or over ssh."
        ) from error
    encoded = msgspec.json.encode(head, order="deterministic")
    body = b"".join((_MAGIC, _LENGTH_PREFIX.pack(len(encoded)), encoded, *contents.values()))
    if len(body) > MAX_JOB_BYTES or len(encoded) > _MAX_HEADER_BYTES:
        raise _size_error(len(body))
    return body


def job_header(body: bytes) -> JobHeader:
    """Return the checked head of a job; the contents are not looked at.

    Raises:
        RefusedError: It is too large, or no job.
    """
    return _parse_job(body)[0]


def unpack_job(body: bytes, folder: Path) -> tuple[JobHeader, dict[str, Path]]:
    """Write the files of a job into a new folder.

    Args:
        body: From `pack_job`, or from anybody.
        folder: Empty; nothing is written outside of it.

    Returns:
        The head, and where each file is.

    Raises:
        RefusedError: It is too large, no job, or not the files that its head lists.
        OSError: The disk is full.
    """
    head, at = _parse_job(body)
    view = memoryview(body)
    where: dict[str, memoryview] = {}
    # All of it is checked before any of it is written.
    for digest, size in head.contents:
        where[digest] = view[at : at + size]
        at += size
        if hashlib.sha256(where[digest]).hexdigest() != digest:
            raise RefusedError("tampered", "", "the job was changed on its way", remedy="Try again.")
    written: dict[str, Path] = {}
    paths: dict[str, Path] = {}
    for name, digest in head.files.items():
        paths[name] = folder / name
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        if digest in written:
            # One content under 4,096 names must not fill the disk.
            paths[name].hardlink_to(written[digest])
        else:
            with paths[name].open("xb") as file:
                file.write(where[digest])
            written[digest] = paths[name]
    return head, paths


def _parse_job(body: bytes) -> tuple[JobHeader, int]:
    """Return the head and where the contents begin."""
    if len(body) > MAX_JOB_BYTES:
        raise RefusedError(
            "oversized", "", f"a job of {len(body)} bytes", remedy=f"{MAX_JOB_BYTES} bytes are the most."
        )
    start = len(_MAGIC) + _LENGTH_PREFIX.size
    if not body.startswith(_MAGIC) or len(body) < start:
        raise _invalid_job("it does not begin as one")
    (length,) = _LENGTH_PREFIX.unpack_from(body, len(_MAGIC))
    if length > min(_MAX_HEADER_BYTES, len(body) - start):
        raise _invalid_job(f"its head has {length} bytes")
    try:
        head = msgspec.json.decode(memoryview(body)[start : start + length], type=JobHeader)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _invalid_job(str(error)) from error
    if start + length + sum(size for _, size in head.contents) != len(body):
        raise _invalid_job("its contents are not as long as its head says")
    return head, start + length


def _check_name(name: str) -> None:
    parts = name.split("/")
    if (
        not 0 < len(name.encode()) <= _MAX_NAME_LENGTH
        or not {"", ".", ".."}.isdisjoint(parts)
        or any(len(part.encode()) > 255 for part in parts)
        or "\\" in name
        or not name.isprintable()
    ):
        raise ValueError(f"{name[:80]!r} is no relative name")


def _size_error(size: int) -> InputError:
    return InputError(
        f"the models and inputs to measure together have {size} bytes, a bench device takes {MAX_JOB_BYTES}",
        remedy="Measure fewer at a time, or over ssh.",
    )


def _invalid_job(reason: str) -> RefusedError:
    return RefusedError("tampered", "", f"this is no job: {reason[:300]}", remedy="Use one version of edgewright.")
