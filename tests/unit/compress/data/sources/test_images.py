"""Folders of images: labels from folders, layout from the model, scaling stated or found out."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.datasets import load_sample_images

from edgewright.compress.data.loader import load_data
from edgewright.compress.model.loading import read_model
from edgewright.contract.errors import DataError
from edgewright.contract.model.preprocess import Preprocess
from edgewright.contract.model.signature import ModelSignature, TensorSpec

SIZE = 16


def contract(*shape: int | str, dtype: str = "float32") -> ModelSignature:
    return ModelSignature((TensorSpec("image", dtype, shape),), (TensorSpec("y", "float32", ("n", 2)),))


FIRST = contract("n", 3, SIZE, SIZE)
SCALED = Preprocess(scale=1 / 255)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of scikit-learn's two photos, one folder per photo."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name, photo in zip(("temple", "flower"), load_sample_images().images, strict=True):
        (folder / name).mkdir()
        for i in range(30):
            top, left = random.integers(0, photo.shape[0] - 64), random.integers(0, photo.shape[1] - 64)
            crop = Image.fromarray(photo[top : top + 64, left : left + 64])
            crop.resize((SIZE, SIZE)).save(folder / name / f"{i:02}.png")
    return folder


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def red_or_blue(folder: Path, offset: float, *, blue_first: bool) -> Path:
    """Make a classifier that compares the mean of two channels with a threshold in scaled units.

    It answers class 1 if channel 0 beats `offset`, so only with its own scaling and colour order is it right.
    """
    weights = np.zeros((2, 3), np.float32)
    weights[1, 2 if blue_first else 0] = 1
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.array([offset, 0], np.float32), "b"),
        ],
    )
    path = folder / "model.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    onnx.checker.check_model(str(path))
    return path


def coloured(folder: Path) -> Path:
    """Sixty images, half with strong red (class 1); green and blue are noise around the middle."""
    random = np.random.default_rng(1)
    for label, name in enumerate(("dim", "red")):
        (folder / name).mkdir(parents=True)
        for i in range(30):
            image = random.integers(0, 256, (SIZE, SIZE, 3))
            image[..., 0] = (
                random.integers(150, 220, (SIZE, SIZE)) if label else random.integers(30, 100, (SIZE, SIZE))
            )
            Image.fromarray(image.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


def test_folders_are_classes_in_sorted_order(photos: Path) -> None:
    dataset = load_data(str(photos), FIRST, preprocess=SCALED)
    assert len(dataset) == 60
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0] * 30 + [1] * 30
    expected = pixels(photos / "flower" / "00.png").transpose(2, 0, 1) / 255
    np.testing.assert_allclose(dataset.inputs_of(0)["image"][0], expected, atol=1e-6)
    assert any("60 images of 2 classes: flower, temple" in note for note in dataset.notes)


def test_classes_txt_gives_the_order_of_classes(photos: Path, tmp_path: Path) -> None:
    ordered = tmp_path / "ordered"
    ordered.mkdir()
    for name in ("temple", "flower"):
        (ordered / name).symlink_to(photos / name)
    (ordered / "classes.txt").write_text("temple\nflower\n")
    labels = load_data(str(ordered), FIRST, preprocess=SCALED).labels
    assert labels is not None
    assert labels.tolist() == [0] * 30 + [1] * 30
    first = load_data(str(ordered), FIRST, preprocess=SCALED).inputs_of(0)["image"][0]
    np.testing.assert_allclose(first, pixels(photos / "temple" / "00.png").transpose(2, 0, 1) / 255, atol=1e-6)
    (ordered / "classes.txt").write_text("temple\n")
    with pytest.raises(DataError, match="does not list the class folders flower"):
        load_data(str(ordered), FIRST, preprocess=SCALED)


def test_the_layout_follows_the_model(photos: Path) -> None:
    last = load_data(str(photos), contract("n", SIZE, SIZE, 3), preprocess=SCALED)
    first = load_data(str(photos), FIRST, preprocess=SCALED)
    assert (last.inputs_of(5)["image"][0].transpose(2, 0, 1) == first.inputs_of(5)["image"][0]).all()


def test_grey_models_get_grey_images(photos: Path) -> None:
    assert load_data(str(photos), contract(1, 1, SIZE, SIZE), preprocess=SCALED).inputs_of(0)["image"].shape == (
        1,
        1,
        SIZE,
        SIZE,
    )


def test_images_are_resized_to_the_model_and_it_is_noted(photos: Path) -> None:
    dataset = load_data(str(photos), contract("n", 3, 8, 12), preprocess=SCALED)
    assert dataset.inputs_of(0)["image"].shape == (1, 3, 8, 12)
    assert any("60 images were resized to 8 x 12" in note for note in dataset.notes)
    free = load_data(str(photos), contract("n", 3, "h", "w"), preprocess=Preprocess(scale=1 / 255, size=(6, 4)))
    assert free.inputs_of(0)["image"].shape == (1, 3, 6, 4)


def test_a_uint8_model_gets_raw_pixels(photos: Path) -> None:
    dataset = load_data(str(photos), contract("n", SIZE, SIZE, 3, dtype="uint8"), preprocess=Preprocess())
    assert (dataset.inputs_of(0)["image"][0] == pixels(photos / "flower" / "00.png")).all()


@pytest.mark.parametrize(
    ("offset", "blue_first", "way"),
    [(0.5, False, "0..1 RGB"), (0.5, True, "0..1 BGR"), (125.0, False, "0..255 RGB"), (0.0, True, "-1..1 BGR")],
)
def test_scaling_and_colour_order_are_found_out_and_reported(
    tmp_path: Path, offset: float, blue_first: bool, way: str
) -> None:
    model = read_model(red_or_blue(tmp_path, offset, blue_first=blue_first))
    dataset = load_data(str(coloured(tmp_path / "set")), model.contract, model=model.path, seed=3)
    found = next(note for note in dataset.notes if "found out" in note)
    assert f"accuracy: {way} (" in found
    assert f"{way} 1.000" in found
    assert dataset.preprocess is not None
    assert dataset.preprocess.colour == way[-3:]


def test_a_model_that_no_customary_scaling_serves_is_reported(photos: Path, tmp_path: Path) -> None:
    model = read_model(red_or_blue(tmp_path, 1e6, blue_first=False))
    dataset = load_data(str(photos), model.contract, model=model.path)
    assert any("no customary preprocessing beats" in note for note in dataset.notes)


def test_scaling_that_is_neither_stated_nor_to_be_found_out_is_refused(photos: Path, tmp_path: Path) -> None:
    for i, path in enumerate(sorted((photos / "temple").iterdir())):
        (tmp_path / f"{i}.png").write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="scaling is not stated"):
        load_data(str(tmp_path), FIRST)
    unlabelled = load_data(str(tmp_path), FIRST, preprocess=SCALED)
    assert (len(unlabelled), unlabelled.task) == (30, "fidelity")


def test_other_files_are_skipped_and_counted(photos: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for path in (photos / "temple").iterdir():
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "stray.png").write_bytes(b"")
    dataset = load_data(str(tmp_path), FIRST, preprocess=SCALED)
    assert any(note.startswith("2 files of") for note in dataset.notes)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(64)])
def test_an_unreadable_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.png").write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png cannot be read"):
        load_data(str(tmp_path), FIRST, preprocess=SCALED)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (tmp_path / "a").mkdir()
    for edge in (12, 64):  # beyond the limit Pillow warns, beyond twice the limit it refuses
        Image.new("RGB", (edge, edge)).save(tmp_path / "a" / "bomb.png")
        with pytest.raises(DataError, match="would unpack to more than 100 pixels"):
            load_data(str(tmp_path), FIRST, preprocess=SCALED)


def test_folders_without_images_and_models_without_image_inputs_are_refused(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        load_data(str(tmp_path), FIRST, preprocess=SCALED)
    with pytest.raises(DataError, match="not one of an image"):
        load_data(str(photos), contract("n", 64), preprocess=SCALED)
    with pytest.raises(DataError, match="no columns"):
        load_data(str(photos), FIRST, preprocess=SCALED, label="y")


def test_images_of_different_sizes_for_a_model_of_free_size_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for edge in (8, 9):
        Image.new("RGB", (edge, edge)).save(tmp_path / "a" / f"{edge}.png")
    with pytest.raises(DataError, match="leaves the size free"):
        load_data(str(tmp_path), contract("n", 3, "h", "w"), preprocess=SCALED)
