"""What a perturbation and its focal pattern are: frozen options that refuse nonsense."""

import math
from dataclasses import dataclass
from typing import Any

from prismatic.errors import one_of, require

MODES = ("attractive", "repulsive", "noise")
ALIASES = {"directional": "repulsive"}
# Share of `sparsity` that goes to the top and to the bottom tier.
STRATEGIES = {
    "dual_sided": (0.5, 0.5),
    "top_only": (1.0, 0.0),
    "bottom_only": (0.0, 1.0),
    "random": (0.5, 0.5),
}
SEEDINGS = ("pi", "hash")
PATTERNS = ("none", "radial", "helical", "radial_helical")
UNITS = ("weights", "fraction")
PHASES = ("literal", "aligned")
PROFILES = ("exponential", "gaussian")
# A lens a hundred tensors wide is flat; a larger fraction is a length left in weights.
WIDEST_FRACTION = 100.0


@dataclass(frozen=True)
class Perturbation:
    """Which weights a view changes, in which direction and by how much.

    `scale` is a share of a weight's own magnitude; `sparsity` the share of a tensor's weights that
    is selected. `strength`, when given, replaces `scale`: a scale is solved per tensor and view so
    that norm(W * f) / norm(W) equals it. `directional` is an older name of the mode `repulsive`.
    Raises `ValueError` for a value out of range. Source: 002, "Perturbation Parameters".
    """

    mode: str = "attractive"
    strategy: str = "dual_sided"
    sparsity: float = 0.1
    scale: float = 0.8
    strength: float | None = None
    seeding: str = "hash"
    seed: int = 0
    pi_offset: int = 99
    perturb_by_magnitude: bool = True
    strength_max_scale: float = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", ALIASES.get(self.mode, self.mode))
        one_of("perturbation.mode", self.mode, (*MODES, *ALIASES))
        one_of("perturbation.strategy", self.strategy, tuple(STRATEGIES))
        one_of("perturbation.seeding", self.seeding, SEEDINGS)
        if not self.perturb_by_magnitude:
            object.__setattr__(self, "strategy", "random")
        require(
            0 < self.sparsity <= 1,
            "perturbation.sparsity",
            self.sparsity,
            "give a share in (0, 1]; for no perturbation at all set perturbation.scale=0",
        )
        finite = 0 <= self.scale < math.inf
        require(finite, "perturbation.scale", self.scale, "give a number >= 0")
        solvable = self.strength is None or 0 < self.strength < math.inf
        require(solvable, "perturbation.strength", self.strength, "give null or a number > 0")
        name, cap = "perturbation.strength_max_scale", self.strength_max_scale
        require(0 < cap < math.inf, name, cap, "give a number > 0")
        name, offset = "perturbation.pi_offset", self.pi_offset
        require(offset >= 0, name, offset, "give a digit's position, >= 0")

    @property
    def per_view(self) -> bool:
        """Whether the views differ in more than their focal pattern."""
        return self.strategy == "random" or self.mode == "noise"

    def counts(self, numel: int) -> tuple[int, int]:
        """How many of a tensor's weights are in the top and in the bottom tier."""
        top, bottom = (
            max(1, round(self.sparsity * numel * share)) if share else 0
            for share in STRATEGIES[self.strategy]
        )
        return top, bottom


@dataclass(frozen=True)
class Focal:
    """The pattern that shapes a perturbation over the positions of a tensor.

    `length` and `wavelength` are in weights, or in fractions of the tensor's size with
    `units="fraction"`, and must then both be given (0.1 and 1.0 are a sound start). `shuffle`, when
    given, is the seed of an order in which positions are counted instead of their own: a control
    that keeps a pattern's strength and takes its geometry.
    Raises `ValueError` for a value out of range. Source: 002, "focal_pattern".
    """

    pattern: str = "radial_helical"
    length: float = 100 * math.pi
    wavelength: float = 1000 * math.pi
    units: str = "weights"
    phase: str = "literal"
    profile: str = "exponential"
    shuffle: int | None = None

    def __post_init__(self) -> None:
        one_of("focal.pattern", self.pattern, PATTERNS)
        one_of("focal.units", self.units, UNITS)
        one_of("focal.phase", self.phase, PHASES)
        one_of("focal.profile", self.profile, PROFILES)
        seed = self.shuffle is None or (isinstance(self.shuffle, int) and self.shuffle >= 0)
        require(seed, "focal.shuffle", self.shuffle, "give null or a whole number >= 0")
        widest = WIDEST_FRACTION if self.units == "fraction" else math.inf
        wanted = "give a number > 0"
        if self.units == "fraction":
            wanted = (
                f"units=fraction needs both lengths as fractions of a tensor in (0, {widest:g}]; "
                "try focal.length=0.1 focal.wavelength=1"
            )
        for name in ("length", "wavelength"):
            value = getattr(self, name)
            require(0 < value <= widest and value < math.inf, f"focal.{name}", value, wanted)

    def lengths(self, numel: int) -> tuple[float, float]:
        """Focal length and wavelength in weights, for a tensor of `numel` weights."""
        unit = numel if self.units == "fraction" else 1
        return self.length * unit, self.wavelength * unit

    def phase_of(self, view: Any, num_views: int) -> Any:
        """Phase offset of a view, or of a tensor of views, in radians."""
        if self.phase == "aligned":
            return 2 * math.pi * (view - 1) / (num_views - 1)
        return 2 * math.pi * view / num_views
