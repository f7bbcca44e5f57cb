"""How a model is run: the options of onnxruntime that change its speed, not its answers."""

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["RuntimeOptions", "session_options"]

OptimizationLevel = Literal["disable", "basic", "extended", "layout", "all"]

_LEVELS: dict[OptimizationLevel, str] = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "layout": "ORT_ENABLE_LAYOUT",
    "all": "ORT_ENABLE_ALL",
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


def session_options(options: RuntimeOptions) -> "ort.SessionOptions":
    """Translate into onnxruntime's own options; only now is it loaded, which costs 50 MB."""
    import onnxruntime as ort

    translated = ort.SessionOptions()
    translated.intra_op_num_threads = options.threads
    translated.inter_op_num_threads = 1
    translated.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[options.optimization])
    translated.log_severity_level = 3
    translated.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spinning else "0")
    return translated
