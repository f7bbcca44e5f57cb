"""A release told to people, as a model card, and to machines, as a CycloneDX bill of materials.

Both say only what the manifest says, so whoever has the signed manifest can make them again.
"""

import uuid
from typing import Any

from edgewright.contract.measurement import Measurement
from edgewright.contract.release import Manifest, ReleaseKind, StoredFile, Variant
from edgewright.contract.timestamps import parse_iso8601
from edgewright.trust.target_paths import release_path

__all__ = ["bill_of_materials", "model_card"]

_TYPES: dict[ReleaseKind, str] = {"model": "machine-learning-model", "agent": "application", "firmware": "firmware"}
_NAMESPACE = uuid.UUID("5a9c1ac8-2f6b-5f0e-9d5a-3d2a1d9c8b77")


def model_card(manifest: Manifest) -> str:
    """Return a release as Markdown, after Mitchell 2019 (arXiv:1810.03993)."""
    lines = [f"# {manifest.name} {manifest.version}", ""]
    facts = {
        "kind": manifest.kind,
        "made": manifest.created_at or "not said",
        "licence": manifest.licence or "not said",
        "release before": manifest.lineage.parent or "none",
        "end of life": manifest.end_of_life_at or "none",
        "made by": f"Edgewright {manifest.lineage.edgewright_version}"
        if manifest.lineage.edgewright_version
        else "not said",
    }
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    for variant in manifest.variants:
        lines += ["", f"## For {variant.device_class}", "", *_of_variant(variant)]
    lines += ["", "## Lineage", ""]
    lineage = manifest.lineage
    lines += [f"- original model: {lineage.original_sha256 or 'not said'}"]
    lines += [f"- data, {purpose}: {fingerprint}" for purpose, fingerprint in lineage.data.items()]
    lines += [f"- step {number}: {_step(step)}" for number, step in enumerate(lineage.recipe, start=1)]
    lines += [f"- {name} {version}" for name, version in lineage.environment.items()]
    return "\n".join(lines) + "\n"


def bill_of_materials(manifest: Manifest) -> dict[str, Any]:
    """Return a release as a CycloneDX 1.6 document with a component for each variant."""
    reference = release_path(manifest.name, manifest.version)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, reference)}",
        "version": 1,
        "metadata": {
            **({"timestamp": parse_iso8601(manifest.created_at).isoformat()} if manifest.created_at else {}),
            "component": {
                "type": _TYPES[manifest.kind],
                "bom-ref": reference,
                "name": manifest.name,
                "version": manifest.version,
                **({"licenses": [{"license": {"name": manifest.licence}}]} if manifest.licence else {}),
            },
        },
        "components": [_component(manifest, variant) for variant in manifest.variants]
        + [
            {"type": "library", "bom-ref": f"{name}@{version}", "name": name, "version": version}
            for name, version in sorted(manifest.lineage.environment.items())
        ],
    }


def _component(manifest: Manifest, variant: Variant) -> dict[str, Any]:
    reference = f"{release_path(manifest.name, manifest.version)}#{variant.device_class}"
    component: dict[str, Any] = {
        "type": _TYPES[manifest.kind],
        "bom-ref": reference,
        "name": f"{manifest.name} for {variant.device_class}",
        "version": manifest.version,
        "components": [_file(reference, file) for file in variant.files],
    }
    if manifest.kind == "model":
        component["modelCard"] = {
            "modelParameters": {
                "inputs": [{"format": f"{spec.name}: {spec.dtype}"} for spec in _inputs(variant)],
                "datasets": [
                    {"type": "dataset", "name": f"{purpose} {fingerprint[:16]}"}
                    for purpose, fingerprint in manifest.lineage.data.items()
                ],
            },
            "quantitativeAnalysis": {"performanceMetrics": _metrics(variant)},
        }
    return component


def _inputs(variant: Variant) -> Any:
    return () if variant.signature is None else variant.signature.inputs


def _file(reference: str, file: StoredFile) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": f"{reference}/{file.name}",
        "name": file.name,
        "hashes": [{"alg": "SHA-256", "content": file.sha256}],
    }


def _metrics(variant: Variant) -> list[dict[str, Any]]:
    found = [_metric(name, figure) for name, figure in sorted(variant.evidence.figures.items())]
    certificate = variant.evidence.certificate
    if certificate is not None:
        found.append(
            {
                "type": f"{certificate.metric} drop, {certificate.verdict}",
                "value": f"{certificate.drop:.6g}",
                "confidenceInterval": {
                    "lowerBound": f"{certificate.lower_bound:.6g}",
                    "upperBound": f"{certificate.upper_bound:.6g}",
                },
            }
        )
    return found


def _metric(name: str, figure: Measurement) -> dict[str, Any]:
    metric: dict[str, Any] = {
        "type": f"{name} ({figure.origin.kind})",
        "value": f"{figure.value:.6g} {figure.unit}",
    }
    if figure.low is not None and figure.high is not None:
        metric["confidenceInterval"] = {"lowerBound": f"{figure.low:.6g}", "upperBound": f"{figure.high:.6g}"}
    return metric


def _of_variant(variant: Variant) -> list[str]:
    lines = [f"- {file.name}: {file.size_bytes} bytes, sha256 {file.sha256}" for file in variant.files]
    for which, specs in (
        ("takes", _inputs(variant)),
        ("gives", () if variant.signature is None else variant.signature.outputs),
    ):
        for spec in specs:
            span = "" if spec.low is None or spec.high is None else f", {spec.low:g} to {spec.high:g}"
            lines.append(f"- {which} {spec.name}: {spec.dtype} [{', '.join(map(str, spec.shape))}]{span}")
    certificate = variant.evidence.certificate
    if certificate is None:
        lines.append("- nothing was certified")
    else:
        lines.append(f"- {certificate.verdict}: {certificate.reason}")
    for name, figure in sorted(variant.evidence.figures.items()):
        span = "" if figure.low is None or figure.high is None else f" ({figure.low:.4g} to {figure.high:.4g})"
        lines.append(
            f"- {name}: {figure.value:.4g} {figure.unit}{span}, {figure.origin.kind} on {figure.origin.machine}, "
            f"{figure.origin.method}"
        )
    need = variant.requirement
    lines.append(f"- needs {need.runtime} {need.min_runtime_version} or later")
    return lines


def _step(step: dict[str, Any]) -> str:
    """Return a step of a recipe in a line.

    >>> _step({"step": "static int8", "weights": "int8"})
    'static int8 (weights=int8)'
    """
    kind = step.get("step", "step")
    rest = ", ".join(
        f"{name}={value}" for name, value in step.items() if name != "step" and not isinstance(value, dict)
    )
    return f"{kind} ({rest})" if rest else str(kind)
