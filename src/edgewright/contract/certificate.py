"""What was proved about a candidate, and with which certainty."""

from typing import Literal

import msgspec

__all__ = ["Certificate", "CertificateVerdict"]

CertificateVerdict = Literal["certified", "refuted", "insufficient data"]


class Certificate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The loss of a metric as a statistical contract, on data that nothing was chosen by.

    Attributes:
        verdict: `certified` if the bound keeps the limit, `refuted` if even the lower bound breaks it.
        metric: The metric's name.
        original_metric: The metric of the original model on the certify split.
        chosen_metric: The metric of the chosen model on the same samples.
        drop: `original - chosen`, as a fraction.
        upper_bound: One-sided upper confidence bound of the drop.
        lower_bound: One-sided lower confidence bound of the drop.
        confidence: One-sided confidence asked for, over all looks at this data together.
        sample_count: Size of the certify split.
        max_drop: The limit asked for.
        method: Name of the bound, as in `edgewright.stats.paired_bounds`.
        look: Which look at this certify split this was, from 1.
        look_confidence: Confidence of this single look after the correction for multiplicity.
        cluster_count: Number of groups that the bound is over, None for independent samples.
        additional_samples_needed: Estimate of how many further labelled samples would settle it, None if settled or
            hopeless.
        reason: One sentence for people.
        data_fingerprint: Fingerprint of the certify split.
        candidate_sha256: sha256 of the model that was judged, hex.
    """

    verdict: CertificateVerdict
    metric: str
    original_metric: float
    chosen_metric: float
    drop: float
    upper_bound: float
    lower_bound: float
    confidence: float
    sample_count: int
    max_drop: float
    method: str
    look: int
    look_confidence: float
    cluster_count: int | None
    additional_samples_needed: int | None
    reason: str
    data_fingerprint: str
    candidate_sha256: str
