"""One labelled task from end to end: every tool on the same parts of the data, every model judged alike."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from benchmarks.comparison import Judged, correct, judge, latencies, ratio
from benchmarks.figures import Entry, TaskRun
from benchmarks.report import Interval, table
from benchmarks.tasks.preparation import Prepared
from benchmarks.tools import SEED, Compressed, Peer, compress_by_edgewright, compress_by_peer
from numpy.typing import NDArray

from edgewright.compress.certify.look_ledger import alpha_of_look
from edgewright.compress.data.dataset import Dataset
from edgewright.compress.data.loader import load_data
from edgewright.compress.data.splits import Splits, split_dataset
from edgewright.compress.model.loading import read_model
from edgewright.contract.errors import EdgewrightError
from edgewright.contract.model.signature import ModelSignature
from edgewright.profiling.latency import LatencyResult

__all__ = [
    "EDGEWRIGHT",
    "ORIGINAL",
    "Ground",
    "Outcome",
    "agreed",
    "alpha_of",
    "judge_all",
    "outcome_of",
    "run_task",
    "say",
]

ORIGINAL = "original"
EDGEWRIGHT = "edgewright"
_CONFIDENCE = 0.95
_SAME_BOUND = 1e-6


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a task gave: for the figures, for people, and for the record."""

    run: TaskRun
    table: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ground:
    """What every tool on the task is given and judged by."""

    prepared: Prepared
    contract: ModelSignature
    dataset: Dataset
    splits: Splits

    @classmethod
    def of(cls, prepared: Prepared) -> "Ground":
        """Read the data and divide it as Edgewright does."""
        contract = read_model(prepared.model).contract
        dataset = load_data(str(prepared.data), contract, group=prepared.group, model=prepared.model, seed=SEED)
        return cls(prepared, contract, dataset, split_dataset(dataset, seed=SEED))

    @property
    def calibration(self) -> dict[str, NDArray[Any]]:
        """Return the samples that Edgewright calibrates with, for the peers."""
        return {name: array[self.splits.calibrate] for name, array in self.dataset.inputs.items()}

    @property
    def groups(self) -> NDArray[Any] | None:
        """Return the group of each certify sample."""
        return None if self.dataset.groups is None else self.dataset.groups[self.splits.certify]


def run_task(
    prepared: Prepared,
    peers: Sequence[Peer],
    state: Path,
    *,
    time_limit_seconds: float,
    seconds: float,
    fresh: bool,
    here: bool,
) -> Outcome:
    """Run Edgewright and the peers, then measure and judge all models together.

    Args:
        prepared: The task.
        peers: Tools to compare with.
        state: Where Edgewright counts its looks; empty at the start of a benchmark.
        time_limit_seconds: For Edgewright.
        seconds: For measuring all models in turns.
        fresh: Whether to run tools again whose results are in the cache.
        here: Whether peers run in this interpreter.
    """
    ground = Ground.of(prepared)
    mine, max_drop = _least_certified(prepared, state, time_limit_seconds, fresh)
    alpha = alpha_of(mine, ground)
    tools = {EDGEWRIGHT: mine}
    for peer in peers:
        say(f"{prepared.name}: {peer.name}")
        tools[peer.name] = compress_by_peer(peer, prepared.model, ground.calibration, fresh=fresh, here=here)
    models = {ORIGINAL: prepared.model} | {
        name: Path(tool.model) for name, tool in tools.items() if tool.model is not None
    }
    judged = judge_all(models, ground, max_drop, alpha)
    judged[EDGEWRIGHT] = agreed(judged.get(EDGEWRIGHT), mine)
    say(f"{prepared.name}: measuring {len(models)} models in turns")
    measured = latencies(
        models, ground.dataset.inputs_of(int(ground.splits.certify[0])), seconds=seconds, seed=SEED
    )
    return outcome_of(prepared, tools, models, judged, measured, max_drop, alpha)


def say(message: str) -> None:
    """Tell people how far the benchmark is."""
    print(message, file=sys.stderr, flush=True)


