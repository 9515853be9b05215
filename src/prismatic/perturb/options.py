"""What a perturbation and its focal pattern are: frozen options that refuse nonsense.

README.md beside this file shows how a mode, a strategy or a pattern of one's own gets a name.

Shapes: P positions of a tensor, row-major.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prismatic.errors import one_of, require

if TYPE_CHECKING:  # a bad option shall be refused before torch, which takes seconds, is there
    import torch

ALIASES = {"directional": "repulsive"}
SEEDINGS = ("pi", "hash")
UNITS = ("weights", "fraction")
PHASES = ("literal", "aligned")
PROFILES = ("exponential", "gaussian")
# A lens a hundred tensors wide is flat; a larger fraction is a length left in weights.
WIDEST_FRACTION = 100.0

UnitChange = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
Role = Callable[..., "torch.Tensor"]
Pattern = Callable[["torch.Tensor", int, Any, int, Any], "torch.Tensor"]

# A mode is the direction in which the role moves a weight; or a function that says more.
MODES: dict[str, float | UnitChange | None] = {"attractive": -1.0, "repulsive": 1.0, "noise": None}
# A strategy is the tiers' shares of `sparsity`, top and bottom; or a function.
STRATEGIES: dict[str, tuple[float, float] | Role] = {
    "dual_sided": (0.5, 0.5),
    "top_only": (1.0, 0.0),
    "bottom_only": (0.0, 1.0),
    "random": (0.5, 0.5),
}


def register_mode(name: str, mode: float | UnitChange) -> None:
    """Add a mode: a direction, which is as fast as ours, or the relative change at scale 1.

    That is a function of a tensor's weights and roles, both (P,): (P,) float64.
    """
    MODES[name] = mode


def register_strategy(name: str, strategy: tuple[float, float] | Role) -> None:
    """Add a strategy: shares of the top and bottom tier, as fast as ours, or the roles themselves.

    They are `strategy(weight_P, perturbation, name, view)`: +1, -1 and 0, (P,) int8.
    """
    STRATEGIES[name] = strategy


def register_pattern(name: str, pattern: Pattern) -> None:
    """Add a pattern: `pattern(position, numel, view, num_views, focal)` is the modulation.

    `position` holds float64 positions, `view` is one view or a view per position, and `focal` has
    the options. A smooth pattern is fast by itself: its short form is found by looking at it.
    """
    PATTERNS[name] = pattern


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
        share = "give a share in (0, 1]; for no perturbation at all set perturbation.scale=0"
        cap, strength = self.strength_max_scale, self.strength
        for name, valid, wanted in (
            ("sparsity", 0 < self.sparsity <= 1, share),
            ("scale", 0 <= self.scale < math.inf, "give a number >= 0"),
            ("strength", strength is None or 0 < strength < math.inf, "give null or a number > 0"),
            ("strength_max_scale", 0 < cap < math.inf, "give a number > 0"),
            ("pi_offset", self.pi_offset >= 0, "give a digit's position, >= 0"),
        ):
            require(valid, f"perturbation.{name}", getattr(self, name), wanted)

    @property
    def is_drawn(self) -> bool:
        """Whether each view draws its own weights before they are parted by magnitude."""
        return self.strategy == "random"

    @property
    def is_noise(self) -> bool:
        return self.mode == "noise"

    @property
    def has_short_form(self) -> bool:
        """Whether magnitudes, draws and a direction say it all; else every view is built."""
        return not callable(MODES[self.mode]) and not callable(STRATEGIES[self.strategy])

    def counts(self, numel: int) -> tuple[int, int]:
        """How many of a tensor's weights are in the top and in the bottom tier."""
        shares = STRATEGIES[self.strategy]
        assert not callable(shares)
        top, bottom = (
            max(1, round(self.sparsity * numel * share)) if share else 0 for share in shares
        )
        return top, bottom


@dataclass(frozen=True)
class Focal:
    """The pattern that shapes a perturbation over the positions of a tensor.

    `length` and `wavelength` are in weights, or in fractions of the tensor's size with
    `units="fraction"`, and must then both be given (0.1 and 1.0 are a sound start).
    Raises `ValueError` for a value out of range. Source: 002, "focal_pattern".
    """

    pattern: str = "radial_helical"
    length: float = 100 * math.pi
    wavelength: float = 1000 * math.pi
    units: str = "weights"
    phase: str = "literal"
    profile: str = "exponential"

    def __post_init__(self) -> None:
        one_of("focal.pattern", self.pattern, tuple(PATTERNS))
        one_of("focal.units", self.units, UNITS)
        one_of("focal.phase", self.phase, PHASES)
        one_of("focal.profile", self.profile, PROFILES)
        widest, wanted = math.inf, "give a number > 0"
        if self.units == "fraction":
            widest = WIDEST_FRACTION
            wanted = (
                f"units=fraction needs both lengths as fractions of a tensor in (0, {widest:g}]; "
                "try focal.length=0.1 focal.wavelength=1"
            )
        for name in ("length", "wavelength"):
            value = getattr(self, name)
            require(0 < value <= widest and value < math.inf, f"focal.{name}", value, wanted)

    def modulation(
        self, position: torch.Tensor, numel: int, view: Any, num_views: int
    ) -> torch.Tensor:
        """The pattern at some float64 positions of a tensor of `numel` weights.

        `view` is one view, or a tensor with a view per position.
        """
        return PATTERNS[self.pattern](position, numel, view, num_views, self)

    def lengths(self, numel: int) -> tuple[float, float]:
        """Focal length and wavelength in weights, for a tensor of `numel` weights."""
        unit = numel if self.units == "fraction" else 1
        return self.length * unit, self.wavelength * unit

    def envelope(self, distance: torch.Tensor, numel: int) -> torch.Tensor:
        """How a lens fades with the distance from its focal point."""
        lengths = distance / self.lengths(numel)[0]
        return (-(lengths**2) / 2 if self.profile == "gaussian" else -lengths).exp()

    def wave(self, distance: torch.Tensor, numel: int, view: Any, num_views: int) -> torch.Tensor:
        """A cosine over positions; whole turns are dropped before the view's phase is added."""
        turns = (distance / self.lengths(numel)[1]).frac()
        phase = (view - 1) / (num_views - 1) if self.phase == "aligned" else view / num_views
        return (2 * math.pi * turns + 2 * math.pi * phase).cos()


def none(position: torch.Tensor, numel: int, view: Any, num_views: int, focal: Any) -> torch.Tensor:
    return position.new_ones(position.shape)


def radial(
    position: torch.Tensor, numel: int, view: Any, num_views: int, focal: Focal
) -> torch.Tensor:
    return focal.envelope((position - view / num_views * numel).abs(), numel)


def helical(
    position: torch.Tensor, numel: int, view: Any, num_views: int, focal: Focal
) -> torch.Tensor:
    return focal.wave(position, numel, view, num_views)


def radial_helical(
    position: torch.Tensor, numel: int, view: Any, num_views: int, focal: Focal
) -> torch.Tensor:
    distance = (position - view / num_views * numel).abs()
    return focal.envelope(distance, numel) * focal.wave(distance, numel, view, num_views)


PATTERNS: dict[str, Pattern] = {
    "none": none,
    "radial": radial,
    "helical": helical,
    "radial_helical": radial_helical,
}
