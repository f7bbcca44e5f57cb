"""Which recipes there are for a model, and in which order to try them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import onnx

from edgewright.compress.model.graph import MIN_WORKING_OPSET, Graph, attribute
from edgewright.compress.model.layers import layer_weights, multiply_accumulates
from edgewright.compress.quantize.dynamic_int8 import BlockwiseWeights, DynamicInt8, matrix_layers
from edgewright.compress.quantize.equalization import CrossLayerEqualization, SmoothQuant, layer_pairs
from edgewright.compress.quantize.preprocess_folding import FoldPreprocess
from edgewright.compress.quantize.sensitivity import allocate_bits
from edgewright.compress.quantize.sparsity import MagnitudePruning
from edgewright.compress.quantize.static_int8 import StaticInt8, integer_layers
from edgewright.compress.quantize.weight_only import StoreHalfWeights, StoreIntegerWeights
from edgewright.compress.search.recipe import CleanGraph, FixFusion, Recipe, RecipeStep, UseTrainedNetwork

__all__ = ["AS_TRAINED_FORMAT", "ParameterSampler", "Params", "SearchSpace", "build_search_space"]

Params = dict[str, Any]

# The form of a network whose integers were trained: nothing is left to do but to pack them.
AS_TRAINED_FORMAT = "as trained"

_CALIBRATORS = ("minmax", "percentile", "mse", "entropy")
# Signal to noise of the answers that tightly stored weights may cause, dB.
_BIT_LADDER = ("8 bit", "60", "54", "48", "44", "40", "36", "33", "30", "27", "24", "21", "18", "15")
# Looser than what 8-bit kernels hold; only for weights that are turned into floats again.
_FLOAT_ONLY = ("60", "54", "48", "44")
# Signal to noise that the integer layers together may cause, dB: the noisiest for their work stay in float.
_MIXED_DB = (45, 38, 32, 26, 20)


class ParameterSampler(Protocol):
    """What proposes values: an Optuna trial, or anything with its `suggest_categorical`."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Return one of the choices."""


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """The recipes for one model.

    Attributes:
        clean: The cleaned model.
        quantization_formats: Ways to compute, "float" always among them.
        can_equalize: Whether layers can be equalised.
        float_layer_sets: Name to layers that stay in float.
        weight_noise: Layer to its noise in few bits.
        signed_first: Whether the target prefers signed activations (ARM).
        fold: The step that folds preprocessing in, if asked for.
        max_int8_weight: Largest weight integer that the target's 8-bit kernels take without saturating.
        trained_network: The trained network that every recipe starts from; the original if empty.
        architecture_key: Of networks that differ in weights only, what they have in common; their latency is measured
            once.
    """

    clean: onnx.ModelProto
    quantization_formats: tuple[str, ...]
    can_equalize: bool
    float_layer_sets: Mapping[str, tuple[str, ...]]
    weight_noise: Mapping[str, float]
    signed_first: bool = False
    fold: tuple[FoldPreprocess, ...] = ()
    max_int8_weight: int = 127
    trained_network: tuple[UseTrainedNetwork, ...] = ()
    architecture_key: str = ""

    @property
    def network(self) -> str:
        """Digest of the trained network, "" for the original."""
        return self.trained_network[0].network if self.trained_network else ""

    def sample(self, chooser: ParameterSampler) -> Params:
        """Let the chooser fill in every parameter that matters for the form it picks."""
        params: Params = {"form": chooser.suggest_categorical("form", list(self.quantization_formats))}
        if params["form"] == "static":
            params["activations"] = chooser.suggest_categorical("activations", ["uint8", "int8"])
            params["calibrator"] = chooser.suggest_categorical("calibrator", list(_CALIBRATORS))
            params["per_channel"] = chooser.suggest_categorical("per_channel", [True, False])
            params["bias_correction"] = chooser.suggest_categorical("bias_correction", [True, False])
            params["before"] = chooser.suggest_categorical(
                "before", ["nothing", "equalize", "smooth"] if self.can_equalize else ["nothing"]
            )
            params["in_float"] = chooser.suggest_categorical("in_float", list(self.float_layer_sets))
        elif params["form"] == "dynamic":
            params["per_channel"] = chooser.suggest_categorical("per_channel", [True, False])
        elif params["form"] == "blocks":
            params["bits"] = chooser.suggest_categorical("bits", [4, 8])
            params["block"] = chooser.suggest_categorical("block", [16, 32, 64, 128])
        elif params["form"] == "float":
            params["half"] = chooser.suggest_categorical("half", [False, True])
        if self.weight_noise and not params.get("half"):
            params["weights"] = chooser.suggest_categorical("weights", list(_BIT_LADDER))
        return params

    def initial_candidates(self) -> list[Params]:
        """Return what an experienced person would try, most promising first."""
        stored = {"weights": "8 bit"} if self.weight_noise else {}
        if AS_TRAINED_FORMAT in self.quantization_formats:
            return [self._of_network({"form": AS_TRAINED_FORMAT})]
        ideas: list[Params] = [{"form": "float", "half": False, **stored}]
        if "mended" in self.quantization_formats:
            ideas.append({"form": "mended", **stored})
        if "static" in self.quantization_formats:
            usual = "int8" if self.signed_first else "uint8"
            base: Params = {
                "form": "static",
                "activations": usual,
                "calibrator": "minmax",
                "per_channel": True,
                "bias_correction": False,
                "before": "nothing",
                "in_float": "none",
                **stored,
            }
            ideas.append(base)
            ideas += [{**base, "calibrator": calibrator} for calibrator in ("mse", "percentile")]
            ideas.append({**base, "per_channel": False})
            mixed = [name for name in self.float_layer_sets if name == "depthwise" or name.startswith("for ")]
            ideas += [{**base, "in_float": name} for name in mixed]
            ideas.append({**base, "bias_correction": True})
        if "dynamic" in self.quantization_formats:
            ideas += [{"form": "dynamic", "per_channel": channels, **stored} for channels in (True, False)]
        if "blocks" in self.quantization_formats:
            ideas += [
                {"form": "blocks", "bits": bits, "block": block, **stored} for bits, block in ((4, 32), (8, 128))
            ]
        if "static" in self.quantization_formats:
            ideas.append({**base, "activations": "uint8" if self.signed_first else "int8"})
            if self.can_equalize:
                ideas += [{**base, "before": "equalize"}, {**base, "before": "smooth"}]
        ideas.append({"form": "float", "half": True})
        if self.weight_noise:
            ideas += [
                {"form": "sparse", "pattern": "2:4", **stored},
                {"form": "sparse", "pattern": "50 %", **stored},
            ]
        return [self._of_network(params) for params in ideas]

    def _of_network(self, params: Params) -> Params:
        return {**params, "network": self.network} if self.trained_network else params

    def with_fewer_bits(self, params: Params) -> list[Params]:
        """Return the same form with ever tighter weights."""
        if "weights" not in params or params["form"] == "sparse":
            return []
        steps = [w for w in _BIT_LADDER[1:] if params["form"] == "float" or w not in _FLOAT_ONLY]
        return [{**params, "weights": weights} for weights in steps]

    def recipe(self, params: Params) -> Recipe:
        """Return the steps that the parameters stand for."""
        if params["form"] == AS_TRAINED_FORMAT:
            return Recipe(self.trained_network)
        steps: list[RecipeStep] = [
            *self.trained_network,
            FixFusion() if params["form"] == "mended" else CleanGraph(),
            *self.fold,
        ]
        weights = params.get("weights")
        stored = weights is not None
        peaks = (
            {}
            if weights in (None, "8 bit")
            else allocate_bits(Graph(self.clean), self.weight_noise, float(weights))
        )
        small = {layer: peak for layer, peak in peaks.items() if peak < 127}
        match params["form"]:
            case "static":
                if params["before"] == "equalize":
                    steps.append(CrossLayerEqualization())
                elif params["before"] == "smooth":
                    steps.append(SmoothQuant())
                steps.append(
                    StaticInt8(
                        activations=params["activations"],
                        per_channel=params["per_channel"],
                        calibrator=params["calibrator"],
                        bias_correction=params["bias_correction"],
                        float_layers=self.float_layer_sets[params["in_float"]],
                        max_integer=self.max_int8_weight,
                        max_integer_by_layer=small,
                    )
                )
            case "dynamic":
                steps.append(
                    DynamicInt8(
                        per_channel=params["per_channel"],
                        max_integer=self.max_int8_weight,
                        max_integer_by_layer=small,
                    )
                )
            case "blocks":
                steps.append(
                    BlockwiseWeights(bits=params["bits"], block_size=params["block"], max_integer_by_layer=small)
                )
            case "sparse":
                steps.append(MagnitudePruning(pattern=(2, 4) if params["pattern"] == "2:4" else None))
            case "float":
                if params["half"]:
                    steps.append(StoreHalfWeights())
                    stored = False
        if stored:
            steps.append(StoreIntegerWeights(max_integer_by_layer=peaks))
        return Recipe(tuple(steps))

    def latency_key(self, params: Params) -> str:
        """Return what decides the latency: weights that are unpacked at load cost nothing at run time."""
        if params["form"] == AS_TRAINED_FORMAT:
            return self.architecture_key
        name = f"{self.architecture_key}: " if self.trained_network else ""
        if params["form"] in ("float", "sparse"):
            return f"{name}float"
        return name + ", ".join(
            f"{key}={value}" for key, value in sorted(params.items()) if key not in _LATENCY_NEUTRAL
        )


