"""Engines: the same promises for worker processes and for Ray."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from sklearn.datasets import load_digits

from edgewright.compress.data.dataset import Dataset
from edgewright.compress.train.config import CurvePoint, TrainingConfig
from edgewright.compress.train.data.training_data import TrainingData, make_training_data
from edgewright.compress.train.engine.engine import TrainingEngine, open_engine
from edgewright.compress.train.engine.job import JobResult, TrainingJob, run_training_job
from edgewright.compress.train.engine.local import LocalEngine
from edgewright.contract.errors import InputError

SETTINGS = TrainingConfig(epochs=3, batch=64, early_stopping_patience=0)

# Recipes that die in the second epoch of the first attempt, and in every attempt; one that leaves marks of batches.
DEADLY = """
import os, signal, time
from pathlib import Path

HERE = Path(__file__).parent

def counted():
    with (HERE / "batches").open("a") as stream:
        stream.write(f"{os.getpid()}\\n")

def once():
    seen = 0
    def augment(x, generator):
        nonlocal seen
        seen += 1
        if seen == 30 and not (HERE / "died").exists():
            (HERE / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x
    return {"augment": augment}

def always():
    def augment(x, generator):
        os.kill(os.getpid(), signal.SIGKILL)
    return {"augment": augment}

def slow():
    def augment(x, generator):
        counted()
        time.sleep(0.02)
        return x
    return {"augment": augment}
"""


def small_network() -> bytes:
    random = np.random.default_rng(2)
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        small (float[n,64] x) => (float[n,10] y) { a = Gemm(x, first, shift) b = Relu(a) y = Gemm(b, second, bias) }
        """)
    weights = {
        "first": random.standard_normal((64, 24)) / 8, "shift": np.zeros(24),
        "second": random.standard_normal((24, 10)) / 5, "bias": np.zeros(10),
    }  # fmt: skip
    model.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items())
    return bytes(model.SerializeToString())


def digit_lessons() -> TrainingData:
    data = load_digits()
    x = np.asarray(data.data[:, None] / 16, np.float32)
    return make_training_data(Dataset({"x": x}, data.target.astype(np.int64), None, "classification", ""), seed=0)


def a_job(key: str, *, seed: int = 1, epochs: int = 3, recipe: str | None = None) -> TrainingJob:
    settings = msgspec.structs.replace(SETTINGS, epochs=epochs)
    return TrainingJob(key, small_network(), settings, seed, recipe=recipe and f"deadly_recipes:{recipe}")


