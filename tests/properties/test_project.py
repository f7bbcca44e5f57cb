"""A project written as text is the same project when read."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from edgewright.contract.config.project import Project, parse_project
from edgewright.contract.config.project_template import project_text, quantity_text
from edgewright.contract.config.sections import (
    DataSection,
    MetricSection,
    ModelSection,
    PilotSection,
    SearchSection,
)
from edgewright.contract.device_class import Budget, DeviceClass
from edgewright.contract.model.preprocess import Preprocess
from edgewright.contract.units import Dimension, parse_quantity

DIMENSIONS: tuple[Dimension, ...] = ("time", "size", "energy", "power")
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
quantities = st.floats(1e-9, 1e12)
names = st.from_regex(r"[A-Za-z0-9_.-]{1,12}", fullmatch=True)


def maybe(values: st.SearchStrategy[float]) -> st.SearchStrategy[float | None]:
    return st.none() | values


budgets = st.builds(
    Budget,
    latency_p50_seconds=maybe(quantities),
    latency_p95_seconds=maybe(quantities),
    peak_memory_bytes=maybe(quantities),
    size_bytes=maybe(quantities),
    energy_j=maybe(quantities),
    min_metric=maybe(st.floats(-1e6, 1e6)),
    max_drop=maybe(st.floats(0.001, 0.999)),
    confidence=st.floats(0.5, 0.999),
)
device_classes = st.builds(
    DeviceClass,
    name=names,
    target=st.sampled_from(["local", "ssh://me@there:22"]),
    threads=st.integers(1, 64),
    providers=st.lists(texts, min_size=1, max_size=3).map(tuple),
    watts_per_core=st.floats(0.001, 900),
    budget=budgets,
)
steps = st.builds(
    Preprocess,
    dtype=st.sampled_from(["uint8", "int16", "float32"]),
    scale=st.floats(1e-6, 1e6),
    mean=st.lists(st.floats(-1e3, 1e3), max_size=3).map(tuple),
    std=st.lists(st.floats(1e-3, 1e3), max_size=3).map(tuple),
    layout=st.sampled_from(["NHWC", "NCHW", None]),
    colour=st.sampled_from(["RGB", "BGR"]),
    size=st.none() | st.tuples(st.integers(1, 999), st.integers(1, 999)),
)
projects = st.builds(
    Project,
    model=st.builds(ModelSection, path=texts),
    data=st.builds(
        DataSection,
        source=texts,
        label=st.none() | texts,
        features=st.lists(texts, max_size=3).map(tuple),
        group=st.none() | texts,
        task=st.none() | st.sampled_from(["classification", "fidelity"]),
    ),
    metric=st.builds(MetricSection, name=st.none() | texts),
    preprocess=st.none() | steps,
    device_classes=st.lists(device_classes, min_size=1, max_size=3, unique_by=lambda entry: entry.name).map(tuple),
    search=st.builds(
        SearchSection,
        time_limit_seconds=quantities,
        seed=st.integers(0, 2**32 - 1),
        trials=st.none() | st.integers(1, 999),
    ),
    pilot=st.builds(PilotSection, devices=st.integers(1, 99), max_failure_rate=st.floats(0, 1)),
)


@settings(max_examples=150, deadline=None)
@given(projects, st.dictionaries(st.sampled_from(["model", "data", "budget"]), st.lists(texts, max_size=2)))
def test_a_written_project_reads_as_itself(project: Project, remarks: dict[str, list[str]]) -> None:
    assert parse_project(project_text(project, remarks)) == project


@given(quantities, st.sampled_from(DIMENSIONS))
def test_a_written_quantity_reads_as_exactly_itself(value: float, dimension: Dimension) -> None:
    read = parse_quantity(quantity_text(value, dimension).strip('"'), dimension)
    assert read == value
    assert math.isfinite(read)
