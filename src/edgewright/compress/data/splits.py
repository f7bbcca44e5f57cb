"""Three disjoint parts of the data: one to calibrate with, one to choose by, one to certify on.

What is certified must not have been chosen by the same samples, so no sample, no group and no copy of a sample
is in two parts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.compress.data.dataset import Dataset, dataset_digest, row_digests
from edgewright.contract.errors import DataError

__all__ = ["MIN_GROUPS", "MIN_SAMPLES", "Splits", "split_dataset"]

MIN_SAMPLES = 10
MIN_GROUPS = 4
_CALIBRATE = (0.2, 512)  # share of the samples, and at most so many
_SELECT = (0.3, 2000)


@dataclass(frozen=True, slots=True)
class Splits:
    """Indices of the three parts, each in random order, so that a prefix is a fair sample of it.

    Attributes:
        calibrate: For value ranges; a fifth, at most 512 (whole groups can make it more).
        select: For choosing among candidates; three tenths, at most 2000.
        certify: The rest, for the certificate; with groups, at least half of them.
        fingerprint_certify: sha256 over the certify samples in the data's order.
    """

    calibrate: NDArray[np.intp]
    select: NDArray[np.intp]
    certify: NDArray[np.intp]
    fingerprint_certify: str


def split_dataset(
    dataset: Dataset, *, seed: int, calibrate: int | None = None, select: int | None = None
) -> Splits:
    """Divide the samples; the same data and seed always give the same parts.

    Classes are spread evenly over the parts. Groups, if there are any, stay whole; otherwise copies of a
    sample stay together.

    Args:
        dataset: At least `MIN_SAMPLES` samples, and `MIN_GROUPS` groups if it has groups.
        seed: Of the shuffle.
        calibrate: Number of samples to calibrate with, instead of the usual share. Copies and whole groups
            can make it differ a little.
        select: Likewise for choosing.

    Raises:
        DataError: Too few samples, groups or different samples.
    """
    count = len(dataset)
    if count < MIN_SAMPLES:
        raise DataError(
            f"the data holds {count} samples, the least is {MIN_SAMPLES}",
            remedy="Give more samples: a certificate for a drop of 1 percentage point takes about 740 or more.",
        )
    wanted = (
        _part_size(calibrate, count, *_CALIBRATE),
        _part_size(select, count, *_SELECT),
    )
    if min(wanted) < 1 or sum(wanted) >= count:
        raise DataError(
            f"{wanted[0]} samples to calibrate and {wanted[1]} to select leave none of {count} to certify",
            remedy="Ask for less, or give more samples.",
        )
    rng = np.random.default_rng(seed)
    groups = dataset.groups
    parts = _by_sample(dataset, wanted, rng) if groups is None else _by_group(groups, wanted, rng)
    shuffled = [rng.permutation(np.flatnonzero(parts == part)).astype(np.intp) for part in range(3)]
    certify = np.sort(shuffled[2])
    fingerprint = dataset_digest(
        {name: array[certify] for name, array in dataset.inputs.items()},
        None if dataset.labels is None else dataset.labels[certify],
        None if dataset.groups is None else dataset.groups[certify],
        dataset.task,
    )
    return Splits(shuffled[0], shuffled[1], shuffled[2], fingerprint)


def _part_size(requested: int | None, count: int, share: float, most: int) -> int:
    return min(most, int(share * count)) if requested is None else requested


def _by_group(groups: NDArray[Any], wanted: tuple[int, int], rng: np.random.Generator) -> NDArray[np.intp]:
    """Return the part of each sample so that every group is whole and half of them certify."""
    names, members = np.unique(groups, return_inverse=True)
    if len(names) < MIN_GROUPS:
        raise DataError(
            f"the data holds {len(names)} groups, the least is {MIN_GROUPS}",
            remedy="Give more groups, or leave the group column out if samples are independent.",
        )
    sizes = np.bincount(members)
    order = rng.permutation(len(names))
    free = len(names) // 2  # the larger half certifies
    part_of = np.full(len(names), 2, np.intp)
    calibrate = max(1, min(free - 1, round(len(names) * wanted[0] / len(groups))))
    while calibrate > 1 and sizes[order[: calibrate - 1]].sum() >= wanted[0]:
        calibrate -= 1
    selected = calibrate + 1
    while selected < free and sizes[order[calibrate:selected]].sum() < wanted[1]:
        selected += 1
    part_of[order[:calibrate]] = 0
    part_of[order[calibrate:selected]] = 1
    parts: NDArray[np.intp] = part_of[members]
    return parts


def _by_sample(dataset: Dataset, wanted: tuple[int, int], rng: np.random.Generator) -> NDArray[np.intp]:
    """Return the part of each sample so that copies stay together and classes are spread evenly."""
    first_of: dict[bytes, int] = {}
    copies: list[list[int]] = []
    for i, digest in enumerate(row_digests(dataset.inputs)):
        unit = first_of.setdefault(digest, len(copies))
        if unit == len(copies):
            copies.append([])
        copies[unit].append(i)
    if len(copies) < 3:
        raise DataError(
            f"the data holds {len(dataset)} samples, but only {len(copies)} different ones",
            remedy="Give samples that differ; copies of one sample prove nothing.",
        )
    order = rng.permutation(len(copies))
    if dataset.task == "classification" and dataset.labels is not None:
        classes = np.array([dataset.labels[unit[0]] for unit in copies])
        order = order[np.argsort(classes[order], kind="stable")]
    part_of = np.full(len(copies), 2, np.intp)
    for part, share in enumerate(wanted):
        free = [int(unit) for unit in order if part_of[unit] == 2]
        part_of[_pick_evenly(free, [len(copies[unit]) for unit in free], share, rng)] = part
    parts = np.empty(len(dataset), np.intp)
    for unit, members in enumerate(copies):
        parts[members] = part_of[unit]
    if len(np.unique(parts)) < 3:
        raise DataError(
            f"the data holds {len(copies)} different samples among {len(dataset)}, too few for three parts",
            remedy="Give more samples that differ.",
        )
    return parts


def _pick_evenly(units: Sequence[int], sizes: Sequence[int], wanted: int, rng: np.random.Generator) -> list[int]:
    """Pick units at even distances until they hold `wanted` samples, never more unless the first alone does."""
    total = sum(sizes)
    phase = float(rng.random())
    chosen: list[int] = []
    held, passed = 0, 0
    for unit, size in zip(units, sizes, strict=True):
        passed += size
        due = math.floor(passed * wanted / total + phase) - math.floor(phase)
        if due > held and (held + size <= wanted or not chosen):
            chosen.append(unit)
            held += size
    return chosen
