"""By what a device recognises inputs that its model was not made for: small records of the signed profile.

::

    OutlierRule            a measure, and the threshold that goes with a stated rate of false rejections
    ├── LogitMeasure       energy, confidence or margin: costs nothing beyond the answer
    ├── Mahalanobis        distance from the class means, in the spread of an embedding
    ├── Neighbours         distance from the nearest of some known embeddings
    └── Squeezing          how much the answer changes if detail is taken out of the input: a second inference
"""

import math
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewright.contract.errors import InputError
from edgewright.contract.model.guarantee import Guarantee

__all__ = [
    "MAX_PARAMETER_BYTES",
    "EncodedArray",
    "FeatureSqueezing",
    "LogitScore",
    "LowRankCovariance",
    "MahalanobisScore",
    "NearestNeighbourScore",
    "OodRule",
    "OodScore",
]

MAX_PARAMETER_BYTES = 1 << 20
"""A profile is read into memory at once: one array of a record may not be greater."""

_MAX_AXES = 8


class EncodedArray(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An array, base64 in JSON.

    Attributes:
        dtype: Of the numbers, little endian.
        shape: In C order.
        content: Their bytes.
    """

    dtype: Literal["float16", "float32"]
    shape: tuple[int, ...]
    content: bytes

    def __post_init__(self) -> None:
        """Refuse bytes that are not the array, and numbers that are none."""
        if any(size < 1 for size in self.shape) or len(self.shape) > _MAX_AXES:
            raise InputError(
                f"an array has the shape {list(self.shape)}", remedy="Each axis has at least one entry."
            )
        wanted = math.prod(self.shape) * np.dtype(self.dtype).itemsize
        if len(self.content) != wanted or wanted > MAX_PARAMETER_BYTES:
            raise InputError(
                f"an array of shape {list(self.shape)} has {len(self.content)} bytes, {wanted} are needed and "
                f"{MAX_PARAMETER_BYTES} allowed",
                remedy="Use fewer directions, points or classes, and pack with Numbers.of.",
            )
        if not np.isfinite(self.array()).all():
            raise InputError("an array holds NaN or infinity", remedy="Fit it on finite data.")

    @classmethod
    def of(cls, values: NDArray[np.floating], dtype: Literal["float16", "float32"] = "float32") -> "EncodedArray":
        """Pack an array.

        >>> EncodedArray.of(np.array([1.0, 2.0])).array().tolist()
        [1.0, 2.0]
        """
        packed = np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<"))
        return cls(dtype, packed.shape, packed.tobytes())

    def array(self) -> NDArray[np.float64]:
        """Return the numbers."""
        stored = np.frombuffer(self.content, np.dtype(self.dtype).newbyteorder("<"))
        return stored.reshape(self.shape).astype(np.float64)


class LogitScore(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="logits"):
    """A number that the logits give.

    Attributes:
        score: `energy`, which needs logits; `confidence` and `margin` can also be had from probabilities.
    """

    score: Literal["energy", "confidence", "margin"]


class LowRankCovariance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A covariance: some directions with their variances, and one variance for all others.

    Attributes:
        directions: Shape [features, directions], orthonormal.
        variances: Shape [directions].
        residual_variance: Variance in every other direction.
    """

    directions: EncodedArray
    variances: EncodedArray
    residual_variance: float

    def __post_init__(self) -> None:
        """Refuse what is no covariance."""
        shape = self.directions.shape
        if len(shape) != 2 or shape[1] > shape[0] or self.variances.shape != shape[1:]:
            raise InputError(
                f"a covariance has directions {list(shape)} and variances {list(self.variances.shape)}",
                remedy="Give [features, directions] and [directions].",
            )
        if not self.variances.array().min() > 0 or not 0 < self.residual_variance < math.inf:
            raise InputError(
                "a covariance has a variance that is not positive", remedy="Fit it on data that varies."
            )


class MahalanobisScore(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="mahalanobis"
):
    """Squared distance from the nearest class mean; relative to that from the mean of all, if there is one.

    Attributes:
        output: Name of the graph's output with the embedding.
        means: Shape [classes, features].
        within_class: Covariance around the class means.
        background_mean: Shape [1, features], of all classes together; None unless relative.
        background: Covariance around that.
    """

    output: str
    means: EncodedArray
    within_class: LowRankCovariance
    background_mean: EncodedArray | None = None
    background: LowRankCovariance | None = None

    def __post_init__(self) -> None:
        """Refuse parts of different sizes."""
        features = self.within_class.directions.shape[0]
        fits = len(self.means.shape) == 2 and self.means.shape[1] == features
        if (self.background_mean is None) != (self.background is None):
            fits = False
        elif self.background_mean is not None and self.background is not None:
            fits &= self.background_mean.shape == (1, features) == (1, self.background.directions.shape[0])
        if not fits:
            raise InputError("means and covariances differ in their features", remedy="Fit them on one embedding.")


class NearestNeighbourScore(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="neighbours"
):
    """Distance from the k-th nearest of some embeddings of usual inputs, all brought to length 1.

    Attributes:
        output: Name of the graph's output with the embedding.
        points: Shape [points, features].
        k: Which neighbour counts, from 1.
    """

    output: str
    points: EncodedArray
    k: int

    def __post_init__(self) -> None:
        """Refuse a neighbour that is not there."""
        if len(self.points.shape) != 2 or not 1 <= self.k <= self.points.shape[0]:
            raise InputError(
                f"neighbour {self.k} of points {list(self.points.shape)}",
                remedy="Give [points, features] and count neighbours from 1.",
            )


class FeatureSqueezing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="squeezing"):
    """L1 distance between the answers to the input and to the input with less detail; costs a second inference.

    Attributes:
        input: Name of the input that is squeezed.
        bits: Levels that values are rounded to, 2**bits of them from low to high; 0 for no rounding.
        low: Of the input.
        high: Of the input.
        window: Odd length of a median over neighbours; 0 for none.
        axes: Along which neighbours lie, from the end: (-2, -1) for images [batch, channels, height, width].
    """

    input: str
    bits: int = 0
    low: float = 0.0
    high: float = 1.0
    window: int = 0
    axes: tuple[int, ...] = (-2, -1)

    def __post_init__(self) -> None:
        """Refuse a squeezing that changes nothing or cannot be done."""
        windowed = self.window == 0 or (3 <= self.window <= 15 and self.window % 2 == 1)
        if not windowed or not 0 <= self.bits <= 16 or not -math.inf < self.low < self.high < math.inf:
            raise InputError(
                f"squeezing to {self.bits} bits from {self.low:g} to {self.high:g} with a window of {self.window}",
                remedy="Use 1 to 16 bits between finite limits, or an odd window from 3 to 15.",
            )
        if not self.bits and not self.window:
            raise InputError("squeezing changes nothing", remedy="Give bits, a window or both.")
        if not self.axes or any(not -4 <= axis <= -1 for axis in self.axes) or len(set(self.axes)) < len(self.axes):
            raise InputError(
                f"neighbours along the axes {list(self.axes)}", remedy="Count axes from the end: -1 to -4."
            )


OodScore = LogitScore | MahalanobisScore | NearestNeighbourScore | FeatureSqueezing


class OodRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A measure with its threshold: what scores above it, or is no number, is unusual.

    Several rules together reject at most the sum of their rates.

    Attributes:
        score: How an input is scored; greater is more unusual.
        threshold: Greatest score that is usual.
        guarantee: How many usual inputs are rejected at most.
    """

    score: OodScore
    threshold: float
    guarantee: Guarantee

    def __post_init__(self) -> None:
        """Refuse a threshold that lets everything pass."""
        if not math.isfinite(self.threshold) or self.guarantee.kind != "rejection":
            raise InputError(
                f"an outlier's threshold is {self.threshold} with a promise about {self.guarantee.kind}",
                remedy="It is finite, and its promise is about rejections.",
            )
