"""What the device says of itself, in Prometheus' text format."""

from collections.abc import Mapping
from typing import Any

from edgewright.device.update.state_machine import UpdateLifecycleState

__all__ = ["prometheus_metrics"]

# Name, kind, what it means, key in the status.
_METRICS = (
    ("edgewright_inferences_total", "counter", "Inferences of the current release", "served"),
    ("edgewright_inference_failures_total", "counter", "Inferences that the runtime failed", "failed_inferences"),
    ("edgewright_rejected_tensors_total", "counter", "Inputs and outputs that the guard rejected", "rejected"),
    ("edgewright_free_disk_bytes", "gauge", "Free disk", "free_bytes"),
    ("edgewright_battery_ratio", "gauge", "State of charge", "battery_level"),
)


def prometheus_metrics(status: Mapping[str, Any]) -> str:
    """Return a device's status as metrics; figures that it lacks are left out.

    >>> print(prometheus_metrics({"served": 3, "state": "idle", "version": "1.0.0", "model": "m"}).splitlines()[2])
    edgewright_inferences_total 3
    """
    lines: list[str] = []
    for name, kind, help_text, key in _METRICS:
        value = status.get(key)
        if value is not None:
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}", f"{name} {value}"]
    lines += ["# HELP edgewright_state State of the update, 1 for the current one", "# TYPE edgewright_state gauge"]
    lines += [
        f'edgewright_state{{state="{state}"}} {int(state == status.get("state"))}' for state in UpdateLifecycleState
    ]
    model, version = status.get("model") or "", status.get("version") or ""
    lines += ["# HELP edgewright_release The release that answers", "# TYPE edgewright_release gauge"]
    lines += [f'edgewright_release{{model="{model}",version="{version}"}} 1']
    refused = 0 if status.get("last_refusal") is None else 1
    lines += ["# HELP edgewright_refused Whether something was refused last", "# TYPE edgewright_refused gauge"]
    lines += [f"edgewright_refused {refused}"]
    return "\n".join(lines) + "\n"
