"""The mechanism, written to be read: what a view changes, and by how much.

A view of a tensor W is W * (1 + f). This file defines f from its parts: which weights
(`role`), in which direction, with which shape (`Focal.modulation`) and, for noise, which draw.
It sorts and it builds every f in full; `merge` computes the same without doing either.

Shapes: tensors are flat over P = the row-major positions of one parameter.
"""

import hashlib

import mpmath
import numpy as np
import torch

from prismatic.errors import require

from .options import MODES, STRATEGIES, Focal, Perturbation

DIGITS_PER_VIEW = 16


def pi_digits(start: int, count: int) -> str:
    """Decimal digits of pi from a position; position 0 is the leading 3.

    >>> pi_digits(0, 5), pi_digits(99, 1)
    ('31415', '7')
    """
    with mpmath.workdps(start + count + 10):
        return mpmath.nstr(+mpmath.pi, start + count + 5).replace(".", "")[start : start + count]


def generator(perturbation: Perturbation, name: str, view: int) -> np.random.Philox:
    """The counter-based source of a view's draws: a function of the names and options alone."""
    x = str(perturbation.seed)
    if perturbation.seeding == "pi":
        x = pi_digits(perturbation.pi_offset + DIGITS_PER_VIEW * (view - 1), DIGITS_PER_VIEW)
    digest = hashlib.sha256(f"{perturbation.seeding}|{name}|{view}|{x}".encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little"))


def draw_noise(perturbation: Perturbation, name: str, view: int, numel: int) -> torch.Tensor:
    """The standard normal xi of mode `noise`: (P,) float64, on the CPU."""
    source = np.random.Generator(generator(perturbation, name, view))
    return torch.from_numpy(source.standard_normal(numel))


def draw_order(perturbation: Perturbation, name: str, view: int, numel: int) -> torch.Tensor:
    """The order in which strategy `random` draws weights without replacement: (P,) int64.

    The stream is jumped so that it shares nothing with the noise of the same tensor and view.
    """
    source = np.random.Generator(generator(perturbation, name, view).jumped())
    return torch.from_numpy(source.random(numel).argsort())


def role(
    weight: torch.Tensor, perturbation: Perturbation, name: str = "", view: int = 1
) -> torch.Tensor:
    """+1 for the top tier of a tensor's magnitudes, -1 for the bottom tier, 0 for the rest.

    Returns int8, shape of `weight`. Exactly k weights per tier, ties to the lower position, the top
    chosen first. Zeros are never selected: a multiplicative change cannot move them. `name` and
    `view` matter to the strategy `random` only. Source: 002, "perturbation_strategy".
    """
    weight_P = weight.detach().flatten()
    if hasattr(perturbation, "role"):  # an object of the user's own
        return perturbation.role(weight_P, name, view).view(weight.shape)
    strategy = STRATEGIES[perturbation.strategy]
    if callable(strategy):
        return strategy(weight_P, perturbation, name, view).view(weight.shape)
    num_top, num_bottom = perturbation.counts(weight.numel())
    magnitude_P = weight_P.abs()
    candidate_P = magnitude_P > 0
    if perturbation.is_drawn:
        order_P = draw_order(perturbation, name, view, weight.numel()).to(weight.device)
        drawn = order_P[candidate_P[order_P]][: num_top + num_bottom]
        candidate_P = torch.zeros_like(candidate_P).index_fill_(0, drawn, True)
    rest = candidate_P.nonzero().flatten()
    order = magnitude_P[rest].argsort(descending=True, stable=True)
    top = rest[order[:num_top]]
    rest = rest[order[num_top:].sort().values]
    bottom = rest[magnitude_P[rest].argsort(stable=True)[:num_bottom]]
    role_P = torch.zeros_like(magnitude_P, dtype=torch.int8)
    role_P[top], role_P[bottom] = 1, -1
    return role_P.view(weight.shape)


def unit_change(
    weight_P: torch.Tensor, role_P: torch.Tensor, perturbation: Perturbation, name: str, view: int
) -> torch.Tensor:
    """The relative change at scale 1 and before modulation: (P,) float64."""
    if hasattr(perturbation, "unit_change"):  # an object of the user's own
        return perturbation.unit_change(weight_P, role_P)
    mode = MODES[perturbation.mode]
    if callable(mode):
        return mode(weight_P, role_P)
    if mode is not None:
        return role_P.double() * mode
    xi_P = draw_noise(perturbation, name, view, len(weight_P)).to(weight_P.device)
    return weight_P.sign().double() * xi_P * role_P.abs()


def require_reachable(scale: float, perturbation: Perturbation) -> None:
    """Refuse a solved scale beyond `strength_max_scale`.

    A lens that touches next to nothing reaches a strength only with absurd factors.
    """
    require(
        scale <= perturbation.strength_max_scale,
        "perturbation.strength",
        perturbation.strength,
        f"it needs a scale of {scale:.3g} and perturbation.strength_max_scale is "
        f"{perturbation.strength_max_scale:g}, since the lens touches too little of a tensor: use "
        "focal.units=fraction focal.length=0.1 focal.wavelength=1, or ask for less",
    )


def change(
    weight: torch.Tensor,
    view: int,
    num_views: int,
    perturbation: Perturbation,
    focal: Focal,
    name: str = "",
) -> torch.Tensor:
    """The relative change f of one view, so that the view is `weight * (1 + f)`.

    Same shape and dtype as `weight`; a constant for the gradient; 0 for view 0. `name` keys the
    draws of `noise` and `random`. Raises `ValueError` for a strength that cannot be reached.
    Source: 002, "Perturbation Formula".
    """
    weight_P = weight.detach().flatten()
    if view == 0:
        return torch.zeros_like(weight_P).view(weight.shape)
    role_P = role(weight_P, perturbation, name, view)
    position_P = torch.arange(len(weight_P), device=weight.device).double()
    shape_P = focal.modulation(position_P, len(weight_P), view, num_views)
    unit_P = unit_change(weight_P, role_P, perturbation, name, view) * shape_P
    scale = perturbation.scale
    if perturbation.strength is not None:
        moved, norm = float((weight_P.double() * unit_P).norm()), float(weight_P.double().norm())
        scale = perturbation.strength * norm / moved if moved else 0.0
        require_reachable(scale, perturbation)
    return (scale * unit_P).to(weight.dtype).view(weight.shape)
