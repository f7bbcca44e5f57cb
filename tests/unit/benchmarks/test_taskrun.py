import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from benchmarks.comparison import Judged
from benchmarks.taskrun import agreed
from benchmarks.tools import Compressed

LOSSLESS = Judged(accuracy=0.9, drop=0.0, upper_bound=0.004, certified=True)


def report(certificate: dict[str, Any]) -> Compressed:
    return Compressed("m.onnx", None, 1.0, 1.0, 1, {"certificate": certificate})


def test_the_original_returned_for_want_of_a_certificate_is_no_success() -> None:
    found = agreed(LOSSLESS, report({"verdict": "insufficient data", "upper_bound": 0.03}))
    assert isinstance(found, Judged)
    assert not found.certified


def test_a_certificate_that_is_found_again_counts() -> None:
    assert agreed(LOSSLESS, report({"verdict": "certified", "upper_bound": 0.004})) == LOSSLESS


def test_a_certificate_that_is_not_found_again_stops_the_benchmark() -> None:
    with pytest.raises(RuntimeError, match=r"0\.002.*0\.004"):
        agreed(LOSSLESS, report({"verdict": "certified", "upper_bound": 0.002}))


def test_a_tool_that_gave_no_model_is_judged_by_its_error() -> None:
    assert agreed(None, Compressed(None, "exit code 2", 1.0, 1.0, 1)) == "exit code 2"
