"""Device classes and the budgets that a model must keep on them."""

import msgspec

from edgewright.contract.errors import ProjectError

__all__ = ["DEFAULT_DEVICE_CLASS", "Budget", "DeviceClass"]


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits that a model must keep on a device; None is no limit.

    Attributes:
        latency_p50_seconds: Median latency of one inference, seconds.
        latency_p95_seconds: 95th percentile of the latency, seconds.
        peak_memory_bytes: Peak resident memory that loading and running the model adds to the runtime's own.
        size_bytes: Size of the artifact.
        energy_j: Energy per inference, joules.
        min_metric: Least value of the metric, in the metric's unit (a floor).
        max_drop: Largest loss of the metric against the original, as a fraction (0.01 is one percentage point).
        confidence: One-sided confidence with which the metric limits must be certified.
    """

    latency_p50_seconds: float | None = None
    latency_p95_seconds: float | None = None
    peak_memory_bytes: float | None = None
    size_bytes: float | None = None
    energy_j: float | None = None
    min_metric: float | None = None
    max_drop: float | None = None
    confidence: float = 0.95

    def __post_init__(self) -> None:
        """Refuse limits that no model could keep or break."""
        for name in ("latency_p50_seconds", "latency_p95_seconds", "peak_memory_bytes", "size_bytes", "energy_j"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < float("inf"):
                raise ProjectError(
                    f"budget {name} is {limit}, it must be greater than zero",
                    remedy="Give a positive limit, or leave it out for no limit.",
                )
        if self.max_drop is not None and not 0 < self.max_drop < 1:
            raise ProjectError(
                f"max_drop is {self.max_drop}, it must lie between 0 and 1",
                remedy="It is a fraction of the metric: write 0.01 for one percentage point. "
                "A drop of exactly 0 cannot be certified from samples.",
            )
        if self.min_metric is not None and not -float("inf") < self.min_metric < float("inf"):
            raise ProjectError(
                f"min_metric is {self.min_metric}, it must be a number",
                remedy="Give the least value of the metric, or leave it out for no floor.",
            )
        if not 0.5 <= self.confidence < 1:
            raise ProjectError(
                f"confidence is {self.confidence}, it must be at least 0.5 and less than 1",
                remedy="0.95 is customary.",
            )


class DeviceClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A kind of device, the machine that stands for it, and its budget.

    Attributes:
        name: As used on the command line.
        target: Where figures are measured: "local", "ssh://user@host[:port]" or "bench:NAME".
        threads: Threads that one inference may use.
        providers: Execution providers of onnxruntime, in order of preference.
        watts_per_core: Power of one busy core, for the energy estimate where no sensor is present.
        budget: The limits.
    """

    name: str
    target: str = "local"
    threads: int = 1
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    watts_per_core: float = 2.5
    budget: Budget = Budget()

    def __post_init__(self) -> None:
        """Refuse impossible machines."""
        if not 1 <= self.threads <= 1024:
            raise ProjectError(
                f"device class {self.name!r} has {self.threads} threads, it must be 1 to 1024",
                remedy="Set how many threads one inference may use.",
            )
        if not 0 < self.watts_per_core < 1000:
            raise ProjectError(
                f"device class {self.name!r} has watts_per_core {self.watts_per_core}, it must be 0 to 1000",
                remedy="Give the power that one busy core draws, in watts.",
            )
        if self.target != "local" and not self.target.startswith(("ssh://", "bench:")):
            raise ProjectError(
                f"device class {self.name!r} has target {self.target!r}",
                remedy='Write "local", "bench:NAME", or "ssh://user@host" with an optional :port.',
            )


DEFAULT_DEVICE_CLASS = DeviceClass(name="default")
