"""Patterns, modes and strategies of one's own go through the production path as ours do."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import prismatic.perturb
from prismatic.perturb import (
    MODES,
    PATTERNS,
    STRATEGIES,
    Focal,
    Perturbation,
    change,
    merge,
    register_mode,
    register_pattern,
    register_strategy,
)
from prismatic.routers import PrismaticRouter

PAGE = Path(prismatic.perturb.__file__).with_name("README.md")
PROBS = torch.tensor([0.4, 0.3, 0.2, 0.1])


@pytest.fixture(autouse=True)
def tables_are_put_back():
    tables = [(table, dict(table)) for table in (MODES, STRATEGIES, PATTERNS)]
    yield
    for table, before in tables:
        table.clear()
        table.update(before)


def merges_as_defined(perturbation, focal):
    """A merge is that of the views, each as `change` defines it."""
    torch.manual_seed(0)
    for shape in ((48, 40), (33, 7), (50,)):
        weight = torch.randn(shape)
        fs = [change(weight, view, 4, perturbation, focal, "w") for view in range(4)]
        assert any(f.any() for f in fs)
        expected = weight * (1 + sum(r * f for r, f in zip(PROBS, fs, strict=True)))
        got = merge(weight, PROBS, perturbation, focal, "w")
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)


def test_the_pattern_of_the_page_runs_and_merges_as_it_says():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len([line for line in code.split("register_pattern(")[0].splitlines() if line]) <= 10
    found = {}
    exec(code, found)
    assert found["merged"].shape == (64, 32)
    merges_as_defined(Perturbation(), Focal("stripes", length=16))
    merges_as_defined(Perturbation("noise", "random"), Focal("stripes", length=3))


def test_modes_and_strategies_by_numbers_and_by_functions():
    register_mode("doubling", 2.0)
    register_mode("to_one", lambda weight, role: (weight.sign().double() / weight - 1) * role.abs())
    register_strategy("mostly_top", (0.8, 0.2))

    def evens(weight, perturbation, name, view):
        return (torch.arange(len(weight)) % (view + 1) == 0).to(torch.int8)

    register_strategy("evens", evens)
    for mode in ("doubling", "to_one", "noise"):
        for strategy in ("mostly_top", "evens", "random"):
            merges_as_defined(Perturbation(mode, strategy, scale=0.5), Focal(length=30))
    register_pattern("steps", lambda position, numel, view, num_views, focal: position // 7 % 3)
    merges_as_defined(Perturbation("to_one", "evens"), Focal("steps"))


def test_an_unknown_name_is_refused_with_those_registered():
    register_mode("doubling", 2.0)
    with pytest.raises(ValueError, match="attractive, repulsive, noise, doubling"):
        Perturbation(mode="halving")


class Ramp(NamedTuple):
    """A focal pattern as an object."""

    height: float

    def modulation(self, position, numel, view, num_views):
        return self.height * view * position / numel


class Largest(NamedTuple):
    """A perturbation as an object: each view halves one of the largest weights."""

    scale: float = 0.5
    strength: float | None = None
    strength_max_scale: float = 2.0

    def role(self, weight, name, view):
        role = torch.zeros(len(weight), dtype=torch.int8)
        role[weight.abs().argsort()[-view]] = 1
        return role

    def unit_change(self, weight, role):
        return -role.double()


@pytest.mark.parametrize("level", ["token", "sequence", "batch"])
def test_objects_of_ones_own_are_routed(level):
    merges_as_defined(Largest(), Ramp(0.8))
    merges_as_defined(Largest(strength=0.01, strength_max_scale=1e6), Ramp(0.8))
    expert = torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.Linear(8, 8))
    pool = "causal_mean" if level == "token" else "mean"
    router = PrismaticRouter(expert, 8, 4, Largest(), Ramp(1.0), level, pool)
    x = torch.randn(2, 3, 8)
    with router.forced(2):
        weight = {
            name: p * (1 + change(p, 2, 4, Largest(), Ramp(1.0)))
            for name, p in expert.named_parameters()
        }
        expected = torch.func.functional_call(expert, weight, (x,))
        torch.testing.assert_close(router(x), expected, rtol=0, atol=1e-6)
