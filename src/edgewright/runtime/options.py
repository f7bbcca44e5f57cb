"""How a model is run: the options of onnxruntime that change its speed, not its answers."""

from typing import Literal

import msgspec
import onnxruntime as ort

__all__ = ["RuntimeOptions", "session_options"]

OptimizationLevel = Literal["disable", "basic", "extended", "layout", "all"]

_LEVELS: dict[OptimizationLevel, ort.GraphOptimizationLevel] = {
    "disable": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "layout": ort.GraphOptimizationLevel.ORT_ENABLE_LAYOUT,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


class RuntimeOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of one inference session.

    Attributes:
        threads: Threads inside one operator.
        optimization: Graph optimisation level.
        spinning: Whether idle threads spin (faster next inference, more energy) or sleep.
        providers: Execution providers in order of preference.
    """

    threads: int = 1
    optimization: OptimizationLevel = "all"
    spinning: bool = False
    providers: tuple[str, ...] = ("CPUExecutionProvider",)


def session_options(options: RuntimeOptions) -> ort.SessionOptions:
    """Translate into onnxruntime's own options."""
    translated = ort.SessionOptions()
    translated.intra_op_num_threads = options.threads
    translated.inter_op_num_threads = 1
    translated.graph_optimization_level = _LEVELS[options.optimization]
    translated.log_severity_level = 3
    translated.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spinning else "0")
    return translated
