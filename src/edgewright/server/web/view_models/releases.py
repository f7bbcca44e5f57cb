"""Releases: what was proved and measured, each figure with its origin, and where they come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgewright.contract.certificate import Certificate
from edgewright.contract.measurement import Measurement
from edgewright.contract.release import Manifest, Variant, stored_form
from edgewright.contract.rollout.plan import RolloutPlan
from edgewright.contract.units import Dimension, format_quantity
from edgewright.server.store.records import DeviceGroupCount
from edgewright.server.web.view_models.formatting import (
    Badge,
    Tone,
    make_badge,
    percent_text,
    points_text,
    size_text,
)
from edgewright.server.web.view_models.interval_bars import IntervalBar, difference_bar

__all__ = [
    "CertificateView",
    "FigureRow",
    "ReleaseRow",
    "ReleaseView",
    "VariantView",
    "release_rows",
    "release_view",
]

_TONES: dict[str, Tone] = {"certified": "good", "refuted": "bad", "insufficient data": "warn"}
_DIMENSIONS: dict[str, tuple[Dimension, float]] = {
    "s": ("time", 1.0),
    "ms": ("time", 1e-3),
    "bytes": ("size", 1.0),
    "J": ("energy", 1.0),
    "mJ": ("energy", 1e-3),
}


@dataclass(frozen=True, slots=True)
class ReleaseRow:
    """A release in a list.

    Attributes:
        model: Which.
        version: Of it.
        digest: sha256 of its manifest.
        devices: How many run it.
        href: Of its page.
        rollouts: Device classes on which it is being rolled out.
    """

    model: str
    version: str
    digest: str
    devices: str
    href: str
    rollouts: str


@dataclass(frozen=True, slots=True)
class FigureRow:
    """A figure.

    Attributes:
        name: Of it.
        value: With its unit.
        interval: Of it, "" if it has no spread.
        origin: `measured`, `estimated` or `computed`.
        machine: Where.
        method: How.
    """

    name: str
    value: str
    interval: str
    origin: str
    machine: str
    method: str


@dataclass(frozen=True, slots=True)
class CertificateView:
    """A certificate.

    Attributes:
        verdict: Of it.
        reason: In a sentence.
        rows: Name and value of all else.
        bar: The loss between its bounds, and the limit.
    """

    verdict: Badge
    reason: str
    rows: tuple[tuple[str, str], ...]
    bar: IntervalBar


@dataclass(frozen=True, slots=True)
class VariantView:
    """The form of a release for a device class.

    Attributes:
        device_class: Which.
        certificate: None if nothing was certified.
        figures: By name.
        files: Name, size, what it takes up in the repository, sha256.
        tensors: What goes in and out: way, name, type and shape.
        needs: What a device must have.
    """

    device_class: str
    certificate: CertificateView | None
    figures: tuple[FigureRow, ...]
    files: tuple[tuple[str, str, str, str], ...]
    tensors: tuple[tuple[str, str, str], ...]
    needs: str


@dataclass(frozen=True, slots=True)
class ReleaseView:
    """A release.

    Attributes:
        model: Which.
        version: Of it.
        digest: sha256 of its manifest.
        href: Of its page.
        facts: Name and value.
        devices: How many run it.
        variants: By device class.
        data: For what, and the fingerprint.
        steps: That made it.
        environment: Name and version of what else made it.
        parent: Version before it, "" for the first.
        parent_href: Of that one's page, "" if it is not here.
    """

    model: str
    version: str
    digest: str
    href: str
    facts: tuple[tuple[str, str], ...]
    devices: str
    variants: tuple[VariantView, ...]
    data: tuple[tuple[str, str], ...]
    steps: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    parent: str
    parent_href: str


def release_rows(
    releases: Mapping[tuple[str, str], str],
    plans: Mapping[tuple[str, str], RolloutPlan],
    groups: Sequence[DeviceGroupCount],
) -> tuple[ReleaseRow, ...]:
    """Return releases for a list, in the order given.

    Args:
        releases: sha256 of the manifest, by model and version.
        plans: By model and device class.
        groups: Of all devices.
    """
    return tuple(
        ReleaseRow(
            model,
            version,
            digest,
            _devices(groups, model, version),
            _href(model, version),
            ", ".join(
                device_class
                for (of_model, device_class), plan in plans.items()
                if of_model == model
                and plan.state in ("running", "paused")
                and version in {arm.version for arm in plan.arms}
            ),
        )
        for (model, version), digest in releases.items()
    )


def release_view(
    manifest: Manifest, digest: str, releases: Mapping[tuple[str, str], str], groups: Sequence[DeviceGroupCount]
) -> ReleaseView:
    """Return a release.

    Args:
        manifest: As it is signed.
        digest: Of it.
        releases: All that are there.
        groups: Of all devices.
    """
    lineage = manifest.lineage
    known = (manifest.name, lineage.parent) in releases
    facts = (
        ("kind", manifest.kind),
        ("made", manifest.created_at or "not said"),
        ("licence", manifest.licence or "not said"),
        ("end of life", manifest.end_of_life_at or "none"),
        ("made by", f"Edgewright {lineage.edgewright_version}" if lineage.edgewright_version else "not said"),
        ("original model", lineage.original_sha256 or "not said"),
        ("bytes of", lineage.republished_from or "its own"),
    )
    return ReleaseView(
        model=manifest.name,
        version=manifest.version,
        digest=digest,
        href=_href(manifest.name, manifest.version),
        facts=facts,
        devices=_devices(groups, manifest.name, manifest.version),
        variants=tuple(_variant(variant) for variant in manifest.variants),
        data=tuple(lineage.data.items()),
        steps=tuple(_step(step) for step in lineage.recipe),
        environment=tuple(sorted(lineage.environment.items())),
        parent=lineage.parent,
        parent_href=_href(manifest.name, lineage.parent) if known else "",
    )


def _href(model: str, version: str) -> str:
    return f"/releases/{model}/{version}"


def _devices(groups: Sequence[DeviceGroupCount], model: str, version: str) -> str:
    return f"{sum(one.devices for one in groups if (one.model, one.version) == (model, version)):,}"


def _variant(variant: Variant) -> VariantView:
    contract, need = variant.signature, variant.requirement
    tensors = () if contract is None else (("takes", contract.inputs), ("gives", contract.outputs))
    return VariantView(
        variant.device_class,
        None if variant.evidence.certificate is None else _certificate(variant.evidence.certificate),
        tuple(_figure(name, figure) for name, figure in sorted(variant.evidence.figures.items())),
        tuple(
            (file.name, size_text(file.size_bytes), size_text(stored_form(file)[1]), file.sha256)
            for file in variant.files
        ),
        tuple(
            (way, spec.name, f"{spec.dtype} [{', '.join(map(str, spec.shape))}]")
            for way, specs in tensors
            for spec in specs
        ),
        " ".join((f"{need.runtime} {need.min_runtime_version} or later", *need.providers, *need.features)),
    )


def _certificate(one: Certificate) -> CertificateView:
    sure = percent_text(one.confidence, 1)
    rows = (
        (f"{one.metric} of the original", percent_text(one.original_metric, 2)),
        (f"{one.metric} of this release", percent_text(one.chosen_metric, 2)),
        ("loss", points_text(one.drop)),
        ("loss at most", f"{points_text(one.upper_bound)}, {sure} sure"),
        ("loss at least", f"{points_text(one.lower_bound)}, {sure} sure"),
        ("allowed", points_text(one.max_drop)),
        (
            "samples",
            f"{one.sample_count:,}" + ("" if one.cluster_count is None else f" in {one.cluster_count:,} groups"),
        ),
        ("bound", one.method),
        ("look", f"number {one.look} at this data, {percent_text(one.look_confidence, 2)} by itself"),
        ("data", one.data_fingerprint),
    )
    words = (
        f"Loss of {one.metric} {points_text(one.drop)}, at most {points_text(one.upper_bound)}; "
        f"{points_text(one.max_drop)} allowed"
    )
    return CertificateView(
        make_badge(_TONES[one.verdict], one.verdict),
        one.reason,
        rows,
        difference_bar(
            one.drop, one.lower_bound, one.upper_bound, bound=one.upper_bound, limit=one.max_drop, words=words
        ),
    )


def _figure(name: str, figure: Measurement) -> FigureRow:
    interval = ""
    if figure.low is not None and figure.high is not None:
        sure = percent_text(figure.confidence, 0)
        interval = f"{_value(figure.low, figure.unit)} to {_value(figure.high, figure.unit)}, {sure} sure"
    origin = figure.origin
    return FigureRow(name, _value(figure.value, figure.unit), interval, origin.kind, origin.machine, origin.method)


def _value(value: float, unit: str) -> str:
    if unit in _DIMENSIONS:
        dimension, scale = _DIMENSIONS[unit]
        return format_quantity(value * scale, dimension)
    return f"{value:.4g} {'' if unit == 'ratio' else unit}".strip()


def _step(step: Mapping[str, Any]) -> str:
    """Return a step of a recipe in a line.

    >>> _step({"step": "static int8", "weights": "int8"})
    'static int8: weights int8'
    """
    rest = ", ".join(
        f"{name} {value}" for name, value in step.items() if name != "step" and not isinstance(value, dict)
    )
    return f"{step.get('step', 'step')}: {rest}" if rest else str(step.get("step", "step"))
