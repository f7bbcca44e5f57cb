"""Where an operator stands in a graph, and what comes of it as a part of a trainable module."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from edgewright.compress.model.graph import attribute
from edgewright.contract.errors import CandidateError

__all__ = ["BuiltNode", "NodeContext", "ParameterBinding", "TensorLayout", "to_graph_layout", "to_module_layout"]

# How a tensor of the graph lies in the module: as it is, transposed, in one line, or with gates in torch's order.
TensorLayout = Literal["same", "transposed", "line", "gru", "lstm"]

# ONNX's gates in the order in which torch has them: GRU z r h as r z n, LSTM i o f c as i f g o.
_GATES: dict[str, tuple[int, ...]] = {"gru": (1, 0, 2), "lstm": (0, 2, 3, 1)}


@dataclass(slots=True)
class ParameterBinding:
    """A tensor of the graph and the parameter or buffer that holds it while the module is trained.

    Attributes:
        tensor: Name of the initializer.
        module: The module that has it.
        attribute: Its name there.
        layout: How the initializer lies there.
        part: Of a recurrent layer: the direction, which half of a bias, and how many halves there are.
    """

    tensor: str
    module: nn.Module
    attribute: str
    layout: TensorLayout = "same"
    part: tuple[int, int, int] = (0, 0, 1)


@dataclass(slots=True)
class BuiltNode:
    """What a node became.

    Attributes:
        call: Takes the tensors at `reads`, returns one tensor or a tuple for several outputs.
        reads: Positions among the node's inputs.
        bindings: Initializers that live in `call` as parameters.
    """

    call: Callable[..., Any]
    reads: tuple[int, ...]
    bindings: tuple[ParameterBinding, ...] = ()


@dataclass(slots=True)
class NodeContext:
    """A node with what is known when it is built.

    Attributes:
        node: The node.
        opset: Version of the standard operator set.
        constants: Initializers by name.
        shapes: Shape of each input in the reference run, () where it is absent.
        any_batch: Whether the graph takes any batch.
    """

    node: onnx.NodeProto
    opset: int
    constants: Mapping[str, NDArray[Any]]
    shapes: Sequence[tuple[int, ...]] = field(default=())
    any_batch: bool = True

    def attr(self, name: str, default: Any = None) -> Any:
        """Return an attribute, text as str."""
        value = attribute(self.node, name, default)
        return value.decode() if isinstance(value, bytes) else value

    def has_input(self, place: int) -> bool:
        """Whether the input is given."""
        return len(self.node.input) > place and bool(self.node.input[place])

    def constant_input(self, place: int) -> NDArray[Any] | None:
        """Return the input's value if it is a constant."""
        return self.constants.get(self.node.input[place]) if self.has_input(place) else None

    def ints(self, place: int, name: str) -> list[int] | None:
        """Return whole numbers that are an attribute in old operator sets and an input in new ones."""
        given = self.attr(name)
        if given is not None:
            return [int(v) for v in given]
        if not self.has_input(place):
            return None
        value = self.constant_input(place)
        if value is None:
            raise self.unsupported(f"its {name} are computed")
        return [int(v) for v in value.reshape(-1)]

    def number(self, place: int, name: str, default: float) -> float:
        """Return a number that is an attribute in old operator sets and an input in new ones."""
        given = self.attr(name)
        if given is not None:
            return float(given)
        if not self.has_input(place):
            return default
        value = self.constant_input(place)
        if value is None or value.size != 1:
            raise self.unsupported(f"its {name} is computed")
        return float(value.reshape(()))

    def unsupported(self, reason: str) -> CandidateError:
        """Return the error that names this operator."""
        return CandidateError(
            f"operator {self.node.op_type} ({self.node.name!r}) cannot be trained: {reason}",
            remedy="Export the model without it, or compress without training.",
        )


def to_module_layout(value: NDArray[Any], binding: ParameterBinding) -> NDArray[Any]:
    """Return an initializer as it lies in the module."""
    match binding.layout:
        case "same":
            return value
        case "transposed":
            return value.T
        case "line":
            return value.reshape(-1)
        case gates:
            direction, half, halves = binding.part
            size = value.shape[1] // halves
            return _ordered(value[direction, half * size : (half + 1) * size], _GATES[gates])


def to_graph_layout(value: NDArray[Any], before: NDArray[Any], binding: ParameterBinding) -> NDArray[Any]:
    """Return the module's value as the initializer that was `before`, whose sizes may have changed."""
    match binding.layout:
        case "same":
            return value
        case "transposed":
            return value.T
        case "line":
            wide = int(np.argmax(before.shape)) if before.ndim else 0
            return value.reshape([-1 if axis == wide else 1 for axis in range(before.ndim)])
        case gates:
            order = _GATES[gates]
            return _ordered(value, tuple(int(i) for i in np.argsort(order)))


def _ordered(value: NDArray[Any], order: tuple[int, ...]) -> NDArray[Any]:
    blocks = np.split(value, len(order), axis=0)
    return np.concatenate([blocks[i] for i in order], axis=0)
