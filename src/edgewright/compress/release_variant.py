"""From what `compress` wrote, or a bare model, to what a release holds for one device class.

The golden inputs are drawn at random within the ranges of the input contract: they must never be anybody's data. So
they show that the runtime computes what it computed here, and nothing about accuracy.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from edgewright.compress.data.loader import load_data
from edgewright.compress.data.model_outputs import open_cpu_session
from edgewright.compress.model.loading import read_model
from edgewright.compress.uncertainty.reference_profile import MIN_PROFILE_SAMPLES, build_reference_profile
from edgewright.contract.compression_report import CompressionReport
from edgewright.contract.device_class import DeviceClass
from edgewright.contract.errors import InputError
from edgewright.contract.model.guard import GuardRules
from edgewright.contract.model.preprocess import Preprocess
from edgewright.contract.model.reference_profile import ReferenceProfile
from edgewright.contract.model.signature import ModelSignature, TensorSpec
from edgewright.contract.release import DeviceRequirement, Lineage, ReleaseEvidence, SelfTest, StoredFile, Variant
from edgewright.contract.schema import decode_record
from edgewright.runtime.options import RuntimeOptions

__all__ = ["BuiltVariant", "ReferenceData", "build_image_variant", "build_variant"]

_MODEL, _GOLDEN, _PROFILE = "model.onnx", "golden.npz", "profile.json"
_SAMPLES = 8
# From so much of an operator set on, which runtime reads it.
_RUNTIMES = (
    (24, "1.24"),
    (23, "1.22"),
    (22, "1.20"),
    (21, "1.18"),
    (20, "1.17"),
    (19, "1.16"),
    (18, "1.14"),
    (17, "1.12"),
)
# Other machines' kernels round otherwise; a broken model differs by the whole spread.
_TOLERANCE = 0.1
# What a symbolic axis other than the batch is taken to be.
_SYMBOLIC_SIZE = 1


@dataclass(frozen=True, slots=True)
class ReferenceData:
    """Samples of what devices will see.

    Attributes:
        source: A path, or `module:function`.
        in_order: Whether samples of each group (all, without groups) are one device's, in order.
        interval_seconds: Time between two of them, 0 if unknown.
        group: Column or array with the group (subject, machine) of each.
        preprocess: From raw samples to the first input.
    """

    source: str
    in_order: bool = False
    interval_seconds: float = 0.0
    group: str | None = None
    preprocess: Preprocess | None = None


@dataclass(frozen=True, slots=True)
class BuiltVariant:
    """A variant and the bytes of its files.

    Attributes:
        variant: Names the files.
        contents: By name.
        lineage: As far as the folder tells.
    """

    variant: Variant
    contents: dict[str, bytes]
    lineage: Lineage


def build_variant(
    place: Path,
    device_class: DeviceClass,
    *,
    preprocess: Preprocess | None = None,
    guard: GuardRules | None = None,
    reference: ReferenceData | None = None,
    seed: int = 0,
) -> BuiltVariant:
    """Return the variant of a model for a device class.

    Args:
        place: A folder that `compress` wrote, or an ONNX file.
        device_class: That it is for.
        preprocess: From raw samples to the first input.
        guard: What is done with inputs and outputs that break the contract; the usual rules if not given.
        reference: To make the reference profile of; that of the folder is taken if not given.
        seed: Of the golden inputs.

    Raises:
        InputError: There is no model, or the report beside it is about another one.
        ModelError: The model cannot be used.
    """
    path = place / _MODEL if place.is_dir() else place
    loaded = read_model(path)
    report = _report(place / "report.json") if place.is_dir() else None
    model = (
        loaded.proto.SerializeToString() if loaded.proto.ByteSize() != path.stat().st_size else path.read_bytes()
    )
    if report is not None and report.chosen.sha256 != hashlib.sha256(model).hexdigest():
        raise InputError(
            f"{place / 'report.json'} is about another model than {path.name}", remedy="Run compress again."
        )
    contract = loaded.contract if report is None else report.contract
    contents = {_MODEL: model, _GOLDEN: _make_golden_samples(model, contract, seed)}
    profile = _reference_profile(place, loaded.proto, contract, reference)
    if profile is not None:
        contents[_PROFILE] = msgspec.json.encode(profile)
    variant = Variant(
        device_class=device_class.name,
        files=tuple(
            StoredFile(name, hashlib.sha256(content).hexdigest(), len(content))
            for name, content in contents.items()
        ),
        signature=contract,
        preprocess=preprocess,
        self_test=SelfTest(_GOLDEN, _TOLERANCE, _SAMPLES),
        reference_profile="" if profile is None else _PROFILE,
        budget=device_class.budget,
        evidence=ReleaseEvidence() if report is None else _release_evidence(report),
        requirement=DeviceRequirement(
            min_runtime_version=_runtime_for(loaded.proto), providers=device_class.providers
        ),
        guard=guard or GuardRules(),
        runtime_options=msgspec.to_builtins(
            RuntimeOptions(threads=device_class.threads, providers=device_class.providers)
        ),
    )
    return BuiltVariant(variant, contents, Lineage() if report is None else _lineage(report))


def _reference_profile(
    place: Path, model: onnx.ModelProto, contract: ModelSignature, reference: ReferenceData | None
) -> ReferenceProfile | None:
    """Return the reference profile: of the given samples, or the one that compress wrote, or none."""
    if reference is not None:
        dataset = load_data(reference.source, contract, group=reference.group, preprocess=reference.preprocess)
        found = build_reference_profile(
            model, dataset, contract, in_order=reference.in_order, interval_seconds=reference.interval_seconds
        )
        if found is None:
            raise InputError(
                f"{reference.source} holds {len(dataset)} samples, or the model takes no numbers",
                remedy=f"Give at least {MIN_PROFILE_SAMPLES} samples for a reference profile.",
            )
        return found
    path = place / _PROFILE
    if not place.is_dir() or not path.exists():
        return None
    try:
        return decode_record(path.read_bytes(), type=ReferenceProfile)
    except (OSError, msgspec.MsgspecError, InputError) as error:
        raise InputError(f"{path} cannot be read: {error}", remedy="Run compress again.") from error


def _runtime_for(model: onnx.ModelProto) -> str:
    """Return the lowest onnxruntime that reads a model's operator set.

    Source: https://onnxruntime.ai/docs/reference/compatibility.html#onnx-opset-support
    """
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    return next((runtime for least, runtime in _RUNTIMES if opset >= least), "1.9")


def build_image_variant(path: Path, device_class: str) -> BuiltVariant:
    """Return the variant of an image that the platform's installer takes: a firmware, or the agent.

    Raises:
        InputError: There is no such file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", remedy="Name the image.") from error
    file = StoredFile("image", hashlib.sha256(content).hexdigest(), len(content))
    return BuiltVariant(Variant(device_class, (file,)), {"image": content}, Lineage())