def _least_certified(
    prepared: Prepared, state: Path, time_limit_seconds: float, fresh: bool
) -> tuple[Compressed, float]:
    """Try the limits from the least up; every try is a further look at the same certify split."""
    for max_drop in prepared.max_drops:
        say(f"{prepared.name}: edgewright compress --max-drop {max_drop:g}")
        mine = compress_by_edgewright(
            prepared.model,
            prepared.data,
            group=prepared.group,
            max_drop=max_drop,
            time_limit_seconds=time_limit_seconds,
            state=state / prepared.name,
            fresh=fresh,
        )
        certificate = (mine.report or {}).get("certificate") or {}
        if mine.model is not None and certificate.get("verdict") == "certified":
            break
    return mine, max_drop


def alpha_of(mine: Compressed, ground: Ground) -> float:
    """Return the error that Edgewright's certificate was made with; a first look's if it made none.

    Raises:
        RuntimeError: Its certificate is about other samples than those that the peers are judged on.
    """
    certificate = (mine.report or {}).get("certificate") or {}
    data = certificate.get("data")
    if data is not None and data != ground.splits.fingerprint_certify:
        raise RuntimeError("Edgewright certified on other samples than this benchmark judges its peers on")
    if "look_confidence" in certificate:
        return float(1 - certificate["look_confidence"])
    return alpha_of_look(1 - _CONFIDENCE, 1)


def agreed(judged: Judged | str | None, mine: Compressed) -> Judged | str:
    """Return the judgement of Edgewright's choice, certified only if Edgewright says so itself.

    Without a certificate it returns the original, which loses nothing; that is no success.

    Raises:
        RuntimeError: Edgewright's bound is not the one found here.
    """
    if not isinstance(judged, Judged):
        return judged or mine.error or "no model"
    certificate = (mine.report or {}).get("certificate") or {}
    if certificate.get("verdict") != "certified":
        return msgspec.structs.replace(judged, certified=False)
    if abs(certificate["upper_bound"] - judged.upper_bound) > _SAME_BOUND:
        raise RuntimeError(f"Edgewright certified {certificate['upper_bound']}, here it is {judged.upper_bound}")
    return judged


def judge_all(models: dict[str, Path], ground: Ground, max_drop: float, alpha: float) -> dict[str, Judged | str]:
    """Judge every model on the certify samples; the reason in words where one cannot be run."""
    original = correct(models[ORIGINAL], ground.dataset, ground.splits.certify, ground.contract)
    judged: dict[str, Judged | str] = {}
    for name, path in models.items():
        try:
            answers = correct(path, ground.dataset, ground.splits.certify, ground.contract)
        except EdgewrightError as error:
            judged[name] = error.message
        else:
            judged[name] = judge(original, answers, max_drop=max_drop, alpha=alpha, groups=ground.groups)
    return judged


