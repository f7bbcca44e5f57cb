"""What other monitors take for one row, in microseconds: prints a JSON object. Run in the environment `watch`.

    python rows.py SIGNALS ROWS

Each gets rows of so many statistics, one at a time, as an inference loop would hand them over.
"""

import json
import sys
import time

import numpy as np


def median_us(call, rows):
    """Return the median time of a call per row, microseconds."""
    taken = []
    for row in rows:
        began = time.perf_counter_ns()
        call(row)
        taken.append(time.perf_counter_ns() - began)
    return float(np.median(taken)) / 1e3


def whylogs(signals):
    """Return what tracks a row."""
    import whylogs as why

    profile = why.log({f"s{number}": 0.0 for number in range(signals)}).profile()

    def call(row):
        profile.track(dict(zip(names, row, strict=True)))

    names = [f"s{number}" for number in range(signals)]
    return call


def river(kind, signals):
    """Return what updates a detector for each statistic of a row."""
    from river import drift

    detectors = [getattr(drift, kind)() for _ in range(signals)]

    def call(row):
        for detector, value in zip(detectors, row, strict=True):
            detector.update(value)

    return call


def main():
    """Measure, and print."""
    signals, count = int(sys.argv[1]), int(sys.argv[2])
    rows = np.random.default_rng(0).normal(size=(count, signals)).tolist()
    found = {"whylogs": median_us(whylogs(signals), rows)}
    for kind in ("ADWIN", "KSWIN", "PageHinkley"):
        found[f"river {kind}"] = median_us(river(kind, signals), rows[: max(200, count // 4)])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
