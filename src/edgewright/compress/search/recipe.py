"""A candidate as data: the steps that turn the original into it, in order, and the bench that performs them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, assert_never

import msgspec
import onnx
from numpy.typing import NDArray

from edgewright.compress.model.fusion_lint import fix_model
from edgewright.compress.model.graph import Graph, clean_model
from edgewright.compress.model.strip_metadata import strip_model
from edgewright.compress.quantize.activation_ranges import TensorStatistics, collect_statistics
from edgewright.compress.quantize.bit_packing import pack_integers
from edgewright.compress.quantize.dynamic_int8 import (
    BlockwiseWeights,
    DynamicInt8,
    quantize_blockwise,
    quantize_dynamic,
)
from edgewright.compress.quantize.equalization import (
    CrossLayerEqualization,
    SmoothQuant,
    equalize_layers,
    smooth_activations,
)
from edgewright.compress.quantize.preprocess_folding import FoldPreprocess, fold_preprocess
from edgewright.compress.quantize.sparsity import MagnitudePruning, prune_by_magnitude
from edgewright.compress.quantize.static_int8 import StaticInt8, quantize_static, tensors_to_observe
from edgewright.compress.quantize.weight_only import (
    StoreHalfWeights,
    StoreIntegerWeights,
    store_half_weights,
    store_integer_weights,
)
from edgewright.contract.errors import CandidateError

__all__ = ["CandidateBuilder", "CleanGraph", "FixFusion", "Recipe", "RecipeStep", "UseTrainedNetwork"]


class UseTrainedNetwork(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step", tag="trained"):
    """Go on with a network that training made (see `train/`) instead of the original.

    Attributes:
        network: sha256 of its ONNX file.
        title: What was trained, in a few words.
    """

    network: str
    title: str


class CleanGraph(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step", tag="clean up"):
    """Fold constants and batch normalisation, drop dead nodes; every recipe begins with it."""


class FixFusion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step", tag="mend"):
    """Mend what the fusion lint found in a model that is quantised already."""


RecipeStep: TypeAlias = (
    UseTrainedNetwork
    | CleanGraph
    | FixFusion
    | FoldPreprocess
    | CrossLayerEqualization
    | SmoothQuant
    | MagnitudePruning
    | StaticInt8
    | DynamicInt8
    | BlockwiseWeights
    | StoreIntegerWeights
    | StoreHalfWeights
)


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Steps from the original to a candidate; no step is the original itself.

    Tight packing of integers and the removal of names end every recipe; they change no answer.
    """

    steps: tuple[RecipeStep, ...]

    @property
    def title(self) -> str:
        """Return a short name for people.

        >>> Recipe((CleanGraph(), StaticInt8(activations="int8"))).title
        'static S8S8 minmax'
        """
        parts = [text for step in self.steps if (text := _title(step))]
        return ", ".join(parts) or ("clean-up only" if self.steps else "original")


def _title(step: RecipeStep) -> str:
    match step:
        case CleanGraph():
            return ""
        case UseTrainedNetwork():
            return step.title
        case StaticInt8():
            form = "U8S8" if step.activations == "uint8" else "S8S8"
            extra = " + bias correction" if step.bias_correction else ""
            count = len(step.float_layers)
            rest = f", {count} layer{'s' if count > 1 else ''} in float" if count else ""
            whole = "" if step.per_channel else " per tensor"
            bits = " + tight weights" if step.max_integer_by_layer else ""
            return f"static {form} {step.calibrator}{whole}{extra}{bits}{rest}"
        case StoreIntegerWeights():
            return (
                "tightly stored weights"
                if step.max_integer_by_layer or step.max_integer < 127
                else "8-bit stored weights"
            )
        case BlockwiseWeights():
            return f"{step.bits}-bit blocks of {step.block_size}" + (
                " + tight weights" if step.max_integer_by_layer else ""
            )
        case DynamicInt8():
            whole = "" if step.per_channel else " per tensor"
            return f"dynamic int8{whole}" + (" + tight weights" if step.max_integer_by_layer else "")
        case MagnitudePruning():
            share = f"{step.pattern[0]}:{step.pattern[1]}" if step.pattern else f"{step.fraction:.0%}"
            return f"{share} sparse"
        case FixFusion():
            return "mended"
        case FoldPreprocess():
            return "raw samples"
        case StoreHalfWeights():
            return "half-precision weights"
        case _:
            return str(type(step).__struct_config__.tag)


