"""Edgewright and its peers as commands: from a model and data to a smaller model, with what that cost."""

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from benchmarks.environments import CACHE, PEERS, Run, digest, environment, timed
from benchmarks.report import ROOT
from numpy.typing import NDArray

__all__ = [
    "PEER_TOOLS",
    "SEED",
    "TRAINING_PEERS",
    "Compressed",
    "Peer",
    "compress_by_edgewright",
    "compress_by_peer",
]

SEED = 0
_PEER_LIMIT_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer's way of making a model smaller.

    Attributes:
        name: For people.
        script: In `peers/`.
        form: Of several that the script has; the network's name for a peer that trains.
        environment: That the script runs in.
        companions: Other scripts in `peers/` that it imports.
        trains: Whether it is given the trained network, its training data, a time limit and a seed.
    """

    name: str
    script: str
    form: str
    environment: str
    companions: tuple[str, ...] = ()
    trains: bool = False


PEER_TOOLS = (
    Peer("ort-default", "ort.py", "default", "ort"),
    Peer("ort-u8s8", "ort.py", "u8s8", "ort"),
    Peer("ort-dynamic", "ort.py", "dynamic", "ort"),
    Peer("nncf", "nncf_ptq.py", "ptq", "nncf"),
    Peer("olive", "olive_static.py", "static", "olive"),
    Peer("aimet", "aimet_ptq.py", "minmax", "aimet"),
)
TRAINING_PEERS = (
    Peer("ort-u8s8", "ort.py", "u8s8", "ort"),
    Peer("nncf", "nncf_ptq.py", "ptq", "nncf"),
    Peer("torch-pruning", "torch_pruning_u8s8.py", "", "torch-pruning", ("ort.py", "samples.py", "train.py"), True),
)
"""The peers of the tasks with training data."""


class Compressed(msgspec.Struct, frozen=True):
    """What a tool gave.

    Attributes:
        model: File; None if it failed.
        error: Why.
        wall_seconds: Of the tool, from start to end.
        cpu_seconds: Of the tool and its children.
        peak_bytes: Greatest resident memory of one of its processes.
        report: Edgewright's own JSON.
    """

    model: str | None
    error: str | None
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    report: dict[str, Any] | None = None


def compress_by_peer(
    peer: Peer,
    model: Path,
    calibration: Mapping[str, NDArray[Any]],
    *,
    fresh: bool,
    here: bool,
    more: Sequence[str | Path] = (),
    timeout_seconds: float = _PEER_LIMIT_SECONDS,
) -> Compressed:
    """Run a peer on calibration samples.

    Args:
        peer: Which.
        model: To compress.
        calibration: Per input [samples, *shape of one inference].
        fresh: Whether to run again what was run before on the same bytes.
        here: Whether to use this interpreter instead of the peer's own environment.
        more: Further arguments of the script.
        timeout_seconds: After which it is ended.
    """
    script = PEERS / peer.script
    companions = [PEERS / name for name in peer.companions]
    requirements = sorted(PEERS.glob(f"requirements-{peer.environment}*.txt"))
    key = digest(
        *(peer.form, str(here), model, script, *companions, *requirements, *more),
        *(array.tobytes() for array in calibration.values()),
    )
    folder = CACHE / "runs" / f"{peer.name}-{key}"
    if (kept := _kept(folder, fresh)) is not None:
        return kept
    try:
        python = sys.executable if here else str(environment(peer.environment))
    except (RuntimeError, OSError) as error:
        return Compressed(None, f"no environment: {error}", 0.0, 0.0, 0)
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "model.onnx"
    with tempfile.TemporaryDirectory() as temporary:
        samples = Path(temporary, "calibration.npz")
        np.savez(samples, allow_pickle=False, **calibration)
        command = [python, str(script), peer.form, str(model), str(samples), str(out), *map(str, more)]
        run = timed(command, timeout_seconds=timeout_seconds)
    failed = run.code != 0 or not out.exists()
    return _keep(folder, _compressed(run, None if failed else out, run.error if failed else None, None))


def compress_by_edgewright(
    model: Path,
    data: Path,
    *,
    group: str | None,
    max_drop: float | None,
    time_limit_seconds: float,
    state: Path,
    fresh: bool,
    train: Path | None = None,
) -> Compressed:
    """Run `edgewright compress` as a user would.

    Args:
        model: To compress.
        data: `.npz` file.
        group: Array in it that holds the groups.
        max_drop: Limit to certify.
        time_limit_seconds: Given to the command.
        state: Where looks at the certify split are counted.
        fresh: Whether to run again what was run before with the same bytes and the same Edgewright.
        train: `.npz` file of training data; None to compress without training.
    """
    options = ["--time-limit", f"{time_limit_seconds:g}", "--seed", str(SEED), "--json"]
    options += [] if group is None else ["--group", group]
    options += [] if max_drop is None else ["--max-drop", f"{max_drop:g}"]
    sources = sorted((ROOT / "src").rglob("*.py"))
    files = [data] if train is None else [data, train]
    key = digest(" ".join(options), model, *files, *sources)
    options += ["--data", str(data)] if train is None else ["--data", str(data), "--train", str(train)]
    folder = CACHE / "runs" / f"edgewright-{key}"
    looks = folder / "looks"
    if (kept := _kept(folder, fresh)) is not None:
        shutil.copytree(looks, state, dirs_exist_ok=True)  # a look counts although it is not taken again
        return kept
    shutil.rmtree(folder, ignore_errors=True)
    state.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "edgewright", "compress", str(model), *options, "--out", str(folder / "out")]
    variables = {"EDGEWRIGHT_STATE": str(state), "PYTHONPATH": os.pathsep.join([str(ROOT / "src")])}
    run = timed(command, timeout_seconds=3 * time_limit_seconds + 120, variables=variables)
    shutil.copytree(state, looks)
    try:
        report = msgspec.json.decode(run.stdout, type=dict[str, Any])
        chosen = Path(report["chosen"]["path"])
    except (msgspec.DecodeError, msgspec.ValidationError, KeyError, TypeError):
        return _keep(
            folder, _compressed(run, None, f"exit code {run.code}: {run.error or run.stdout[-500:]}", None)
        )
    if not chosen.is_absolute():
        chosen = Path.cwd() / chosen
    if not chosen.exists():
        return _keep(folder, _compressed(run, None, f"chosen.path {chosen} does not exist", report))
    return _keep(folder, _compressed(run, chosen, None, report))


def _compressed(run: Run, model: Path | None, error: str | None, report: dict[str, Any] | None) -> Compressed:
    return Compressed(
        None if model is None else str(model), error, run.wall_seconds, run.cpu_seconds, run.peak_bytes, report
    )


def _kept(folder: Path, fresh: bool) -> Compressed | None:
    """Return what an earlier run left, if its model is still there; failures are tried again."""
    record = folder / "compressed.json"
    if fresh or not record.exists():
        return None
    kept = msgspec.json.decode(record.read_bytes(), type=Compressed)
    return kept if kept.model is not None and Path(kept.model).exists() else None


def _keep(folder: Path, result: Compressed) -> Compressed:
    (folder / "compressed.json").write_bytes(msgspec.json.encode(result))
    return result
