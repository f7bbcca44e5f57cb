"""Teachers: trained networks, run by onnxruntime, whose answers to augmented lessons are computed once for all."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgewright.compress.data.dataset import Dataset
from edgewright.compress.data.model_outputs import model_outputs, open_cpu_session
from edgewright.compress.train.data.batches import AugmentedViews, plain_inputs
from edgewright.compress.train.data.teacher_outputs import OutputMeaning, TeacherOutputs
from edgewright.compress.train.data.training_data import TrainingData
from edgewright.compress.train.loop.feature_losses import flat_features
from edgewright.compress.train.loop.losses import OutputActivation, output_logits, output_meaning
from edgewright.compress.train.loop.output_kind import feature_tensor_of, output_activation
from edgewright.contract.errors import CandidateError
from edgewright.contract.model.signature import ModelSignature, TensorSpec
from edgewright.runtime.options import RuntimeOptions

__all__ = ["Teacher", "compute_teacher_outputs"]

_BATCH_ROWS = 1024
_MAX_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Teacher:
    """One trained network or several, whose answers are averaged: of classes and flags as probabilities.

    Attributes:
        models: ONNX graphs with the lessons' inputs; the first one gives the features.
        weights: Of each in the mean; equal if empty.
        threads: Of onnxruntime.
    """

    models: tuple[onnx.ModelProto, ...]
    weights: tuple[float, ...] = ()
    threads: int = 1

    @property
    def fingerprint(self) -> str:
        """Return the sha256 over networks and weights, hex."""
        digest = hashlib.sha256(repr(self.weights).encode())
        for model in self.models:
            digest.update(model.SerializeToString(deterministic=True))
        return digest.hexdigest()

    def load(self, data: TrainingData, *, features: bool = False) -> "LoadedTeacher":
        """Load the networks, and find out from the validation rows what they mean.

        Raises:
            CandidateError: The runtime cannot load or run one, or features are wanted of one that has none.
        """
        weights = self.weights or (1.0,) * len(self.models)
        if len(weights) != len(self.models) or min(weights) < 0 or sum(weights) <= 0:
            raise CandidateError(
                f"{len(self.models)} teachers have the weights {list(weights)}",
                remedy="Give one weight above zero to each.",
            )
        feature = feature_tensor_of(self.models[0]) if features else None
        if features and feature is None:
            raise CandidateError("the teacher has no layer before its last", remedy="Distil its answers only.")
        options = RuntimeOptions(threads=self.threads)
        sessions = [
            open_cpu_session(_with_output(model, feature if place == 0 else None), options)
            for place, model in enumerate(self.models)
        ]
        endings = [output_activation(model) for model in self.models]
        shares = [weight / sum(weights) for weight in weights]
        opened = LoadedTeacher(sessions, endings, shares, feature is not None)
        first, _ = opened.predict_one(0, plain_inputs(data, data.validation[:_BATCH_ROWS]))
        opened.meaning = output_meaning(data.task, first, endings[0])
        return opened


@dataclass(slots=True)
class LoadedTeacher:
    """A teacher that is loaded."""

    sessions: list[ort.InferenceSession]
    output_activations: list[OutputActivation]
    shares: list[float]
    has_features: bool
    meaning: OutputMeaning = "values"

    def predict(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """Return the float outputs, the first in the form of `Answers`, and features [n, d]."""
        means: list[Tensor] = []
        features: Tensor | None = None
        for place, (ending, share) in enumerate(zip(self.output_activations, self.shares, strict=True)):
            outputs, found = self.predict_one(place, inputs)
            features = found if place == 0 else features
            outputs[0] = _probabilities(output_logits(outputs[0], self.meaning, ending), self.meaning)
            parts = [output.double() * share for output in outputs]
            means = parts if not means else [mean + part for mean, part in zip(means, parts, strict=True)]
        means[0] = _logits(means[0], self.meaning)
        return [mean.float() for mean in means], features

    def predict_one(self, place: int, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """Return the float outputs and the features of one network."""
        session = self.sessions[place]
        specs = session.get_inputs()
        if len(specs) != len(inputs):
            raise CandidateError(
                f"a teacher takes {len(specs)} inputs, the lessons have {len(inputs)}",
                remedy="Use a teacher with the original's inputs.",
            )
        arrays = {spec.name: tensor.numpy()[:, None] for spec, tensor in zip(specs, inputs, strict=True)}
        contract = ModelSignature(tuple(_spec(spec) for spec in specs), ())
        found = model_outputs(session, Dataset(arrays, None, None, "fidelity", ""), range(len(inputs[0])), contract)
        features = flat_features(torch.from_numpy(found.pop())) if self.has_features and place == 0 else None
        floats = [torch.from_numpy(output) for output in found if output.dtype.kind == "f"]
        if not floats:
            raise CandidateError("a teacher has no float output", remedy="Use one that gives scores.")
        return floats, features


def compute_teacher_outputs(
    teacher: Teacher,
    data: TrainingData,
    names: Sequence[str],
    *,
    seed: int,
    view_count: int = 8,
    features: bool = False,
    seconds: float | None = None,
    report_progress: Callable[[float], None] | None = None,
) -> TeacherOutputs:
    """Have a teacher answer augmented copies of the training rows.

    Args:
        teacher: Who knows.
        data: The rows.
        names: Admissible augmentations; without any there is one view.
        seed: Of the views.
        view_count: Copies, at most; fewer if time or a GiB of memory does not suffice.
        features: Whether to keep what its last layer reads.
        seconds: Time for it; at least one view is answered.
        report_progress: Called with the share that is done.

    Raises:
        CandidateError: It cannot be run.
    """
    began = time.monotonic()
    opened = teacher.load(data, features=features)
    validation, _ = opened.predict(plain_inputs(data, data.validation))
    wanted = view_count if names else 1
    seen = AugmentedViews(data, names, seed, wanted)
    outputs: list[list[NDArray[Any]]] = []
    inner: list[NDArray[Any]] = []
    while len(outputs) < wanted:
        parts, found = _view(opened, data, seen, len(outputs))
        outputs.append(parts)
        inner += [] if found is None else [found]
        each_seconds = (time.monotonic() - began) / len(outputs)
        size = sum(part.nbytes for part in parts) + (0 if found is None else found.nbytes)
        if report_progress is not None:
            report_progress(len(outputs) / wanted)
        late = seconds is not None and each_seconds * (len(outputs) + 1) > seconds
        if late or size * (len(outputs) + 1) > _MAX_BYTES:
            break
    digest = hashlib.sha256(f"{data.fingerprint}:{tuple(names)}:{seed}:{len(outputs)}:{features}".encode())
    digest.update(teacher.fingerprint.encode())
    return TeacherOutputs(
        train=tuple(np.stack(views) for views in zip(*outputs, strict=True)),
        validation=tuple(output.numpy() for output in validation),
        features=np.stack(inner) if inner else None,
        meaning=opened.meaning,
        augmentations=tuple(names),
        seed=seed,
        fingerprint=digest.hexdigest(),
        notes=(f"the teacher answered {len(outputs)} views of {len(data.train)} rows",),
    )


def _view(
    opened: LoadedTeacher, data: TrainingData, seen: AugmentedViews, view: int
) -> tuple[list[NDArray[Any]], NDArray[Any] | None]:
    """Return the answers to one view and the features, as half-precision floats except for values."""
    pieces: list[list[NDArray[Any]]] = []
    inner: list[NDArray[Any]] = []
    for start in range(0, len(data.train), _BATCH_ROWS):
        places = np.arange(start, min(start + _BATCH_ROWS, len(data.train)))
        outputs, features = opened.predict(seen.inputs(view, places))
        arrays = [output.numpy() for output in outputs]
        if opened.meaning != "values":
            arrays[0] = arrays[0].astype(np.float16)
        pieces.append(arrays)
        inner += [] if features is None else [features.numpy().clip(-6e4, 6e4).astype(np.float16)]
    return [np.concatenate(parts) for parts in zip(*pieces, strict=True)], np.concatenate(inner) if inner else None


def _probabilities(scores: Tensor, reading: OutputMeaning) -> Tensor:
    if reading == "classes":
        return torch.softmax(scores.double(), dim=1)
    return torch.sigmoid(scores.double()) if reading == "flags" else scores


def _logits(chances: Tensor, reading: OutputMeaning) -> Tensor:
    if reading == "classes":
        return torch.log(chances.clamp_min(1e-30))
    return torch.logit(chances, eps=1e-12) if reading == "flags" else chances


def _with_output(model: onnx.ModelProto, name: str | None) -> onnx.ModelProto:
    if name is None:
        return model
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.append(onnx.ValueInfoProto(name=name))
    return watched


def _spec(spec: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else "n" for size in spec.shape)
    return TensorSpec(spec.name, "float32", shape)
