"""Quantities, budgets, device classes and tensors: what is possible, and what is refused with a remedy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewright.contract.device_class import Budget, DeviceClass
from edgewright.contract.errors import DataError, EdgewrightError, InputError, ProjectError, UnitError, WorkError
from edgewright.contract.model.signature import ModelSignature, TensorSpec
from edgewright.contract.units import Dimension, format_quantity, parse_quantity

CONTRACT = ModelSignature(
    inputs=(TensorSpec("x", "float32", ("batch", 2), low=0.0, high=1.0), TensorSpec("n", "int64", ())),
    outputs=(TensorSpec("y", "float32", ("batch", 3)),),
)


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("5ms", "time", 0.005),
        ("1.5 s", "time", 1.5),
        ("200KB", "size", 2e5),
        ("1MiB", "size", 2**20),
        ("2mJ", "energy", 0.002),
    ],
)
def test_quantities_are_read_as_people_write_them(text: str, dimension: Dimension, value: float) -> None:
    assert parse_quantity(text, dimension) == pytest.approx(value)


@pytest.mark.parametrize("text", ["5", "ms", "5KB", "-1ms", "0ms", "", "5 ms ms", "nan ms", "1e999s"])
def test_what_is_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UnitError) as refused:
        parse_quantity(text, "time")
    assert "5ms" in str(refused.value)


@given(st.floats(1e-9, 1e6))
def test_a_quantity_survives_writing_to_three_digits(value: float) -> None:
    written = format_quantity(value, "time")
    assert parse_quantity(written, "time") == pytest.approx(value, rel=0.006)


@pytest.mark.parametrize(
    "limits",
    [{"size_bytes": 0}, {"latency_p95_seconds": -1.0}, {"max_drop": 0.0}, {"max_drop": 1.0}, {"confidence": 1.0}],
)
def test_budgets_that_no_model_could_keep_or_break_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ProjectError):
        Budget(**limits)


@pytest.mark.parametrize(
    "facts",
    [{"threads": 0}, {"watts_per_core": 0.0}, {"target": "telnet://camera"}],
    ids=lambda facts: next(iter(facts)),
)
def test_impossible_device_classes_are_refused(facts: dict[str, object]) -> None:
    with pytest.raises(ProjectError):
        DeviceClass(name="camera", **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (np.zeros((1, 2), np.float64), "dtype"),
        (np.zeros((1, 3), np.float32), "shape"),
        (np.full((1, 2), np.nan, np.float32), "NaN"),
        (np.full((1, 2), 7, np.float32), "ranges"),
    ],
    ids=["dtype", "shape", "nan", "range"],
)
def test_a_feed_that_breaks_the_contract_is_refused(
    x: np.ndarray[tuple[int, ...], np.dtype[np.generic]], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        CONTRACT.check_inputs({"x": x, "n": np.array(1)})


def test_a_feed_with_other_names_is_refused() -> None:
    with pytest.raises(DataError, match="takes"):
        CONTRACT.check_inputs({"x": np.zeros((1, 2), np.float32)})
    CONTRACT.check_inputs({"x": np.zeros((4, 2), np.float32), "n": np.array(1)})
    assert not CONTRACT.has_free_batch_axis


def test_exit_codes_follow_who_must_act() -> None:
    def below(kind: type[EdgewrightError]) -> list[type[EdgewrightError]]:
        return [kind, *(deeper for child in kind.__subclasses__() for deeper in below(child))]

    assert {kind.exit_code for kind in below(InputError)} == {2}
    assert {kind.exit_code for kind in below(WorkError)} == {1}