@dataclass(slots=True)
class CandidateBuilder:
    """Performs recipes on one model with one set of calibration data, and remembers common beginnings.

    Attributes:
        original: The model as it came.
        calibration_batches: Calibration data, one dictionary of inputs per batch.
        seed: Of the sampling of observed values.
        load_trained: Gives the network with a digest; what training made.
    """

    original: onnx.ModelProto
    calibration_batches: Sequence[Mapping[str, NDArray[Any]]]
    seed: int = 0
    load_trained: Callable[[str], onnx.ModelProto] = lambda digest: _nothing_trained(digest)
    _models: dict[tuple[RecipeStep, ...], onnx.ModelProto] = field(default_factory=dict)
    _statistics: dict[tuple[RecipeStep, ...], dict[str, TensorStatistics]] = field(default_factory=dict)

    def build(self, recipe: Recipe) -> onnx.ModelProto:
        """Return the candidate.

        Raises:
            CandidateError: A step does not apply, or the runtime refuses what it made.
        """
        if not recipe.steps:
            return self.original
        return strip_model(pack_integers(self.model_after(recipe.steps)))

    def model_after(self, steps: tuple[RecipeStep, ...]) -> onnx.ModelProto:
        """Return the model after these steps, before packing."""
        if not steps:
            return self.original
        key = steps if _is_common(steps[-1]) else ()
        if key and key in self._models:
            return self._models[key]
        result = self._apply(steps[:-1], steps[-1])
        if key:
            self._models[key] = result
        return result

    def statistics_after(self, steps: tuple[RecipeStep, ...]) -> dict[str, TensorStatistics]:
        """Return the observations of a float model."""
        if steps not in self._statistics:
            model = self.model_after(steps)
            self._statistics[steps] = collect_statistics(
                model, tensors_to_observe(Graph(model)), self.calibration_batches, seed=self.seed
            )
        return self._statistics[steps]

    def _apply(self, before: tuple[RecipeStep, ...], step: RecipeStep) -> onnx.ModelProto:
        model = self.model_after(before)
        match step:
            case UseTrainedNetwork():
                return self.load_trained(step.network)
            case CleanGraph():
                return clean_model(model)
            case FixFusion():
                return fix_model(model)[0]
            case FoldPreprocess():
                return fold_preprocess(model, step)
            case CrossLayerEqualization():
                return equalize_layers(model, step)
            case SmoothQuant():
                return smooth_activations(model, step, self.statistics_after(before))
            case MagnitudePruning():
                return prune_by_magnitude(model, step)
            case StaticInt8():
                return quantize_static(model, step, self.statistics_after(before))
            case DynamicInt8():
                return quantize_dynamic(model, step)
            case BlockwiseWeights():
                return quantize_blockwise(model, step)
            case StoreIntegerWeights():
                return store_integer_weights(model, step)
            case StoreHalfWeights():
                return store_half_weights(model, step)
            case _:
                assert_never(step)


def _nothing_trained(digest: str) -> onnx.ModelProto:
    raise CandidateError(
        f"nothing was trained here, so there is no network {digest[:16]}", remedy="Train again without --resume."
    )


def _is_common(step: RecipeStep) -> bool:
    """Whether many recipes begin so."""
    return isinstance(
        step,
        UseTrainedNetwork
        | CleanGraph
        | FixFusion
        | FoldPreprocess
        | CrossLayerEqualization
        | SmoothQuant
        | MagnitudePruning,
    )
