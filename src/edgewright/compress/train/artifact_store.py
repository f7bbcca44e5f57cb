"""What training leaves in the output folder: networks by their digest, and records by their name."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import onnx

from edgewright.compress.output_folder import NETWORKS_FOLDER, TRAINING_FOLDER, write_file
from edgewright.contract.errors import CandidateError

__all__ = ["TrainingStore"]

ArtifactRecord = TypeVar("ArtifactRecord")


@dataclass(frozen=True, slots=True)
class TrainingStore:
    """The part of an output folder that training writes, so that a killed run goes on where it stopped.

    Attributes:
        path: The output folder.
    """

    path: Path

    @property
    def work(self) -> Path:
        """The folder for lessons, answers and checkpoints."""
        return self.path / TRAINING_FOLDER

    def store_network(self, network: onnx.ModelProto | bytes) -> str:
        """Keep a network and return its sha256."""
        content = network if isinstance(network, bytes) else network.SerializeToString(deterministic=True)
        digest = hashlib.sha256(content).hexdigest()
        path = self._file(digest)
        if not path.exists() or path.read_bytes() != content:
            write_file(path, content)
        return digest

    def network_bytes(self, digest: str) -> bytes:
        """Return a network's bytes.

        Raises:
            CandidateError: It is not there, or is not what it was.
        """
        path = self._file(digest)
        content = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(content).hexdigest() != digest:
            raise CandidateError(
                f"the trained network {path} is {'damaged' if content else 'missing'}",
                remedy="Run again without --resume.",
            )
        return content

    def load_network(self, digest: str) -> onnx.ModelProto:
        """Return a network.

        Raises:
            CandidateError: It is not there, or is not what it was.
        """
        return onnx.load_from_string(self.network_bytes(digest))

    def save_record(self, name: str, record: Any) -> None:
        """Keep a record."""
        write_file(self.work / f"{name}.json", msgspec.json.format(msgspec.json.encode(record), indent=1))

    def load_record(self, name: str, kind: type[ArtifactRecord]) -> ArtifactRecord | None:
        """Return a record that an earlier run kept, None if there is none or it is of another version."""
        path = self.work / f"{name}.json"
        if not path.exists():
            return None
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except msgspec.DecodeError:
            return None

    def _file(self, digest: str) -> Path:
        return self.path / NETWORKS_FOLDER / f"{digest[:16]}.onnx"
