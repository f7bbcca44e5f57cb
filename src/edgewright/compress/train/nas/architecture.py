"""An architecture as data: the family of a network and the few numbers that its size depends on."""

from typing import Literal, TypeAlias, get_args

import msgspec

from edgewright.contract.errors import CandidateError

__all__ = ["DIMENSION_LADDERS", "Architecture", "NetworkFamily"]

NetworkFamily: TypeAlias = Literal[
    "plain",
    "residual",
    "separable",
    "inverted",
    "patches",
    "plain1d",
    "residual1d",
    "separable1d",
    "temporal",
    "gru",
    "transformer",
    "mlp",
    "bottleneck",
]

_NAMES: dict[str, str] = {
    "plain": "plain cnn",
    "residual": "residual cnn",
    "separable": "separable cnn",
    "inverted": "inverted residual cnn",
    "patches": "transformer over patches",
    "plain1d": "plain cnn over time",
    "residual1d": "residual cnn over time",
    "separable1d": "separable cnn over time",
    "temporal": "dilated cnn over time",
    "gru": "gru",
    "transformer": "transformer over time",
    "mlp": "mlp",
    "bottleneck": "bottleneck mlp",
}

# The values that a step up or down goes through, from small to large networks.
DIMENSION_LADDERS: dict[str, tuple[int, ...]] = {
    "width": (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512),
    "stages": (1, 2, 3, 4, 5),
    "depth": (1, 2, 3, 4),
    "kernel": (3, 5, 7, 9),
    "resolution": (16, 8, 4, 2, 1),
    "expansion": (1, 2, 3, 4, 6),
}

_CONVOLUTIONS = ("width", "stages", "depth", "kernel", "resolution")
_DIMENSIONS: dict[str, tuple[str, ...]] = {
    "inverted": (*_CONVOLUTIONS, "expansion"),
    "temporal": ("width", "depth", "kernel", "resolution"),
    "gru": ("width", "depth", "resolution"),
    "patches": ("width", "depth", "resolution", "expansion"),
    "transformer": ("width", "depth", "resolution", "expansion"),
    "mlp": ("width", "depth"),
    "bottleneck": ("width", "depth", "expansion"),
}


class Architecture(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One member of a family.

    Attributes:
        family: How the network is built.
        width: Channels of the first stage (hidden units of mlp and gru); each further stage has twice as many.
        stages: Each but the first halves the map.
        depth: Blocks per stage; layers of mlp, gru and transformer.
        kernel: Side of the convolutions' windows, odd.
        resolution: By how much the first layer reduces the map's sides (the patch's side of transformers).
        expansion: Inner channels of a block as a multiple of its width (how much narrower the middle of a
            bottleneck is than its width).

    Raises:
        CandidateError: A number that no network could have.
    """

    family: NetworkFamily
    width: int = 16
    stages: int = 1
    depth: int = 1
    kernel: int = 3
    resolution: int = 1
    expansion: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.family not in get_args(NetworkFamily):
            raise CandidateError(
                f"there is no family {self.family!r}", remedy=f"Choose among {', '.join(get_args(NetworkFamily))}."
            )
        for name, least, most in (
            ("width", 1, 4096),
            ("stages", 1, 8),
            ("depth", 1, 32),
            ("kernel", 1, 63),
            ("resolution", 1, 64),
            ("expansion", 1, 16),
        ):
            if not least <= getattr(self, name) <= most:
                raise CandidateError(
                    f"{name} is {getattr(self, name)}, it must lie between {least} and {most}",
                    remedy="Choose a smaller or larger network.",
                )
        if self.kernel % 2 == 0:
            raise CandidateError(f"kernel is {self.kernel}, it must be odd", remedy="Add one.")

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the numbers that matter in this family."""
        return _DIMENSIONS.get(self.family, _CONVOLUTIONS)

    @property
    def title(self) -> str:
        """Return a short name for people.

        >>> Architecture("separable", width=16, stages=3, depth=2).title
        'separable cnn, width 16, 3 stages, depth 2'
        >>> Architecture("gru", width=32, resolution=4).title
        'gru, width 32, depth 1, resolution 1/4'
        """
        parts = [_NAMES[self.family]]
        for name in self.dimensions:
            value = getattr(self, name)
            if name == "stages":
                parts.append(f"{value} stage{'s' if value > 1 else ''}")
            elif name == "resolution":
                parts += [f"resolution 1/{value}"] if value > 1 else []
            elif name != "kernel" or value != 3:
                parts.append(f"{name} {value}")
        return ", ".join(parts)

    def neighbours(self) -> list["Architecture"]:
        """Return the architectures one step down or up in one dimension."""
        found: list[Architecture] = []
        for name in self.dimensions:
            value, ladder = getattr(self, name), DIMENSION_LADDERS[name]
            ascending = sorted(ladder)
            below = [step for step in ascending if step < value][-1:]
            above = [step for step in ascending if step > value][:1]
            found += [msgspec.structs.replace(self, **{name: step}) for step in (*below, *above)]
        return found