# Parameters that change values or bytes, not which kernels run.
_LATENCY_NEUTRAL = ("weights", "calibrator", "bias_correction", "before", "network")


def build_search_space(
    clean: onnx.ModelProto,
    weight_noise: Mapping[str, float],
    integer_noise: Mapping[str, float],
    *,
    signed_first: bool = False,
    fold: tuple[FoldPreprocess, ...] = (),
    max_int8_weight: int = 127,
    trained_network: tuple[UseTrainedNetwork, ...] = (),
) -> SearchSpace:
    """Return the recipes that make sense for a cleaned model.

    Args:
        clean: The cleaned model.
        weight_noise: Layer to noise with few bits, empty if nothing can be stored tightly.
        integer_noise: Layer to noise when it runs on integers, empty if none can.
        signed_first: Whether signed activations are the usual form on the target.
        fold: The step that folds preprocessing in; `clean` is the model after it.
        max_int8_weight: Largest weight integer that the target's 8-bit kernels take without saturating.
        trained_network: The trained network that `clean` was made of, if it is not the original.
    """
    graph = Graph(clean)
    quantized = any(node.op_type == "QuantizeLinear" for node in graph.nodes)
    layers = [weight.layer for weight in integer_layers(graph)]
    forms = ["float"]
    if quantized:
        forms.append("mended")
    elif layers and graph.opset >= MIN_WORKING_OPSET:
        forms.append("static")
    recurrent = any(node.op_type == "LSTM" for node in graph.nodes)
    matrices = {node.name for node in matrix_layers(graph)}
    if not quantized and (recurrent or _share_of(matrices, graph) > 0.02):
        forms.append("dynamic")
    if not quantized and _share_of(matrices, graph) > 0.1:
        forms.append("blocks")
    depthwise = tuple(
        node.name for node in graph.nodes if node.op_type == "Conv" and attribute(node, "group", 1) > 1
    )
    noisy = sorted(integer_noise, key=lambda layer: -integer_noise[layer])
    sets: dict[str, tuple[str, ...]] = {"none": ()}
    if layers:
        named = {
            "first": tuple(layers[:1]),
            "last": tuple(layers[-1:]),
            "first and last": tuple(dict.fromkeys((layers[0], layers[-1]))),
            "depthwise": tuple(name for name in layers if name in depthwise),
            "noisiest 1": tuple(noisy[:1]),
            "noisiest 2": tuple(noisy[:2]),
            "noisiest 4": tuple(noisy[:4]),
        }
        named |= {
            f"for {db} dB": _noisy_layers(layers, integer_noise, multiply_accumulates(graph), db)
            for db in _MIXED_DB
        }
        for name, members in named.items():
            if members and len(members) < len(layers) and members not in sets.values():
                sets[name] = members
    known = {weight.layer for weight in layer_weights(graph)}
    return SearchSpace(
        clean=clean,
        quantization_formats=tuple(forms),
        can_equalize=bool(layer_pairs(graph)),
        float_layer_sets=sets,
        weight_noise={layer: noise for layer, noise in weight_noise.items() if layer in known},
        signed_first=signed_first,
        fold=fold,
        max_int8_weight=max_int8_weight,
        trained_network=trained_network,
        architecture_key=trained_network[0].network[:16] if trained_network else "",
    )


def _noisy_layers(
    layers: Sequence[str], noise: Mapping[str, float], work: Mapping[str, int], db: float
) -> tuple[str, ...]:
    """Return the layers to leave in float, noisiest for their work first, until the rest keeps `db`."""
    kept = [layer for layer in layers if layer in noise]
    in_float = [layer for layer in layers if layer not in noise]
    kept.sort(key=lambda layer: noise[layer] / max(1, work.get(layer, 1)))
    while kept and sum(noise[layer] for layer in kept) > 10 ** (-db / 10):
        in_float.append(kept.pop())
    return tuple(layer for layer in layers if layer in in_float)


def _share_of(names: set[str], graph: Graph) -> float:
    """Return the named layers' share of all multiply-accumulates."""
    work = multiply_accumulates(graph)
    return sum(work.get(name, 0) for name in names) / max(1, sum(work.values()))
