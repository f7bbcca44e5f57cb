"""GRU and LSTM: torch's layers in ONNX's layout."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from edgewright.compress.train.node_context import BuiltNode, NodeContext, ParameterBinding, TensorLayout

__all__ = ["RECURRENT_OPERATORS"]

_GATES = {"GRU": 3, "LSTM": 4}


class EarlyReset(nn.GRU):
    """A GRU whose reset gate acts before the recurrent product, ONNX's linear_before_reset=0; step by step."""

    def forward(self, value: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return the states at all times [time, batch, directions * hidden] and the last of each direction."""
        answers, lasts = [], []
        for turn, suffix in enumerate(("", "_reverse")[: 2 if self.bidirectional else 1]):
            start = value.new_zeros(value.shape[1], self.hidden_size) if state is None else state[turn]
            answer = self._one_way(value.flip(0) if suffix else value, start, suffix)
            lasts.append(answer[-1])
            answers.append(answer.flip(0) if suffix else answer)
        return torch.cat(answers, -1), torch.stack(lasts)

    def _one_way(self, value: Tensor, state: Tensor, suffix: str) -> Tensor:
        inner = getattr(self, f"weight_hh_l0{suffix}")
        given = nn.functional.linear(value, getattr(self, f"weight_ih_l0{suffix}"))
        if self.bias:
            given = given + getattr(self, f"bias_ih_l0{suffix}") + getattr(self, f"bias_hh_l0{suffix}")
        gates, size = 2 * self.hidden_size, self.hidden_size
        states = []
        for now in given:
            reset, keep = torch.sigmoid(now[:, :gates] + state @ inner[:gates].T).split(size, -1)
            fresh = torch.tanh(now[:, gates:] + (reset * state) @ inner[gates:].T)
            state = fresh + keep * (state - fresh)
            states.append(state)
        return torch.stack(states)


class RecurrentLayer(nn.Module):
    """A recurrent layer over [time, batch, features] with those of ONNX's outputs Y, Y_h, Y_c that are named."""

    def __init__(self, cell: nn.GRU | nn.LSTM, backward: bool, named: tuple[bool, ...]) -> None:
        super().__init__()
        self.cell, self._backward, self._named = cell, backward, named

    def forward(self, value: Tensor, *states: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return of Y [time, directions, batch, hidden] and the last states [directions, batch, hidden] the named.

        Raises:
            ValueError: An initial state is not for this batch.
        """
        time, batch = value.shape[:2]
        directions = 2 if self.cell.bidirectional else 1
        for state in states:
            if state.shape[0] != directions or state.shape[1] not in (1, batch):
                raise ValueError(
                    f"an initial state is {list(state.shape)}, not [{directions}, {batch}, {state.shape[2]}]: "
                    "the batch of a recurrent layer's state is its second axis, that of a network's input its first"
                )
        if self._backward:
            value = value.flip(0)
        starts = [state.expand(-1, batch, -1).contiguous() for state in states]
        if isinstance(self.cell, nn.LSTM):
            answer, last = self.cell(value, tuple(starts) if starts else None)
        else:
            answer, state = self.cell(value, starts[0] if starts else None)
            last = (state,)
        answer = answer.reshape(time, batch, directions, -1).transpose(1, 2)
        if self._backward:
            answer = answer.flip(0)
        made = (answer, *last)
        results = tuple(part for part, named in zip(made, self._named, strict=False) if named)
        return results if len(results) > 1 else results[0]


def _recurrent(site: NodeContext) -> BuiltNode:
    kind = site.node.op_type
    weight, recurrence, bias = site.constant_input(1), site.constant_input(2), site.constant_input(3)
    if weight is None or recurrence is None or (site.has_input(3) and bias is None):
        raise site.unsupported("its weight is computed")
    if site.attr("clip") or site.attr("layout", 0) or site.attr("input_forget", 0) or site.has_input(7):
        raise site.unsupported("it clips, couples gates, has peepholes or puts the batch first")
    usual = ["Sigmoid", "Tanh"] if kind == "GRU" else ["Sigmoid", "Tanh", "Tanh"]
    named = [name.decode() for name in site.attr("activations") or []]
    direction = site.attr("direction", "forward")
    directions, wide, inside = weight.shape
    if named and named != usual * directions:
        raise site.unsupported("its activations are not the usual ones")
    _check_lengths(site)
    hidden = wide // _GATES[kind]
    layer: type[nn.GRU | nn.LSTM] = nn.LSTM
    if kind == "GRU":
        layer = nn.GRU if site.attr("linear_before_reset", 0) else EarlyReset
    cell = layer(inside, hidden, bias=site.has_input(3), bidirectional=direction == "bidirectional")
    call = RecurrentLayer(cell, direction == "reverse", tuple(bool(name) for name in site.node.output))
    gates: TensorLayout = "gru" if kind == "GRU" else "lstm"
    bindings = []
    for turn, suffix in enumerate(("", "_reverse")[:directions]):
        bindings.append(ParameterBinding(site.node.input[1], cell, f"weight_ih_l0{suffix}", gates, (turn, 0, 1)))
        bindings.append(ParameterBinding(site.node.input[2], cell, f"weight_hh_l0{suffix}", gates, (turn, 0, 1)))
        if site.has_input(3):
            bindings.append(ParameterBinding(site.node.input[3], cell, f"bias_ih_l0{suffix}", gates, (turn, 0, 2)))
            bindings.append(ParameterBinding(site.node.input[3], cell, f"bias_hh_l0{suffix}", gates, (turn, 1, 2)))
    return BuiltNode(call, (0, *_states(site)), tuple(bindings))


def _states(site: NodeContext) -> tuple[int, ...]:
    """Return the inputs that are initial states, none where they are zero anyway."""
    given = [place for place in (5, 6) if site.has_input(place)]
    values = [site.constant_input(place) for place in given]
    if all(value is not None and not np.any(value) for value in values):
        return ()
    if site.node.op_type == "LSTM" and len(given) == 1:
        raise site.unsupported("it has one initial state of two")
    return tuple(given)


def _check_lengths(site: NodeContext) -> None:
    lengths = site.constant_input(4)
    if site.has_input(4) and (lengths is None or not np.all(lengths == site.shapes[0][0])):
        raise site.unsupported("its sequences have lengths of their own")


RECURRENT_OPERATORS: dict[str, Callable[[NodeContext], BuiltNode]] = {"GRU": _recurrent, "LSTM": _recurrent}
