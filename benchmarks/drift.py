"""How often detectors of drift alarm where there is none, and how soon where there is some.

    python benchmarks/drift.py            everything; writes benchmarks/results/drift.json
    python benchmarks/drift.py --quick    a smoke run of less than a minute
    python benchmarks/drift.py --only null

Needs the data beside the checkout. Every reference is drawn anew for every stream; detectors of one signal alarm if
any signal does. A delay is the median over streams that had no alarm before the change; what alarms
without change is no peer, so its false alarms stand beside its delay. docs/reference/benchmarks.md says more.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
from benchmarks.drifting.detectors import DETECTORS, Detector, watch
from benchmarks.drifting.worlds import Draw, Floats, images, series, windows
from benchmarks.parts import Part, run_parts
from benchmarks.report import Figure, Interval, table
from scipy import stats

from edgewright.stats import cohort_tests, drift_test, histograms, thinning

NAME = "drift"
PACKAGES = ("edgewright", "numpy", "river", "scikit-learn", "scipy")
ALPHA = 0.05
REFERENCE_ROWS = 10_000
BEFORE, AFTER = 5000, 10_000
# Peers are shown fewer streams without change than ours; their false alarms are many.
PEER_SHARE = 4


def _share(hits: int, runs: int) -> Interval:
    """Return a share with its Clopper-Pearson interval of 95 %."""
    found = stats.binomtest(hits, runs).proportion_ci(0.95, method="exact")
    return Interval(hits / runs, float(found.low), float(found.high))


def _alarms(name: str, hits: int, runs: int, limit: float | None, note: str, peer: str | None = None) -> Figure:
    return Figure(name, _share(hits, runs), limit, peer, limit is None or hits / runs <= limit, note)


def _false_alarms(part: str, draw: Draw, runs: int, rows: int, detectors: Mapping[str, Detector]) -> list[Figure]:
    """Count streams without change in which a detector alarms."""
    figures = []
    for name, find in detectors.items():
        ours = name == "e-process"
        hits, streams = 0, runs if ours else max(2, runs // PEER_SHARE)
        for run in range(streams):
            random = np.random.default_rng([run, 1])
            reference = draw(REFERENCE_ROWS, random)
            hits += find(reference, draw(rows, random), run) is not None
        limit = ALPHA if ours else None
        figures.append(_alarms(f"{part}.{name}", hits, streams, limit, f"{streams} streams of {rows}"))
    return figures


def null(*, quick: bool) -> Part:
    """False alarms on Fashion-MNIST and on pooled WISDM."""
    runs, rows = (4, 2000) if quick else (200, 20_000)
    figures = _false_alarms("null.images", images(quick=quick).draw, runs, rows, DETECTORS)
    return figures + _false_alarms("null.windows", _pooled(quick=quick), runs, rows, DETECTORS), {}


def _pooled(*, quick: bool) -> Draw:
    found = windows(quick=quick)
    return lambda rows, random: found.clean[random.integers(len(found.clean), size=rows)]


def subjects(*, quick: bool) -> Part:
    """Subjects of WISDM that differ harmlessly: with a tolerance, without, and with their own baseline."""
    runs, rows = (4, 1000) if quick else (200, 20_000)
    found = windows(quick=quick)
    hits = dict.fromkeys(("within", "alarm", "alarm.within", "none", "own"), 0)
    deltas = []
    for run in range(runs):
        random = np.random.default_rng([run, 2])
        names = random.permutation(np.unique(found.subjects))
        own = found.clean[found.subjects == names[0]]
        others = found.subjects != names[0]
        taken = histograms.build_reference_histogram(found.clean[others], seed=run, groups=found.subjects[others])
        per_subject = np.stack(
            [histograms.count_by_bin(found.clean[found.subjects == name], taken.edges) for name in names]
        )
        allowed = drift_test.fit_tolerance(per_subject[1:], quantile=0.9)
        deltas.append(allowed.delta)
        shares = per_subject[0] / per_subject[0].sum(axis=1, keepdims=True)
        pooled = taken.counts / taken.counts.sum(axis=1, keepdims=True)
        within = bool((np.abs(shares - pooled).sum(axis=1) / 2 <= allowed.delta).all())
        stream = own[random.integers(len(own), size=rows)]
        alarm = watch(taken, stream, tolerance=allowed.delta) is not None
        hits["within"] += within
        hits["alarm"] += alarm
        hits["alarm.within"] += alarm and within
        hits["none"] += watch(taken, stream) is not None
        first = histograms.build_reference_histogram(own[random.integers(len(own), size=1000)], seed=run)
        hits["own"] += watch(first, stream) is not None
    note = f"{runs} streams of {rows}; {hits['within']} subjects within; tolerance {np.mean(deltas):.2f} on average"
    return [
        _alarms("subjects.within tolerance", hits["alarm.within"], max(hits["within"], 1), ALPHA, note),
        _alarms("subjects.all", hits["alarm"], runs, ALPHA + 0.1, "tolerance for 90 % of subjects"),
        _alarms("subjects.own baseline", hits["own"], runs, ALPHA, "reference: the subject's own first 1,000"),
        _alarms("subjects.no tolerance", hits["none"], runs, None, "what the tolerance is for"),
    ], {"mean_tolerance": np.mean(deltas, axis=0).round(4).tolist()}


def repeats(*, quick: bool) -> Part:
    """Frames that are shown five times."""
    runs, rows = (3, 5000) if quick else (200, 20_000)
    world = images(quick=quick)

    def draw(frames: int, random: np.random.Generator) -> Floats:
        return np.repeat(world.draw(frames // 5, random), 5, axis=0)

    hits = dict.fromkeys(("thinned", "refused", "check", "raw"), 0)
    steps: list[int] = []
    for run in range(runs):
        random = np.random.default_rng([run, 3])
        calibration, stream = draw(rows, random), draw(rows, random)
        chosen = thinning.choose_thinning(
            [histograms.bin_index(calibration, histograms.quantile_edges(calibration))]
        )
        steps.append(chosen.step)
        hits["refused"] += not chosen.is_testable
        taken = histograms.build_reference_histogram(calibration[:: chosen.step], seed=run)
        thinned = stream[thinning.pick_rows(chosen, rows, rows_since_taken=chosen.step)]
        hits["thinned"] += watch(taken, thinned) is not None
        hits["raw"] += watch(histograms.build_reference_histogram(calibration[::5], seed=run), stream) is not None
        checked = thinning.update_dependence_check(
            thinning.new_dependence_check(taken.counts), histograms.bin_index(thinned, taken.edges)
        )
        hits["check"] += thinning.is_dependent(checked)
    note = f"{runs} streams of {rows} frames; step {min(steps)} to {max(steps)}"
    others = {name: find for name, find in DETECTORS.items() if name not in ("e-process", "KSWIN")}
    return [
        _alarms("repeats.thinned", hits["thinned"], runs, ALPHA, note),
        _alarms("repeats.cannot test", hits["refused"], runs, None, "calibration stream refused"),
        _alarms("repeats.check", hits["check"], runs, 0.01, "the device's check, wrongly, after thinning"),
        _alarms("repeats.not thinned", hits["raw"], runs, None, "e-process on all frames"),
        *_false_alarms("repeats", draw, max(2, runs // 3), rows, others),
    ], {}


def regimes(*, quick: bool) -> Part:
    """Regimes that last 500 frames, of one class each: cannot be tested."""
    runs, rows = (3, 5000) if quick else (200, 20_000)
    world = images(quick=quick)
    hits = dict.fromkeys(("cannot", "by five", "check", "alone"), 0)
    for run in range(runs):
        random = np.random.default_rng([run, 4])
        calibration, stream = (world.draw_regimes(rows, 500, random) for _ in range(2))
        chosen = thinning.choose_thinning(
            [histograms.bin_index(calibration, histograms.quantile_edges(calibration))]
        )
        hits["cannot"] += not chosen.is_testable
        taken = histograms.build_reference_histogram(calibration[::5], seed=run)
        hits["by five"] += watch(taken, stream[::5]) is not None
        # A calibration set in no order says nothing of dependence: the device must find out.
        shuffled = histograms.build_reference_histogram(world.draw(REFERENCE_ROWS, random), seed=run)
        checked = thinning.update_dependence_check(
            thinning.new_dependence_check(shuffled.counts), histograms.bin_index(stream, shuffled.edges)
        )
        hits["check"] += thinning.is_dependent(checked)
    missed = runs - hits["cannot"]
    return [
        _alarms("regimes.tested all the same", missed, runs, 0.0, f"{runs} calibration streams of {rows}"),
        _alarms(
            "regimes.check missed", runs - hits["check"], runs, ALPHA, "the device's check, calibrated out of order"
        ),
        _alarms(
            "regimes.thinned by five", hits["by five"], runs, None, "e-process with a fixed step: false alarms"
        ),
    ], {}


def _delays(
    part: str,
    before: Draw,
    after: Draw,
    runs: int,
    detectors: Mapping[str, Callable[[np.random.Generator, Floats, int], int | None]],
) -> list[Figure]:
    """Measure how many samples after a change each detector alarms."""
    figures = []
    for name, find in detectors.items():
        delays, early = [], 0
        for run in range(runs):
            random = np.random.default_rng([run, 5])
            stream = np.concatenate([before(BEFORE, random), after(AFTER, random)])
            alarm = find(np.random.default_rng([run, 6]), stream, run)
            early += alarm is not None and alarm <= BEFORE
            if alarm is None or alarm > BEFORE:
                delays.append(AFTER if alarm is None else alarm - BEFORE)
        never = sum(delay == AFTER for delay in delays)
        figures.append(_alarms(f"{part}.{name}, before", early, runs, None, "alarmed before the change"))
        if delays:
            spread = Interval(median(delays), *np.quantile(delays, [0.1, 0.9]).tolist())
            note = f"{len(delays)} streams, {never} never; interval: tenth to nine tenths"
            figures.append(Figure(f"{part}.{name}", spread, None, None, True, note))
    return figures


def _with_reference(draw: Draw) -> dict[str, Callable[[np.random.Generator, Floats, int], int | None]]:
    def bound(find: Detector) -> Callable[[np.random.Generator, Floats, int], int | None]:
        return lambda random, stream, seed: find(draw(REFERENCE_ROWS, random), stream, seed)

    return {name: bound(find) for name, find in DETECTORS.items()}


def pictures(*, quick: bool) -> Part:
    """Delays on Fashion-MNIST."""
    runs = 2 if quick else 20
    world = images(quick=quick)
    figures = []
    for change in ("noise",) if quick else ("noise", "blur", "brightness", "dead", "prior", "gradual"):

        def after(rows: int, random: np.random.Generator, change: str = change) -> Floats:
            return world.draw_changed(change, rows, random)

        figures += _delays(f"pictures.{change}", world.draw, after, runs, _with_reference(world.draw))
    return figures, {}


def wearable(*, quick: bool) -> Part:
    """Delays on WISDM: devices that see everybody, and devices of one subject each."""
    runs = 2 if quick else 20
    found = windows(quick=quick)
    names = np.unique(found.subjects)
    unseen = found.subjects == names[-1]

    def drawing(pool: Floats) -> Draw:
        return lambda rows, random: pool[random.integers(len(pool), size=rows)]

    before = drawing(found.clean[~unseen])
    figures = []
    changes = {"swapped": found.swapped[~unseen], "clipped": found.clipped[~unseen], "unseen": found.clean[unseen]}
    for change, pool in list(changes.items())[: 1 if quick else None]:
        figures += _delays(f"wearable.{change}", before, drawing(pool), runs, _with_reference(before))

    taken = histograms.build_reference_histogram(found.clean[~unseen], seed=0, groups=found.subjects[~unseen])
    groups = np.stack(
        [histograms.count_by_bin(found.clean[found.subjects == name], taken.edges) for name in names[:-1]]
    )
    delta = drift_test.fit_tolerance(groups, quantile=0.9).delta
    own: dict[str, Callable[[np.random.Generator, Floats, int], int | None]] = {
        "e-process, tolerance": lambda _, stream, __: watch(taken, stream, tolerance=delta),
        "e-process, own baseline": lambda _, stream, seed: _after_baseline(stream, seed),
    }
    mine = found.subjects == names[0]
    for change, pool in {"swapped": found.swapped[mine], "clipped": found.clipped[mine]}.items():
        figures += _delays(f"wearable.one subject {change}", drawing(found.clean[mine]), drawing(pool), runs, own)
    return figures, {"tolerance": delta.round(4).tolist()}


def _after_baseline(stream: Floats, seed: int, rows: int = 2000) -> int | None:
    alarm = watch(histograms.build_reference_histogram(stream[:rows], seed=seed), stream[rows:])
    return None if alarm is None else rows + alarm


def industrial(*, quick: bool) -> Part:
    """NAB: what can be tested at all, and where first alarms lie."""
    names = ("can test", "e-process", *[name for name in DETECTORS if name != "e-process"])
    outcome = {name: {"in a window": 0, "outside": 0, "none": 0} for name in names[1:]}
    testable = []
    files = series()[::12] if quick else series()
    for one in files:
        start = int(0.15 * len(one.signals))
        calibration, stream = one.signals[:start], one.signals[start:]
        chosen = thinning.choose_thinning(
            [histograms.bin_index(calibration, histograms.quantile_edges(calibration))]
        )
        if chosen.is_testable:
            testable.append(one.name)
        for name in names[1:]:
            if name == "e-process":
                if not chosen.is_testable:
                    continue
                taken = histograms.build_reference_histogram(calibration[:: chosen.step], seed=0)
                alarm = watch(taken, stream[:: chosen.step])
                alarm = None if alarm is None else (alarm - 1) * chosen.step + 1
            else:
                alarm = DETECTORS[name](calibration, stream, 0)
            where = "none" if alarm is None else "in a window" if one.anomalous[start + alarm - 1] else "outside"
            outcome[name][where] += 1
    figures = [
        Figure("industrial.testable", Interval.exact(len(testable)), None, None, True, f"of {len(files)} files")
    ]
    for name, counted in outcome.items():
        note = ", ".join(f"{count} {where}" for where, count in counted.items())
        figures.append(
            Figure(f"industrial.outside.{name}", Interval.exact(counted["outside"]), None, None, True, note)
        )
    return figures, {"testable": testable}


def cohorts(*, quick: bool) -> Part:
    """Fleet tests on noised sums of devices that differ: false alarms and power."""
    runs = 20 if quick else 300
    shares, figures = np.full(16, 1 / 16), []
    for number in (16, 64):
        for n_ref in (2000, 20_000):
            hits = dict.fromkeys(("with", "without", "pooled", "power"), 0)
            foreseen = []
            for run in range(runs):
                random = np.random.default_rng([run, number, n_ref])
                reference = random.multinomial(n_ref, shares) / n_ref
                told = {"noise_sd": 30.0, "shift_size": 0.05, "alpha": ALPHA}
                sums = _noised(shares, number, random)
                hits["with"] += (
                    cohort_tests.compare_cohorts(sums, reference, reference_count=n_ref, **told).p_value <= ALPHA
                )
                hits["without"] += (
                    cohort_tests.compare_cohorts(sums, reference, reference_count=1e12, **told).p_value <= ALPHA
                )
                pooled = cohort_tests.pooled_p_value(
                    sums.sum(axis=0), reference, reference_count=n_ref, noise_sd=30 * number**0.5
                )
                hits["pooled"] += pooled <= ALPHA
                moved = _noised(shares + cohort_tests.preset_shifts(shares, 0.05)[0], number, random)
                found = cohort_tests.compare_cohorts(moved, reference, reference_count=n_ref, **told)
                hits["power"] += found.p_value <= ALPHA
                foreseen.append(found.power)
            part = f"cohorts.{number} cohorts, reference {n_ref}"
            figures += [
                _alarms(f"{part}.false alarms", hits["with"], runs, ALPHA + 0.02, f"{runs} fleets"),
                _alarms(f"{part}.reference taken as exact", hits["without"], runs, None, "false alarms"),
                _alarms(f"{part}.chi-square of the total", hits["pooled"], runs, None, "false alarms"),
                _alarms(
                    f"{part}.found",
                    hits["power"],
                    runs,
                    None,
                    f"shift of .05; stated power {np.mean(foreseen):.2f}",
                ),
            ]
    return figures, {}


def _noised(shares: Floats, number: int, random: np.random.Generator) -> Floats:
    """Return noised sums of cohorts of 40 devices that differ, with 100 observations each."""
    devices = random.dirichlet(shares * 30, size=(number, 40))
    counts = random.multinomial(100, devices).sum(axis=1)
    return np.asarray(counts + random.normal(0, 30, counts.shape))


PARTS: dict[str, Callable[..., Part]] = {
    part.__name__: part for part in (null, subjects, repeats, regimes, pictures, wearable, industrial, cohorts)
}


def _delay_table(figures: Sequence[Figure]) -> str:
    """Return delays as a table of changes by detectors, each with the share of streams that had an early alarm."""
    figures = [figure for figure in figures if figure.name.partition(".")[0] in ("pictures", "wearable")]
    if not figures:
        return ""
    early = {tuple(figure.name.removesuffix(", before").split(".")[1:]): figure for figure in figures}
    found = {
        tuple(figure.name.split(".")[1:]): figure for figure in figures if not figure.name.endswith(", before")
    }
    changes = list(dict.fromkeys(change for change, _ in early))
    rows = []
    for name in dict.fromkeys(name for _, name in early):
        row = [name]
        for change in changes:
            one, before = found.get((change, name)), early.get((change, name))
            delay = "-" if one is None or one.value is None else f"{one.value.value:.0f}"
            row.append("" if before is None else delay)
        rows.append(row)
    return table(
        "median delay in samples, - where every stream had an alarm before the change", ["", *changes], rows
    )


if __name__ == "__main__":
    sys.exit(run_parts(NAME, PARTS, PACKAGES, __doc__, shown=_delay_table))