def outcome_of(
    prepared: Prepared,
    tools: dict[str, Compressed],
    models: dict[str, Path],
    judged: dict[str, Judged | str],
    measured: dict[str, LatencyResult | EdgewrightError],
    max_drop: float,
    alpha: float,
) -> Outcome:
    """Put together what a task gave, from every tool's model, judgement and latency."""
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in models.items()}
    sizes = {name: path.stat().st_size for name, path in models.items()}

    def between(mine: str, other: str) -> Interval | None:
        same = digests.get(mine) is not None and digests.get(mine) == digests.get(other)
        return ratio(measured.get(mine), measured.get(other), same_bytes=same)

    entries: dict[str, Entry | None] = {}
    for name in tools:
        verdict, latency = judged.get(name), measured.get(name)
        if name == EDGEWRIGHT:
            continue
        if isinstance(verdict, Judged) and isinstance(latency, LatencyResult):
            entries[name] = Entry(
                certified=verdict.certified,
                latency=between(EDGEWRIGHT, name),
                size=sizes.get(EDGEWRIGHT, sizes[ORIGINAL]) / sizes[name],
                to_original=between(name, ORIGINAL),
                p50_seconds=latency.p50.value,
            )
        else:
            entries[name] = None
    mine = judged.get(EDGEWRIGHT)
    run = TaskRun(
        name=prepared.name,
        max_drop=max_drop,
        upper_bound=mine.upper_bound if isinstance(mine, Judged) else None,
        certified=isinstance(mine, Judged) and mine.certified,
        to_original=between(EDGEWRIGHT, ORIGINAL),
        peers=entries,
        tool_seconds=tools[EDGEWRIGHT].wall_seconds,
    )
    rows, records = [], {}
    for name in [ORIGINAL, *tools]:
        tool, verdict, latency = tools.get(name), judged.get(name), measured.get(name)
        error = _problem(tool, verdict, latency)
        to_original = between(name, ORIGINAL)
        records[name] = {
            "error": error,
            "size_bytes": sizes.get(name),
            "p50_us": latency.p50.value * 1e6 if isinstance(latency, LatencyResult) else None,
            "cold_start_ms": latency.cold_start.value * 1e3 if isinstance(latency, LatencyResult) else None,
            "latency_to_original": _listed(to_original),
            "edgewright_latency_to_this": _listed(between(EDGEWRIGHT, name)),
            "accuracy": verdict.accuracy if isinstance(verdict, Judged) else None,
            "drop": verdict.drop if isinstance(verdict, Judged) else None,
            "upper_bound": verdict.upper_bound if isinstance(verdict, Judged) else None,
            "certified": verdict.certified if isinstance(verdict, Judged) else None,
            "tool_wall_seconds": tool.wall_seconds if tool else None,
            "tool_cpu_seconds": tool.cpu_seconds if tool else None,
            "tool_peak_bytes": tool.peak_bytes if tool else None,
        }
        rows.append([name, *_cells(records[name], to_original)])
    report = tools[EDGEWRIGHT].report or {}
    records[EDGEWRIGHT]["recipe"] = (report.get("chosen") or {}).get("recipe")
    records[EDGEWRIGHT]["certificate"] = report.get("certificate")
    columns = [
        "tool",
        "KB",
        "cold ms",
        "us",
        "ratio",
        "interval",
        "accuracy",
        "bound, pp",
        "certified",
        "s",
        "CPU s",
        "MB",
    ]
    title = f"{prepared.name}: {prepared.title}; drop at most {100 * max_drop:g} pp, alpha {alpha:.4f}"
    said = [f"  edgewright says: {report['verdict']}"] if "verdict" in report else []
    failures = [f"  {name}: {record['error']}" for name, record in records.items() if record["error"]]
    detail = {"max_drop": max_drop, "alpha": alpha, "tools": records}
    return Outcome(run, "\n".join([table(title, columns, rows), *said, *failures]), detail)


def _problem(tool: Compressed | None, verdict: Judged | str | None, latency: object) -> str | None:
    if tool is not None and tool.error is not None:
        return tool.error
    if isinstance(verdict, str):
        return verdict
    return str(latency) if isinstance(latency, EdgewrightError) else None


def _listed(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.value, interval.low, interval.high]


def _cells(record: dict[str, Any], to_original: Interval | None) -> list[str]:
    """Return the table's cells after the name; a dash for what is missing."""

    def shown(value: float | None, form: str, scale: float = 1.0) -> str:
        return "-" if value is None else format(value * scale, form)

    spread = "-" if to_original is None else f"{to_original.low:.3f}-{to_original.high:.3f}"
    return [
        shown(record["size_bytes"], ".1f", 1e-3),
        shown(record["cold_start_ms"], ".1f"),
        shown(record["p50_us"], ".1f"),
        shown(None if to_original is None else to_original.value, ".3f"),
        spread,
        shown(record["accuracy"], ".2%"),
        shown(record["upper_bound"], ".2f", 100),
        "-" if record["certified"] is None else "yes" if record["certified"] else "no",
        shown(record["tool_wall_seconds"], ".1f"),
        shown(record["tool_cpu_seconds"], ".1f"),
        shown(record["tool_peak_bytes"], ".0f", 1e-6),
    ]