@pytest.fixture(scope="module")
def lessons() -> TrainingData:
    return digit_lessons()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with the recipes."""
    path = tmp_path_factory.mktemp("engine")
    (path / "deadly_recipes.py").write_text(DEADLY)
    before = Path.cwd()
    os.chdir(path)
    yield path
    os.chdir(before)


@pytest.fixture(scope="module", params=["local", "ray"])
def engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[TrainingEngine]:
    if request.param == "ray":
        pytest.importorskip("ray", reason="Ray is not installed")
    with open_engine(request.param, 2, folder) as opened:
        yield opened


@pytest.fixture
def marks(folder: Path) -> Path:
    """Where recipes leave marks, without those of earlier tests."""
    for name in ("died", "batches"):
        (folder / name).unlink(missing_ok=True)
    return folder


pytestmark = [
    pytest.mark.slow,  # processes load PyTorch, and Ray starts
    pytest.mark.filterwarnings("ignore::ResourceWarning:ray", "ignore::FutureWarning:ray"),
]


def by_key(outcomes: Iterator[JobResult]) -> dict[str, JobResult]:
    return {outcome.key: outcome for outcome in outcomes}


def test_every_engine_gives_the_bytes_that_the_job_gives_here(
    engine: TrainingEngine, lessons: TrainingData
) -> None:
    jobs = [a_job(f"seed {seed}", seed=seed) for seed in range(3)]
    done = by_key(engine.run(jobs, lessons))
    assert {key: outcome.error for key, outcome in done.items()} == dict.fromkeys(("seed 0", "seed 1", "seed 2"))
    for job in jobs:
        assert done[job.key].model == run_training_job(job, lessons).model
        assert len(done[job.key].curve) == 4


def test_a_failing_job_is_an_outcome_and_the_others_go_on(engine: TrainingEngine, lessons: TrainingData) -> None:
    odd = msgspec.structs.replace(a_job("odd"), model=b"no graph")
    done = by_key(engine.run([odd, a_job("even")], lessons))
    assert done["odd"].model is None
    assert done["odd"].error
    assert done["even"].model


def test_jobs_may_be_made_from_earlier_outcomes(engine: TrainingEngine, lessons: TrainingData) -> None:
    seen: list[JobResult] = []

    def jobs() -> Iterator[TrainingJob]:
        for number in range(4):
            yield a_job(f"{number} after {len(seen)}", epochs=1)

    for outcome in engine.run(jobs(), lessons):
        seen.append(outcome)  # noqa: PERF402 # the generator above looks at the list meanwhile
    assert {outcome.key for outcome in seen} == {"0 after 0", "1 after 0", "2 after 1", "3 after 2"}


def test_progress_of_every_running_job_is_told_every_second(
    engine: TrainingEngine, lessons: TrainingData, marks: Path
) -> None:
    told: list[tuple[float, str, float, CurvePoint | None]] = []
    jobs = [a_job(key, epochs=8, recipe="slow") for key in "ab"]
    for _ in engine.run(jobs, lessons, report_progress=lambda *news: told.append((time.monotonic(), *news))):
        pass
    for key in "ab":
        mine = [news for news in told if news[1] == key]
        assert max(np.diff([news[0] for news in mine])) < 2.0
        shares = [news[2] for news in mine]
        assert shares == sorted(shares)
        assert shares[-1] > 0.3
        assert mine[-1][3] is not None


def test_a_worker_that_dies_once_is_made_good_for(
    engine: TrainingEngine, lessons: TrainingData, marks: Path
) -> None:
    job = a_job("dies once", recipe="once")
    outcome = by_key(engine.run([job], lessons))["dies once"]
    assert (marks / "died").exists()
    assert outcome.error is None
    assert "its worker process" in outcome.note
    assert outcome.model == run_training_job(job, lessons).model  # who finds the mark does not die


def test_a_worker_that_dies_twice_fails_its_job_only(engine: TrainingEngine, lessons: TrainingData) -> None:
    done = by_key(engine.run([a_job("dies", recipe="always"), a_job("lives")], lessons))
    assert done["dies"].model is None
    assert "twice" in (done["dies"].error or "")
    assert done["lives"].model


def test_a_deadline_ends_training_at_the_best_state_so_far(
    engine: TrainingEngine, lessons: TrainingData, marks: Path
) -> None:
    by_key(engine.run([a_job("warm"), a_job("up", seed=2)], lessons))  # PyTorch is loaded
    began = time.monotonic()
    jobs = [a_job(f"long {i}", epochs=500, recipe="slow") for i in range(3)]
    done = by_key(engine.run(jobs, lessons, deadline=began + 6))
    assert time.monotonic() - began < 25
    assert [bool(done[f"long {i}"].model) for i in range(3)] == [True, True, False]
    assert "deadline" in done["long 0"].curve[-1].note
    assert "no time left" in (done["long 2"].error or "")


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_for_batches(folder: Path, count: int) -> list[int]:
    """Return the processes that trained these batches."""
    for _ in range(600):
        if (folder / "batches").exists():
            pids = [int(line) for line in (folder / "batches").read_text().split()]
            if len(pids) >= count:
                return pids
        time.sleep(0.05)
    raise AssertionError(f"no {count} batches in 30 s")


def test_an_interrupted_run_leaves_no_worker_and_goes_on_in_the_middle(
    lessons: TrainingData, marks: Path, tmp_path: Path
) -> None:
    job = a_job("interrupted", epochs=10, recipe="slow")

    def interrupt(*_: object) -> None:
        batches = marks / "batches"
        if batches.exists() and len(batches.read_text().split()) > 120:
            raise KeyboardInterrupt

    with LocalEngine(1, tmp_path) as engine:
        with pytest.raises(KeyboardInterrupt):
            list(engine.run([job], lessons, report_progress=interrupt))
        pids = set(wait_for_batches(marks, 1))
        assert not any(is_alive(pid) for pid in pids)
        assert list((tmp_path / "checkpoints").iterdir())
        (marks / "batches").unlink()
        outcome = next(iter(engine.run([job], lessons)))
    assert outcome.error is None
    assert len(outcome.curve) == 11
    assert len((marks / "batches").read_text().split()) < 10 * 26 - 60
    assert outcome.model == run_training_job(job, lessons).model


def test_a_checkpoint_goes_when_its_outcome_was_taken(lessons: TrainingData, marks: Path, tmp_path: Path) -> None:
    with LocalEngine(1, tmp_path) as engine:
        run = engine.run([a_job("slow", epochs=6, recipe="slow")], lessons)
        assert next(run).model
        assert list((tmp_path / "checkpoints").glob("*.pt"))
        assert list(run) == []
        assert not list((tmp_path / "checkpoints").glob("*.pt"))


PARENT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_engine import a_job, digit_lessons
from edgewright.compress.train.engine.local import LocalEngine
with LocalEngine(2, Path(sys.argv[2])) as engine:
    list(engine.run([a_job(key, epochs=500, recipe="slow") for key in "ab"], digit_lessons()))
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(marks: Path, tmp_path: Path, end: signal.Signals) -> None:
    with (tmp_path / "errors").open("wb") as errors:
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(Path(__file__).parent), str(tmp_path)], stderr=errors
        )
    try:
        pids: set[int] = set()
        while len(pids) < 2 and parent.poll() is None:
            pids = set(wait_for_batches(marks, 1))
            time.sleep(0.05)
        assert all(is_alive(pid) for pid in pids), (tmp_path / "errors").read_text()
        parent.send_signal(end)
        parent.wait(10)
        for _ in range(100):
            if not any(is_alive(pid) for pid in pids):
                break
            time.sleep(0.05)
        assert not any(is_alive(pid) for pid in pids)
    finally:
        parent.kill()
        parent.wait()


def test_old_material_in_the_folder_is_not_mixed_in(lessons: TrainingData, tmp_path: Path) -> None:
    stale = tmp_path / "material" / "0"
    stale.mkdir(parents=True)
    np.save(stale / "class_weights.npy", np.full(10, np.nan, np.float32))
    with LocalEngine(1, tmp_path) as engine:
        outcome = next(iter(engine.run([a_job("clean")], lessons)))
    assert outcome.model == run_training_job(a_job("clean"), lessons).model


@pytest.mark.parametrize("name", ["dask", "rays", ""])
def test_an_unknown_engine_is_refused_with_those_there_are(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no engine") as caught:
        open_engine(name, 1, tmp_path)
    assert "ray://host:port" in caught.value.remedy


def test_no_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 workers"):
        LocalEngine(0, tmp_path)
