"""What runs a model, behind one small protocol, and onnxruntime behind it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from edgewright.contract.errors import CandidateError, ModelError
from edgewright.runtime.external_data import external_tensors
from edgewright.runtime.options import RuntimeOptions, session_options

__all__ = ["InferenceSession", "OnnxSession", "open_onnx_session"]


class InferenceSession(Protocol):
    """A model that is ready to answer."""

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs, in order."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the outputs for one feed.

        Raises:
            CandidateError: The runtime failed.
        """


class OnnxSession:
    """A model in onnxruntime; it may be run by several threads at once."""

    def __init__(self, content: bytes, options: RuntimeOptions) -> None:
        import onnxruntime as ort

        settings = session_options(options)
        settings.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(content, settings, providers=list(options.providers))
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise CandidateError(
                f"the runtime refuses the model: {reason}", remedy="Publish another form."
            ) from error
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._run = self._session.run

    @property
    def outputs(self) -> Sequence[str]:
        """See `InferenceSession`."""
        return self._outputs

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """See `InferenceSession`."""
        try:
            found: list[NDArray[Any]] = self._run(None, inputs)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise CandidateError(f"the inference failed: {reason}", remedy="See the input.") from error
        return found


def open_onnx_session(content: bytes, options: RuntimeOptions | None = None) -> OnnxSession:
    """Open a model that came from the outside.

    Raises:
        ModelError: It is no model, or names data outside of itself.
        CandidateError: The runtime refuses it.
    """
    outside = external_tensors(content)
    if outside:
        raise ModelError(
            f"the model keeps {outside[0]!r} outside of itself",
            remedy="Save it with all data inside; nothing outside is read.",
        )
    return OnnxSession(content, options or RuntimeOptions())
