"""What the server says of itself to Prometheus. Nothing here names a device."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = [
    "ALERTS",
    "CHECK_INS",
    "CONTENT_TYPE",
    "DEVICES",
    "FLUSHES",
    "IS_LEADER",
    "METRIC_FAMILY_NAMES",
    "OVERLOADED_CHECK_INS",
    "REFUSED_REQUESTS",
    "REGISTRY",
    "REQUESTS",
    "ROLLOUT_LOG_E",
    "ROLLOUT_STAGE",
    "STEP_FAILURES",
    "STEP_SECONDS",
    "exposition",
    "observe_seconds",
    "request_timer",
]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REGISTRY = CollectorRegistry()

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

REQUESTS = Histogram(
    "edgewright_request_seconds",
    "Time until the answer was sent, by route and status.",
    ("route", "status"),
    registry=REGISTRY,
    buckets=_FAST,
)
CHECK_INS = Counter("edgewright_check_ins", "Check-ins that are on the disk.", registry=REGISTRY)
REFUSED_REQUESTS = Counter(
    "edgewright_device_requests_refused", "Requests of devices, by reason.", ("reason",), registry=REGISTRY
)
OVERLOADED_CHECK_INS = Counter(
    "edgewright_check_ins_overloaded", "Check-ins that were sent away.", registry=REGISTRY
)
FLUSHES = Histogram(
    "edgewright_flush_seconds", "Time to write a batch of check-ins.", registry=REGISTRY, buckets=_FAST
)
DEVICES = Gauge(
    "edgewright_devices", "Devices by what they run.", ("device_class", "version", "state"), registry=REGISTRY
)
ALERTS = Gauge("edgewright_alerts_firing", "Alerts that fire.", ("rule", "severity"), registry=REGISTRY)
ROLLOUT_STAGE = Gauge(
    "edgewright_rollout_stage", "Stage of a rollout, from 0.", ("model", "device_class"), registry=REGISTRY
)
ROLLOUT_LOG_E = Gauge(
    "edgewright_rollout_log_e",
    "Natural logarithm of the evidence of harm.",
    ("model", "device_class"),
    registry=REGISTRY,
)
IS_LEADER = Gauge("edgewright_leads", "1 if this process decides.", registry=REGISTRY)
STEP_SECONDS = Histogram("edgewright_look_seconds", "Time of a step of the leader.", ("step",), registry=REGISTRY)
STEP_FAILURES = Counter(
    "edgewright_look_failures", "Steps of the leader that failed.", ("step",), registry=REGISTRY
)

METRIC_FAMILY_NAMES = (
    "edgewright_alerts_firing",
    "edgewright_check_ins_overloaded_total",
    "edgewright_check_ins_total",
    "edgewright_device_requests_refused_total",
    "edgewright_devices",
    "edgewright_flush_seconds",
    "edgewright_leads",
    "edgewright_look_failures_total",
    "edgewright_look_seconds",
    "edgewright_request_seconds",
    "edgewright_rollout_log_e",
    "edgewright_rollout_stage",
)
"""All metrics, as dashboards name them."""


@contextmanager
def observe_seconds(histogram: Histogram) -> Iterator[None]:
    """Add how long something took, however it ended."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        histogram.observe(time.perf_counter() - begun)


@lru_cache(maxsize=4096)
def request_timer(route: str, status: str) -> Histogram:
    """Return where the times of a route's answers of one status are kept."""
    return REQUESTS.labels(route, status)


def exposition() -> bytes:
    """Return all metrics as Prometheus reads them."""
    return generate_latest(REGISTRY)
