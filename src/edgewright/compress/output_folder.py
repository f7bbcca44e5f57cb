"""The output folder: whole files or none."""

import contextlib
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from edgewright.contract.errors import InputError, OutputError

__all__ = ["OutputFolder", "open_folder", "write_file"]

JOURNAL_FILE = "search.journal"
ORIGINAL_FILE = "original.onnx"
NETWORKS_FOLDER = "networks"
TRAINING_FOLDER = "training"
ANALYSIS_FOLDER = "layouts"
_FOLDERS = ("candidates", NETWORKS_FOLDER, TRAINING_FOLDER, ANALYSIS_FOLDER)
_FILES = (JOURNAL_FILE, "report.json")


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """Where a run of `compress` writes.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def journal(self) -> Path:
        """The search's journal, from which a killed run goes on."""
        return self.path / JOURNAL_FILE

    @property
    def analysis_cache(self) -> Path:
        """What was measured of graphs to lay out recipes for them, so that a resumed search has the same ones."""
        return self.path / ANALYSIS_FOLDER

    def write(self, name: str, content: bytes) -> Path:
        """Write a file so that it is there whole or not at all.

        Raises:
            OutputError: The disk is full or the folder cannot be written.
        """
        return write_file(self.path / name, content)

    def store_candidate(self, content: bytes) -> tuple[str, Path]:
        """Store a candidate by its content; return its digest and its path."""
        digest = hashlib.sha256(content).hexdigest()
        path = self.path / "candidates" / f"{digest[:16]}.onnx"
        if not path.exists():
            self.write(f"candidates/{path.name}", content)
        return digest, path

    def delete_earlier_run(self) -> None:
        """Remove an earlier run."""
        for name in (*_FILES, "report.html", "model.onnx", "profile.json"):
            (self.path / name).unlink(missing_ok=True)
        for name in _FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)

    def end_training(self) -> None:
        """Remove what only an unfinished training needs; the networks stay."""
        shutil.rmtree(self.path / TRAINING_FOLDER, ignore_errors=True)

    def delete_candidates_except(self, digests: set[str]) -> None:
        """Delete the candidates that are not named."""
        for path in (self.path / "candidates").glob("*.onnx"):
            if path.stem not in {digest[:16] for digest in digests}:
                path.unlink()


def write_file(final: Path, content: bytes) -> Path:
    """Write a file so that it is there whole or not at all, and is on the disk on return.

    Raises:
        OutputError: The disk is full or the folder cannot be written.
    """
    partial = final.with_name(f".{final.name}.{os.getpid()}.partial")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(final)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise OutputError(
            f"{final} cannot be written ({len(content)} bytes): {error.strerror}",
            remedy="Free space or permit writing there, or name another place.",
        ) from error
    return final


def open_folder(path: Path, *, resume: bool) -> OutputFolder:
    """Return a folder that can be written: empty, or with an earlier run in it.

    Args:
        path: Made if missing.
        resume: Go on with the run in it; otherwise an earlier run is left for `OutputFolder.delete_earlier_run`.

    Raises:
        InputError: Something else is in it, or there is nothing to resume.
        OutputError: It cannot be made or written.
    """
    folder = OutputFolder(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file", remedy="Name a folder with --out.")
    if resume and not folder.journal.exists():
        raise InputError(f"{path} holds no search to resume", remedy="Leave --resume out, or name its folder.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        present = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise OutputError(
            f"the output folder {path} cannot be used: {error.strerror}", remedy="Name another one with --out."
        ) from error
    ours = any(name in present for name in (*_FILES, *_FOLDERS, ORIGINAL_FILE))
    if present and not ours:
        raise InputError(
            f"{path} holds {present[0]!r} and no run of edgewright",
            remedy="Name an empty or new folder with --out.",
        )
    folder.write(".probe", b"")
    (path / ".probe").unlink()
    (path / f"{JOURNAL_FILE}.lock").unlink(missing_ok=True)  # left by a run that was killed while it wrote
    return folder
