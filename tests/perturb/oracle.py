"""mechanism.md sections 1-5 a second time: plain Python and float64 numpy, from the text alone.

Nothing of prismatic is imported. Options are read by name from whatever objects carry them.
Strategy `random` is told which positions were drawn: the text says how many, not which.
"""

import hashlib
from functools import lru_cache
from math import pi

import numpy as np


@lru_cache
def digits_of_pi(count):
    """The first digits of pi by Machin's formula in integers: '31415...'."""
    one = 10 ** (count + 10)

    def arctan_of_inverse(x):
        term = total = one // x
        sign, odd = 1, 1
        while term:
            term //= x * x
            sign, odd = -sign, odd + 2
            total += sign * (term // odd)
        return total

    return str(4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239)))[:count]


def counts(n, strategy, sparsity):
    both, one = max(1, round(sparsity * n / 2)), max(1, round(sparsity * n))
    return {
        "dual_sided": (both, both),
        "random": (both, both),
        "top_only": (one, 0),
        "bottom_only": (0, one),
    }[strategy]


def role(weights, strategy, sparsity, drawn=None):
    """+1, -1 or 0 for every weight of a flat array."""
    return np.array(roles_of(tuple(weights.tolist()), strategy, sparsity, drawn), dtype=np.float64)


@lru_cache(8)
def roles_of(weights, strategy, sparsity, drawn):
    magnitude = [abs(w) for w in weights]
    num_top, num_bottom = counts(len(magnitude), strategy, sparsity)
    candidates = [p for p, m in enumerate(magnitude) if m != 0]
    if strategy == "random":
        candidates = [p for p in candidates if p in drawn]
    top = sorted(candidates, key=lambda p: (-magnitude[p], p))[:num_top]
    rest = set(candidates) - set(top)
    bottom = sorted(rest, key=lambda p: (magnitude[p], p))[:num_bottom]
    roles = [0] * len(magnitude)
    for p in top:
        roles[p] = 1
    for p in bottom:
        roles[p] = -1
    return roles


def modulation(n, view, num_views, focal):
    p = np.arange(n, dtype=np.float64)
    unit = n if focal.units == "fraction" else 1
    f, wavelength = focal.length * unit, focal.wavelength * unit
    d = np.abs(p - view / num_views * n)
    phase = 2 * pi * view / num_views
    if focal.phase == "aligned":
        phase = 0.0 if num_views == 2 else 2 * pi * (view - 1) / (num_views - 1)

    def cosine(distance):
        turns = distance / wavelength
        return np.cos(2 * pi * (turns - np.floor(turns)) + phase)

    lens = np.exp(-(d**2) / (2 * f**2)) if focal.profile == "gaussian" else np.exp(-d / f)
    return {
        "none": np.ones(n),
        "radial": lens,
        "helical": cosine(p),
        "radial_helical": lens * cosine(d),
    }[focal.pattern]


def noise(n, name, view, perturbation):
    x = str(perturbation.seed)
    if perturbation.seeding == "pi":
        start = perturbation.pi_offset + 16 * (view - 1)
        x = digits_of_pi(start + 16)[start:]
    key = hashlib.sha256(f"{perturbation.seeding}|{name}|{view}|{x}".encode()).digest()[:16]
    philox = np.random.Philox(key=np.frombuffer(key, dtype="<u8"))
    return np.random.Generator(philox).standard_normal(n)


def solved_scale(weights, unit, perturbation):
    if perturbation.strength is None:
        return perturbation.scale
    moved, norm = np.linalg.norm(weights * unit), np.linalg.norm(weights)
    return perturbation.strength * norm / moved if moved else 0.0


def change(weights, view, num_views, perturbation, focal, name, drawn=None):
    """f_i of a flat float64 array."""
    if view == 0:
        return np.zeros(len(weights))
    roles = role(weights, perturbation.strategy, perturbation.sparsity, drawn)
    direction = {"attractive": -roles, "repulsive": roles}.get(perturbation.mode)
    if perturbation.mode == "noise":
        xi = noise(len(weights), name, view, perturbation)
        direction = np.sign(weights) * xi * np.abs(roles)
    unit = direction * modulation(len(weights), view, num_views, focal)
    return solved_scale(weights, unit, perturbation) * unit
