"""Data sources and the checks that stand between them and a model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes, load_digits

from edgewright.compress.data.loader import Dataset, TaskKind, load_data
from edgewright.contract.errors import DataError
from edgewright.contract.model.preprocess import Preprocess
from edgewright.contract.model.signature import ModelSignature, TensorSpec

Spec = tuple[str, str, tuple[int | str, ...]]
RNG = np.random.default_rng(0)


def contract_of(*inputs: Spec, outputs: tuple[Spec, ...] = (("y", "float32", ("batch", 10)),)) -> ModelSignature:
    return ModelSignature(
        inputs=tuple(TensorSpec(*spec) for spec in inputs), outputs=tuple(TensorSpec(*spec) for spec in outputs)
    )


IMAGES = contract_of(("image", "float32", ("batch", 1, 8, 8)))
ROWS = contract_of(("row", "float32", ("batch", 64)))
FOUR = contract_of(("row", "float32", ("batch", 4)), outputs=(("y", "float32", ("batch", 3)),))


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., str]:
    def save(**arrays: Any) -> str:
        path = tmp_path / "data.npz"
        np.savez(path, **arrays)
        return str(path)

    return save


def floats(*shape: int) -> NDArray[np.float32]:
    return RNG.random(shape, dtype=np.float32)


def ids(count: int, classes: int = 10) -> NDArray[np.int64]:
    return np.arange(count) % classes


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(DataError) as raised:
        load_data(*arguments, **options)
    assert raised.value.exit_code == 2
    return str(raised.value)


def noted(dataset: Dataset, words: str) -> bool:
    return any(words in note for note in dataset.notes)


def test_digits_load_from_npz_with_labels(npz: Callable[..., str]) -> None:
    digits = load_digits()
    dataset = load_data(npz(x=digits.images[:, None].astype(np.float32), y=digits.target), IMAGES)
    assert len(dataset) == 1797
    assert dataset.task == "classification"
    assert dataset.inputs_of(3)["image"].shape == (1, 1, 8, 8)
    assert dataset.labels is not None
    assert (dataset.labels == digits.target).all()


def test_the_same_data_has_the_same_fingerprint_and_other_data_another(npz: Callable[..., str]) -> None:
    x, y = floats(20, 64), ids(20)
    first = load_data(npz(x=x, y=y), ROWS)
    again = load_data(npz(x=x, y=y), ROWS)
    x[3, 5] += 1
    other = load_data(npz(x=x, y=y), ROWS)
    relabelled = load_data(npz(x=x, y=np.roll(y, 1)), ROWS)
    assert first.fingerprint == again.fingerprint
    assert len({first.fingerprint, other.fingerprint, relabelled.fingerprint}) == 3


def test_a_subset_holds_its_samples_in_order(npz: Callable[..., str]) -> None:
    dataset = load_data(npz(x=floats(20, 64), y=ids(20), g=ids(20, 5)), ROWS, group="g")
    subset = dataset.subset([7, 3])
    assert len(subset) == 2
    assert (subset.inputs_of(0)["row"] == dataset.inputs_of(7)["row"]).all()
    assert subset.labels is not None
    assert subset.groups is not None
    assert subset.labels.tolist() == [7, 3]
    assert subset.groups.tolist() == [2, 3]
    assert subset.fingerprint != dataset.fingerprint


def test_feeds_are_batched_only_where_the_model_takes_batches(npz: Callable[..., str]) -> None:
    free = load_data(npz(x=floats(20, 64), y=ids(20)), ROWS)
    assert [len(feed["row"]) for feed in free.batches(range(20), ROWS, batch=8)] == [8, 8, 4]
    fixed = contract_of(("row", "float32", (1, 64)))
    dataset = load_data(npz(x=floats(20, 64), y=ids(20)), fixed)
    assert [feed["row"].shape for feed in dataset.batches([4, 5], fixed)] == [(1, 64), (1, 64)]


def test_several_inputs_with_whole_tensors_states_and_scalars(npz: Callable[..., str]) -> None:
    contract = contract_of(
        ("input", "float32", ("batch", "time")), ("state", "float32", (2, "batch", 8)), ("sr", "int64", ())
    )
    path = npz(input=floats(12, 16), state=np.zeros((12, 2, 1, 8), np.float32), sr=np.full(12, 16000))
    own = load_data(path, contract)
    assert {name: array.shape for name, array in own.inputs_of(0).items()} == {
        "input": (1, 16),
        "state": (2, 1, 8),
        "sr": (),
    }
    assert own.task == "fidelity"
    path = npz(input=floats(12, 1, 16), state=np.zeros((2, 1, 8), np.float32), sr=np.array(16000))
    shared = load_data(path, contract)
    assert shared.inputs_of(11)["sr"] == 16000
    assert shared.inputs_of(11)["state"].shape == (2, 1, 8)
    assert noted(shared, "share one 'sr'")
    assert noted(shared, "share one 'state'")


def test_a_fixed_batch_of_one_takes_samples_either_way(npz: Callable[..., str]) -> None:
    contract = contract_of(("x", "float32", (1, 3, 4, 5)))
    for shape in ((11, 3, 4, 5), (11, 1, 3, 4, 5)):
        assert load_data(npz(x=floats(*shape)), contract).inputs_of(0)["x"].shape == (1, 3, 4, 5)


def test_grey_images_get_their_channel_axis_and_it_is_noted(npz: Callable[..., str]) -> None:
    dataset = load_data(npz(x=floats(12, 8, 8), y=ids(12)), IMAGES)
    assert dataset.inputs_of(0)["image"].shape == (1, 1, 8, 8)
    assert noted(dataset, "axis 1 of size 1")


@pytest.mark.parametrize("shape", [(12, 63), (12, 8, 8, 1), (12, 8, 9), (12,), (12, 2, 32)])
def test_a_wrong_shape_is_refused(npz: Callable[..., str], shape: tuple[int, ...]) -> None:
    assert "the data has shape" in refused(npz(x=floats(*shape), y=ids(12)), ROWS)


def test_a_fixed_batch_of_many_is_refused(npz: Callable[..., str]) -> None:
    assert refused(npz(x=floats(16, 64), y=ids(16)), contract_of(("x", "float32", (8, 64))))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int16, np.bool_])
def test_harmless_conversions_are_done_and_noted(npz: Callable[..., str], dtype: type) -> None:
    dataset = load_data(npz(x=(floats(12, 64) * 9).astype(dtype), y=ids(12)), ROWS)
    assert dataset.inputs_of(0)["row"].dtype == np.float32
    assert noted(dataset, "was converted to float32")


def test_unscaled_pixels_are_passed_on_but_never_silently(npz: Callable[..., str]) -> None:
    dataset = load_data(npz(x=(floats(12, 64) * 255).astype(np.uint8), y=ids(12)), ROWS)
    assert noted(dataset, "unscaled; declare [preprocess] scale")


def test_declared_preprocessing_is_applied(npz: Callable[..., str]) -> None:
    raw = (floats(12, 8, 8, 1) * 255).astype(np.uint8)
    steps = Preprocess(dtype="uint8", scale=1 / 255, mean=(0.5,), std=(0.25,), layout="NCHW")
    dataset = load_data(npz(x=raw, y=ids(12)), IMAGES, preprocess=steps)
    expected = (raw[3].transpose(2, 0, 1) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(dataset.inputs_of(3)["image"][0], expected, atol=1e-6)
    assert not noted(dataset, "unscaled")
    assert dataset.preprocess == steps
    assert "[preprocess] declares uint8" in refused(
        npz(x=raw.astype(np.int16), y=ids(12)), IMAGES, preprocess=steps
    )


def test_fractions_for_an_integer_input_are_refused(npz: Callable[..., str]) -> None:
    contract = contract_of(("x", "int8", ("batch", 4)))
    assert "fractions" in refused(npz(x=floats(12, 4), y=ids(12)), contract)


def test_integers_out_of_the_inputs_range_are_refused(npz: Callable[..., str]) -> None:
    contract = contract_of(("x", "int8", ("batch", 4)))
    fits = load_data(npz(x=np.full((12, 4), -128), y=ids(12)), contract)
    assert fits.inputs_of(0)["x"].dtype == np.int8
    assert "ranges over" in refused(npz(x=np.full((12, 4), 200), y=ids(12)), contract)


def test_floats_beyond_the_inputs_range_are_refused(npz: Callable[..., str]) -> None:
    assert "cannot hold" in refused(npz(x=np.full((12, 64), 1e300), y=ids(12)), ROWS)


@pytest.mark.parametrize("dtype", ["U3", "complex64"])
def test_inputs_that_are_no_numbers_are_refused(npz: Callable[..., str], dtype: str) -> None:
    refused(npz(x=np.zeros((12, 64), dtype), y=ids(12)), ROWS)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_with_the_sample(npz: Callable[..., str], value: float) -> None:
    x = floats(12, 64)
    x[7, 3] = value
    assert "the first is sample 7" in refused(npz(x=x, y=ids(12)), ROWS)


def test_different_numbers_of_samples_are_refused(npz: Callable[..., str]) -> None:
    assert "12 samples and 11 labels" in refused(npz(x=floats(12, 64), y=ids(11)), ROWS)
    two = contract_of(("a", "float32", ("batch", 2)), ("b", "float32", ("batch", 2)))
    assert "a 12, b 11" in refused(npz(a=floats(12, 2), b=floats(11, 2)), two)
    assert "groups have shape" in refused(npz(x=floats(12, 64), y=ids(12), g=ids(9)), ROWS, group="g")


def test_no_samples_are_refused(npz: Callable[..., str]) -> None:
    assert "no samples" in refused(npz(x=floats(0, 64), y=ids(0)), ROWS)


def test_one_class_only_is_refused(npz: Callable[..., str]) -> None:
    assert "same class, 3" in refused(npz(x=floats(12, 64), y=np.full(12, 3)), ROWS)


@pytest.mark.parametrize("label", [-1, 10, 99])
def test_labels_out_of_range_are_refused(npz: Callable[..., str], label: int) -> None:
    y = ids(12)
    y[5] = label
    assert f"the first is {label} at sample 5" in refused(npz(x=floats(12, 64), y=y), ROWS)


def test_labels_from_one_are_recognised(npz: Callable[..., str]) -> None:
    assert "start at 0" in refused(npz(x=floats(20, 64), y=ids(20) + 1), ROWS)


def test_missing_labels_are_refused(npz: Callable[..., str]) -> None:
    y = ids(12).astype(np.float64)
    y[4] = np.nan
    assert "labels are missing" in refused(npz(x=floats(12, 64), y=y), ROWS)
    names = np.array(["a", "b", "", "a"] * 3)
    assert "the first at sample 2" in refused(npz(x=floats(12, 64), y=names), ROWS)


def test_floats_as_class_labels_are_refused(npz: Callable[..., str]) -> None:
    assert "class ids are integers" in refused(npz(x=floats(12, 64), y=ids(12).astype(np.float32)), ROWS)
    binary = contract_of(("x", "float32", ("batch", 4)), outputs=(("y", "float32", ("batch", 1)),))
    labels = (ids(12) % 2).astype(np.float32)
    assert "class ids are integers" in refused(npz(x=floats(12, 4), y=labels), binary, task="classification")


def test_a_task_that_needs_labels_is_refused_without(npz: Callable[..., str]) -> None:
    assert "needs labels" in refused(npz(x=floats(12, 64)), ROWS, task="classification")


def test_tasks_are_found_out_from_labels_and_outputs(npz: Callable[..., str]) -> None:
    one = contract_of(("x", "float32", ("batch", 4)), outputs=(("y", "float32", ("batch", 1)),))
    three = FOUR
    x = floats(12, 4)
    flags = np.array([[1, 0, 1], [0, 1, 1]] * 6)
    onehot = np.eye(3, dtype=int)[ids(12, 3)]
    assert load_data(npz(x=x, y=floats(12)), one).task == "regression"
    assert load_data(npz(x=x, y=floats(12, 1)), one).task == "regression"
    assert load_data(npz(x=x, y=ids(12, 2)), one).task == "classification"
    assert load_data(npz(x=x, y=ids(12, 7)), one).task == "regression"
    assert load_data(npz(row=x, y=flags), three).task == "multilabel"
    assert load_data(npz(row=x, y=floats(12, 3)), three).task == "regression"
    classes = load_data(npz(row=x, y=onehot), three)
    assert classes.task == "classification"
    assert classes.labels is not None
    assert classes.labels.tolist() == ids(12, 3).tolist()
    assert load_data(npz(row=x), three).task == "fidelity"
    restoring = contract_of(("x", "float32", ("n", 4)), outputs=(("y", "float32", ("m", 4)),))
    assert load_data(npz(x=x), restoring).task == "reconstruction"


def test_targets_of_another_shape_than_the_output_are_refused(npz: Callable[..., str]) -> None:
    assert "targets have shape" in refused(npz(row=floats(12, 4), y=floats(12, 2)), FOUR)
    assert "same target" in refused(npz(row=floats(12, 4), y=np.ones((12, 3), np.float32) / 2), FOUR)
    assert "labels per sample" in refused(
        npz(row=floats(12, 4), y=np.array([[0, 1], [1, 1]] * 6)), FOUR, task="multilabel"
    )


def test_class_names_are_numbered_in_sorted_order(npz: Callable[..., str]) -> None:
    dataset = load_data(npz(row=floats(12, 4), y=np.array(["dog", "ant", "cat"] * 4)), FOUR)
    assert dataset.labels is not None
    assert dataset.labels[:3].tolist() == [2, 0, 1]
    assert noted(dataset, "ant = 0, cat = 1, dog = 2")


def test_arrays_can_be_named(npz: Callable[..., str]) -> None:
    path = npz(X_test=floats(12, 4), y_test=ids(12, 3), speaker=ids(12, 6))
    dataset = load_data(path, FOUR, features=["X_test"], label="y_test", group="speaker")
    assert dataset.groups is not None
    assert dataset.groups.tolist() == ids(12, 6).tolist()


def test_missing_arrays_are_refused_with_those_present(npz: Callable[..., str]) -> None:
    path = npz(images=floats(12, 4), y=ids(12, 3))
    assert "'x' or 'row'. Name the arrays as the model's inputs. It holds: images [12, 4]" in refused(path, FOUR)
    path = npz(x=floats(12, 4), y=ids(12, 3))
    assert "'subject' (group)" in refused(path, FOUR, group="subject")
    assert "'target' (label)" in refused(path, FOUR, label="target")


def test_pickled_objects_are_never_loaded(tmp_path: Path, npz: Callable[..., str]) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    path = npz(x=np.array([Bomb()] * 12, dtype=object), y=ids(12))
    assert "Python objects" in refused(path, ROWS)
    assert not (tmp_path / "exploded").exists()


def test_damaged_and_foreign_files_are_refused(tmp_path: Path, npz: Callable[..., str]) -> None:
    path = Path(npz(x=floats(12, 64), y=ids(12)))
    data = path.read_bytes()
    for broken in (b"", b"not a zip", data[: len(data) // 2]):
        path.write_bytes(broken)
        assert "not an .npz file" in refused(str(path), ROWS)
    middle = len(data) // 3
    path.write_bytes(data[:middle] + bytes(8) + data[middle + 8 :])
    assert "damaged" in refused(str(path), ROWS)
    np.savez(path)
    assert "no arrays" in refused(str(path), ROWS)
    assert "does not exist" in refused(str(tmp_path / "none.npz"), ROWS)
    (tmp_path / "data.xyz").write_text("1")
    assert "no known kind" in refused(str(tmp_path / "data.xyz"), ROWS)


CSV = "a,b,c,d,kind,who\n" + "".join(f"{i},{i * 2},{i % 5},0.5,{'xyz'[i % 3]},p{i % 4}\n" for i in range(12))


def test_a_csv_table_gives_features_labels_and_groups(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(CSV)
    dataset = load_data(str(path), FOUR, label="kind", group="who")
    assert dataset.inputs_of(2)["row"].tolist() == [[2, 4, 2, 0.5]]
    assert dataset.labels is not None
    assert dataset.labels[:4].tolist() == [0, 1, 2, 0]
    assert dataset.groups is not None
    assert dataset.groups[1] == "p1"
    assert noted(dataset, "features are all 4 other columns of table.csv: a, b, c, d")
    reordered = load_data(str(path), FOUR, label="kind", features=["d", "c", "b", "a"])
    assert reordered.inputs_of(2)["row"].tolist() == [[0.5, 2, 4, 2]]


def test_parquet_gives_the_same_as_csv(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    table = pa.csv.read_csv(tmp_path / "t.csv")
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    options: dict[str, Any] = {"label": "kind", "group": "who"}
    first = load_data(str(tmp_path / "t.csv"), FOUR, **options)
    second = load_data(str(tmp_path / "t.parquet"), FOUR, **options)
    assert first.fingerprint == second.fingerprint


def test_real_regression_from_a_table(tmp_path: Path) -> None:
    diabetes = load_diabetes()
    columns = {f"f{i}": diabetes.data[:, i] for i in range(10)} | {"y": diabetes.target}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "d.parquet")
    contract = contract_of(("x", "float32", ("n", 10)), outputs=(("y", "float32", ("n", 1)),))
    dataset = load_data(str(tmp_path / "d.parquet"), contract)
    assert (dataset.task, len(dataset)) == ("regression", 442)


def test_table_columns_become_samples_of_the_models_shape(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    contract = contract_of(("x", "float32", ("n", 2, 2)), outputs=FOUR_OUTPUT)
    dataset = load_data(str(tmp_path / "t.csv"), contract, label="kind", features=list("abcd"))
    assert dataset.inputs_of(2)["x"].tolist() == [[[2, 4], [2, 0.5]]]
    assert noted(dataset, "row by row")


FOUR_OUTPUT: tuple[Spec, ...] = (("y", "float32", ("batch", 3)),)


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("", {}, "is empty"),
        ("a,b,c,d,kind\n", {"label": "kind"}, "no rows"),
        (CSV, {"label": "nope"}, "no column 'nope' (label). Its columns: a, b, c, d, kind, who"),
        (CSV, {"label": "kind", "group": "team"}, "no column 'team' (group)"),
        (CSV, {"label": "kind", "features": ["a", "q"]}, "no column 'q' (features)"),
        (CSV, {"label": "kind"}, "feature column 'who'"),
        (CSV.replace("\n3,6,", "\n3,,"), {"label": "kind", "group": "who"}, "1 empty cells, the first in row 4"),
        (CSV + "1,2\n", {"label": "kind"}, "cannot be read as CSV"),
        (CSV.replace("a,b,", "a,a,"), {"label": "kind"}, "several columns a"),
        (CSV, {"label": "kind", "features": ["a", "b"]}, "the data has shape [12, 2]"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, text: str, options: dict[str, Any], said: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert said in refused(str(tmp_path / "t.csv"), FOUR, **options)


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and then nothing")
    assert "cannot be read as Parquet" in refused(str(tmp_path / "t.parquet"), FOUR)


def test_a_table_cannot_feed_several_inputs(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    two = contract_of(("a", "float32", ("n", 2)), ("b", "float32", ("n", 2)))
    assert "gives only one" in refused(str(tmp_path / "t.csv"), two)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return {'x': np.ones((12, 4), 'f4'), 'y': np.arange(12) % 3}", None),
        ("return np.ones((12, 4), 'f4'), np.arange(12) % 3", None),
        ("return np.ones((12, 4))", "returned ndarray"),
        ("return {'x': np.array([[1], 'a'], dtype=object)}", "Python objects"),
        ("raise RuntimeError('no sensor')", "raised RuntimeError: no sensor"),
    ],
)
def test_the_users_own_function_gives_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, body: str, said: str | None
) -> None:
    name = f"user_data_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(f"import numpy as np\ndef load():\n    {body}\n")
    monkeypatch.chdir(tmp_path)
    if said is None:
        assert len(load_data(f"{name}:load", FOUR)) == 12
    else:
        assert said in refused(f"{name}:load", FOUR)


def test_functions_that_cannot_be_had_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half_module.py").write_text("1 / 0\n")
    assert "cannot be imported: ModuleNotFoundError" in refused("no_such_module:load", FOUR)
    assert "cannot be imported: ZeroDivisionError" in refused("half_module:load", FOUR)
    assert "has no function 'nope'" in refused("json:nope", FOUR)


def test_axes_of_one_name_must_have_one_size(npz: Callable[..., str]) -> None:
    contract = contract_of(("a", "float32", ("n", "time")), ("b", "float32", ("n", "time")))
    assert "axis 'time' is 4 in input 'a' and 5 in 'b'" in refused(npz(a=floats(12, 4), b=floats(12, 5)), contract)


def test_inputs_that_are_all_shared_are_refused(npz: Callable[..., str]) -> None:
    assert "no input has an axis that counts samples" in refused(
        npz(s=np.array(3.0, np.float32)), contract_of(("s", "float32", ()))
    )


@pytest.mark.parametrize(
    ("labels", "task", "said"),
    [
        (np.array(3), None, "12 samples and 1 label"),
        (np.zeros(12, "datetime64[s]"), None, "labels are of type datetime64"),
        (np.eye(4, dtype=int)[np.arange(12) % 4], None, "one-hot labels have 4 classes, the model gives 3"),
        (np.full((12, 3), 2), "classification", "neither class ids nor one-hot"),
        (np.zeros((12, 2, 2), int), "classification", "labels have shape [12, 2, 2]"),
        (np.full((12, 3), 2), "multilabel", "must be [samples, labels] of 0 and 1"),
        (np.arange(12) % 3, "reconstruction", "one output of the same shape as the one input"),
    ],
)
def test_labels_that_do_not_fit_the_task_are_refused(
    npz: Callable[..., str], labels: NDArray[Any], task: TaskKind | None, said: str
) -> None:
    assert said in refused(npz(row=floats(12, 4), y=labels), FOUR, task=task)


def test_labels_are_left_aside_for_a_task_without(npz: Callable[..., str]) -> None:
    dataset = load_data(npz(row=floats(12, 4), y=ids(12, 3)), FOUR, task="fidelity")
    assert (dataset.task, dataset.labels) == ("fidelity", None)
    assert noted(dataset, "labels are not used")


def test_missing_groups_are_refused(npz: Callable[..., str]) -> None:
    groups = np.where(np.arange(12) == 3, np.nan, 1.0)
    assert "groups are missing" in refused(npz(row=floats(12, 4), y=ids(12, 3), g=groups), FOUR, group="g")


def test_a_file_that_claims_to_unpack_to_more_than_memory_is_refused(
    npz: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgewright.compress.data.sources.arrays.MAX_DATA_BYTES", 1000)
    assert "the limit is 1000" in refused(npz(row=floats(120, 4), y=ids(120, 3)), FOUR)
