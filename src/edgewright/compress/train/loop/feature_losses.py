"""What a student learns from a teacher's inside: its features, and how it arranges samples among each other."""

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["FeatureProjection", "feature_loss", "flat_features", "relation_loss"]

_MAX_ANGLES = 64  # angles grow with the cube of the rows
_MIN_DISTANCE = 1e-8


def flat_features(features: Tensor) -> Tensor:
    """Return [n, d]: vectors as they are, maps [n, c, ...] as their means over places."""
    return features.flatten(2).mean(dim=2) if features.ndim > 2 else features


class FeatureProjection(nn.Module):
    """A linear map from a student's features to its teacher's (FitNets, arXiv:1412.6550)."""

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.map = nn.Linear(student, teacher)

    def forward(self, features: Tensor) -> Tensor:
        """Return [n, teacher's d] for [n, student's d]."""
        mapped: Tensor = self.map(features)
        return mapped


def feature_loss(mapped: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared distance per value, in units of the teacher's own spread over the rows."""
    spread = teacher.var(dim=0, correction=0).mean().clamp_min(_MIN_DISTANCE)
    return functional.mse_loss(mapped, teacher) / spread


def relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compare distances between pairs and angles within triples (RKD, arXiv:1904.05068, weights 1 and 2).

    Args:
        student: [n, d].
        teacher: [n, any d]; angles are compared among the first 64 rows.
    """
    distances = functional.smooth_l1_loss(_distances(student), _distances(teacher))
    some = slice(0, _MAX_ANGLES)
    return distances + 2 * functional.smooth_l1_loss(_angles(student[some]), _angles(teacher[some]))


def _distances(rows: Tensor) -> Tensor:
    """Return [n, n] distances divided by their mean."""
    squares = rows.square().sum(dim=1)
    found = (squares[:, None] + squares[None, :] - 2 * rows @ rows.T).clamp_min(_MIN_DISTANCE)
    apart = ~torch.eye(len(rows), dtype=torch.bool)
    # The root has no gradient at zero, so a sample's distance to itself is left out.
    result = torch.where(apart, found, torch.ones(())).sqrt() * apart
    return result / (result.sum() / max(1, len(rows) * (len(rows) - 1))).clamp_min(_MIN_DISTANCE)


def _angles(rows: Tensor) -> Tensor:
    """Return [n, n, n] cosines of the angle at the first sample between the other two."""
    ways = functional.normalize(rows[None, :, :] - rows[:, None, :], dim=2, eps=1e-6)
    return ways @ ways.transpose(1, 2)