def _report(path: Path) -> CompressionReport:
    try:
        return decode_record(path.read_bytes(), type=CompressionReport)
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist", remedy="Name a folder that 'edgewright compress' wrote, or an ONNX file."
        ) from None
    except (OSError, msgspec.MsgspecError) as error:
        raise InputError(f"{path} cannot be read: {error}", remedy="Run compress again.") from error


def _release_evidence(report: CompressionReport) -> ReleaseEvidence:
    figures = {
        name: value
        for name in (
            "size_bytes",
            "latency_p50_ms",
            "latency_p95_ms",
            "latency_ratio",
            "peak_memory_bytes",
            "energy_mj",
        )
        if (value := getattr(report.chosen, name, None)) is not None
    }
    return ReleaseEvidence(report.certificate, figures)


def _lineage(report: CompressionReport) -> Lineage:
    return Lineage(
        data={"held back": str(report.data.get("fingerprint", ""))},
        recipe=tuple(report.chosen.recipe or ()),
        original_sha256=report.original.sha256,
        edgewright_version=str(report.versions.get("edgewright", "")),
        environment={name: str(version) for name, version in report.versions.items() if name != "edgewright"},
    )


def _make_golden_samples(model: bytes, contract: ModelSignature, seed: int) -> bytes:
    session = open_cpu_session(model)
    random = np.random.default_rng(seed)
    inputs = {spec.name: _draw_samples(spec, random) for spec in contract.inputs}
    arrays: dict[str, NDArray[Any]] = {f"input:{name}": values for name, values in inputs.items()}
    rows = [
        session.run(None, {name: values[number : number + 1] for name, values in inputs.items()})
        for number in range(_SAMPLES)
    ]
    for place, spec in enumerate(contract.outputs):
        arrays[f"output:{spec.name}"] = np.concatenate([np.asarray(row[place]) for row in rows])
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def _draw_samples(spec: TensorSpec, random: np.random.Generator) -> NDArray[Any]:
    """Draw samples within an input's range: [samples, ...]."""
    shape = (_SAMPLES, *(size if isinstance(size, int) else _SYMBOLIC_SIZE for size in spec.shape[1:]))
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "iu":
        least = 0 if spec.low is None else int(spec.low)
        most = 1 if spec.high is None else int(spec.high)
        return random.integers(least, most, shape, dtype=dtype, endpoint=True)
    low, high = (0.0, 1.0) if spec.low is None or spec.high is None else (spec.low, spec.high)
    return random.uniform(low, high, shape).astype(dtype)
