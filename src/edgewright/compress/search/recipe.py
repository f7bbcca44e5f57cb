"""A candidate as data: the steps that turn the original into it, in order, and the bench that performs them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, assert_never

import msgspec
import onnx
from numpy.typing import NDArray

from edgewright.compress.model.fusion_lint import mend
from edgewright.compress.model.graph import Graph, clean
from edgewright.compress.model.strip_metadata import compact
from edgewright.compress.quantize.activation_ranges import Observation, observe
from edgewright.compress.quantize.bit_packing import pack_integers
from edgewright.compress.quantize.dynamic_int8 import DynamicInt8, WeightBlocks, quantize_blocks, quantize_dynamic
from edgewright.compress.quantize.equalization import Equalize, Smooth, equalize, smooth
from edgewright.compress.quantize.preprocess_folding import FoldPreprocess, fold_preprocess
from edgewright.compress.quantize.sparsity import Sparsify, sparsify
from edgewright.compress.quantize.static_int8 import StaticInt8, quantize_static, tensors_to_observe
from edgewright.compress.quantize.weight_only import StoreHalf, StoreWeights, store_half, store_weights
from edgewright.contract.errors import CandidateError

__all__ = ["CleanUp", "Mend", "Recipe", "Step", "Trained", "Workbench"]


class Trained(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step", tag="trained"):
    """Go on with a network that training made (see `train/`) instead of the original.

    Attributes:
        network: sha256 of its ONNX file.
        title: What was trained, in a few words.
    """

    network: str
    title: str


class CleanUp(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step", tag="clean up"):
    """Fold constants and batch normalisation, drop dead nodes; every recipe begins with it."""


class Mend(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step", tag="mend"):
    """Mend what the fusion lint found in a model that is quantised already."""


Step: TypeAlias = (
    Trained
    | CleanUp
    | Mend
    | FoldPreprocess
    | Equalize
    | Smooth
    | Sparsify
    | StaticInt8
    | DynamicInt8
    | WeightBlocks
    | StoreWeights
    | StoreHalf
)


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Steps from the original to a candidate; no step is the original itself.

    Tight packing of integers and the removal of names end every recipe; they change no answer.
    """

    steps: tuple[Step, ...]

    @property
    def title(self) -> str:
        """Return a short name for people.

        >>> Recipe((CleanUp(), StaticInt8(activations="int8"))).title
        'static S8S8 minmax'
        """
        parts = [text for step in self.steps if (text := _title(step))]
        return ", ".join(parts) or ("clean-up only" if self.steps else "original")


def _title(step: Step) -> str:
    match step:
        case CleanUp():
            return ""
        case Trained():
            return step.title
        case StaticInt8():
            form = "U8S8" if step.activations == "uint8" else "S8S8"
            extra = " + bias correction" if step.bias_correction else ""
            count = len(step.float_layers)
            rest = f", {count} layer{'s' if count > 1 else ''} in float" if count else ""
            whole = "" if step.per_channel else " per tensor"
            bits = " + tight weights" if step.peaks else ""
            return f"static {form} {step.calibrator}{whole}{extra}{bits}{rest}"
        case StoreWeights():
            return "tightly stored weights" if step.peaks or step.peak < 127 else "8-bit stored weights"
        case WeightBlocks():
            return f"{step.bits}-bit blocks of {step.block}" + (" + tight weights" if step.peaks else "")
        case DynamicInt8():
            whole = "" if step.per_channel else " per tensor"
            return f"dynamic int8{whole}" + (" + tight weights" if step.peaks else "")
        case Sparsify():
            share = f"{step.pattern[0]}:{step.pattern[1]}" if step.pattern else f"{step.fraction:.0%}"
            return f"{share} sparse"
        case Mend():
            return "mended"
        case FoldPreprocess():
            return "raw samples"
        case StoreHalf():
            return "half-precision weights"
        case _:
            return str(type(step).__struct_config__.tag)


@dataclass(slots=True)
class Workbench:
    """Performs recipes on one model with one set of calibration data, and remembers common beginnings.

    Attributes:
        original: The model as it came.
        feeds: Calibration data, one dictionary of inputs per batch.
        seed: Of the sampling of observed values.
        trained: Gives the network with a digest; what training made.
    """

    original: onnx.ModelProto
    feeds: Sequence[Mapping[str, NDArray[Any]]]
    seed: int = 0
    trained: Callable[[str], onnx.ModelProto] = lambda digest: _nothing_trained(digest)
    _models: dict[tuple[Step, ...], onnx.ModelProto] = field(default_factory=dict)
    _seen: dict[tuple[Step, ...], dict[str, Observation]] = field(default_factory=dict)

    def build(self, recipe: Recipe) -> onnx.ModelProto:
        """Return the candidate.

        Raises:
            CandidateError: A step does not apply, or the runtime refuses what it made.
        """
        if not recipe.steps:
            return self.original
        return compact(pack_integers(self.after(recipe.steps)))

    def after(self, steps: tuple[Step, ...]) -> onnx.ModelProto:
        """Return the model after these steps, before packing."""
        if not steps:
            return self.original
        key = steps if _is_common(steps[-1]) else ()
        if key and key in self._models:
            return self._models[key]
        result = self._perform(steps[:-1], steps[-1])
        if key:
            self._models[key] = result
        return result

    def seen_after(self, steps: tuple[Step, ...]) -> dict[str, Observation]:
        """Return the observations of a float model."""
        if steps not in self._seen:
            model = self.after(steps)
            self._seen[steps] = observe(model, tensors_to_observe(Graph(model)), self.feeds, seed=self.seed)
        return self._seen[steps]

    def _perform(self, before: tuple[Step, ...], step: Step) -> onnx.ModelProto:
        model = self.after(before)
        match step:
            case Trained():
                return self.trained(step.network)
            case CleanUp():
                return clean(model)
            case Mend():
                return mend(model)[0]
            case FoldPreprocess():
                return fold_preprocess(model, step)
            case Equalize():
                return equalize(model, step)
            case Smooth():
                return smooth(model, step, self.seen_after(before))
            case Sparsify():
                return sparsify(model, step)
            case StaticInt8():
                return quantize_static(model, step, self.seen_after(before))
            case DynamicInt8():
                return quantize_dynamic(model, step)
            case WeightBlocks():
                return quantize_blocks(model, step)
            case StoreWeights():
                return store_weights(model, step)
            case StoreHalf():
                return store_half(model, step)
            case _:
                assert_never(step)


def _nothing_trained(digest: str) -> onnx.ModelProto:
    raise CandidateError(
        f"nothing was trained here, so there is no network {digest[:16]}", remedy="Train again without --resume."
    )


def _is_common(step: Step) -> bool:
    """Whether many recipes begin so."""
    return isinstance(step, Trained | CleanUp | Mend | FoldPreprocess | Equalize | Smooth | Sparsify)
