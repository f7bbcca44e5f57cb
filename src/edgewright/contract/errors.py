"""What can go wrong, grouped by who must act.

::

    EdgewrightError
    ├── InputError          exit 2: whoever typed the command changes something
    │   ├── ModelError      the model file is broken or uses what the runtime lacks
    │   ├── DataError       the data has the wrong shape, dtype, range or labels
    │   ├── ProjectError    edgewright.toml holds an unknown key, a wrong unit, an impossible value
    │   └── UnitError       a quantity such as "5ms" cannot be read
    └── WorkError           exit 1: the request was understood, the work failed
        ├── TargetError     the machine that measures was lost, lacks a runtime, ran out of time or disk
        ├── OutputError     the output folder cannot be written or its disk is full
        └── CandidateError  one candidate could not be built or run; a search records it and goes on

Each carries its own advice: the message names the value and the limit, `remedy` the next step. `code` is its name
in JSON and in the HTTP API; it stays when a class is renamed.
"""

from typing import ClassVar

__all__ = [
    "CandidateError",
    "DataError",
    "EdgewrightError",
    "InputError",
    "ModelError",
    "OutputError",
    "ProjectError",
    "TargetError",
    "UnitError",
    "WorkError",
]


class EdgewrightError(Exception):
    """Anything that Edgewright itself reports.

    >>> str(ModelError("m.onnx is truncated", remedy="Export it again."))
    'm.onnx is truncated. Export it again.'
    """

    exit_code = 1
    code: ClassVar[str]

    def __init_subclass__(cls) -> None:
        """Ask every kind of error for a code of its own.

        Raises:
            TypeError: It has none.
        """
        super().__init_subclass__()
        if "code" not in cls.__dict__:
            raise TypeError(f"{cls.__name__} needs a code of its own")

    def __init__(self, message: str, *, remedy: str) -> None:
        self.message = message.rstrip(".")
        self.remedy = remedy
        super().__init__(f"{self.message}. {remedy}")


class InputError(EdgewrightError):
    """The input or the usage is wrong."""

    code = "invalid_input"

    exit_code = 2


class ModelError(InputError):
    """The model file is broken, or uses what the runtime lacks."""

    code = "invalid_model"


class DataError(InputError):
    """The data does not fit the model or the task."""

    code = "invalid_data"


class ProjectError(InputError):
    """The project file holds something that it may not."""

    code = "invalid_project"


class UnitError(InputError):
    """A quantity cannot be read."""

    code = "invalid_quantity"


class WorkError(EdgewrightError):
    """The work was understood and failed."""

    code = "failed"


class TargetError(WorkError):
    """The machine that measures was lost, lacks something, or took too long."""

    code = "target_failed"


class OutputError(WorkError):
    """The output cannot be written."""

    code = "output_failed"


class CandidateError(WorkError):
    """One candidate could not be built or run."""

    code = "candidate_failed"
