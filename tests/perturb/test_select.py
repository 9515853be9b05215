"""The selection without a sort is the selection that `role` sorts for."""

import importlib

import pytest
import torch

from prismatic.perturb import Perturbation, role, select


class Whole:
    """All positions."""

    def of(self, x_P: torch.Tensor) -> torch.Tensor:
        return x_P


def with_zeros(numel: int, share: float) -> torch.Tensor:
    weight = torch.randn(numel)
    return torch.where(torch.rand(numel) < share, 0.0, weight)


WEIGHTS = {
    "one": lambda: torch.randn(1),
    "two": lambda: torch.randn(2),
    "seven": lambda: torch.randn(7),
    "odd": lambda: torch.randn(4001),
    "large": lambda: torch.randn(3_000_001),
    "constant": lambda: torch.ones(512),
    "all zero": lambda: torch.zeros(64),
    "many ties": lambda: torch.randint(-3, 4, (5000,)).float(),
    "some zeros": lambda: with_zeros(5000, 0.3),
    "nearly all zero": lambda: with_zeros(5000, 0.99),
    "tiny": lambda: torch.randn(2000) * 1e-40,
    "float64": lambda: torch.randn(2000, dtype=torch.float64),
    "bfloat16": lambda: torch.randn(100_000).bfloat16(),
}


@pytest.mark.parametrize("strategy", ["dual_sided", "top_only", "bottom_only"])
@pytest.mark.parametrize(
    ("name", "sparsity"),
    [(n, s) for n in WEIGHTS for s in (0.001, 0.1, 0.5, 1.0) if n != "large" or s == 0.1],
)
def test_it_is_the_role(name: str, sparsity: float, strategy: str) -> None:
    torch.manual_seed(0)
    weight = WEIGHTS[name]()
    perturbation = Perturbation(strategy=strategy, sparsity=sparsity)
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    moved = select(weight, perturbation).moved(wide, Whole())
    torch.testing.assert_close(moved, wide * role(weight, perturbation), rtol=0, atol=0)


REWRITES = {
    "the same": lambda w: w,
    "a step": lambda w: w + 1e-4 * torch.randn_like(w),
    "ten times": lambda w: 10 * w,
    "a thousandth": lambda w: w / 1000,
    "shuffled": lambda w: w[torch.randperm(len(w))],
    "half zeros": lambda w: torch.where(torch.rand_like(w) < 0.5, 0.0, w),
    "one zero": lambda w: w.index_fill(0, torch.tensor([7]), 0.0),
    "rounded": lambda w: (64 * w).round() / 64,
    "constant": torch.ones_like,
    "all zero": torch.zeros_like,
    "lower half moved": lambda w: torch.where(w.abs() < 0.5, w / 2, w),
}


@pytest.mark.parametrize("strategy", ["dual_sided", "top_only", "bottom_only"])
@pytest.mark.parametrize("all_roles", [False, True])
@pytest.mark.parametrize("rewrite", REWRITES)
def test_hints_change_nothing(rewrite: str, all_roles: bool, strategy: str) -> None:
    torch.manual_seed(0)
    weight, perturbation, hints = torch.randn(200_000), Perturbation(strategy=strategy), {}
    for _ in range(3):  # the second finds edges by the hints of the first
        select(weight, perturbation, hints, "a")
        weight = weight + 1e-5 * torch.randn_like(weight)
    weight = REWRITES[rewrite](weight)
    for _ in range(2):
        selection = select(weight, perturbation, hints, "a", all_roles)
        expected = weight * role(weight, perturbation)
        torch.testing.assert_close(selection.moved(weight, Whole()), expected, rtol=0, atol=0)
        signed = selection.signed(torch.ones_like(weight), weight, Whole())
        torch.testing.assert_close(signed, role(weight, perturbation).float(), rtol=0, atol=0)


def test_a_hint_saves_the_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight, perturbation, hints = torch.randn(200_000), Perturbation(), {}
    select(weight, perturbation, hints, "a")
    module = importlib.import_module("prismatic.perturb.select")
    monkeypatch.setattr(module, "parted", lambda *_: pytest.fail("partitioned"))
    for _ in range(5):
        weight = weight + 1e-5 * torch.randn_like(weight)
        select(weight, perturbation, hints, "a")


def test_the_weight_can_still_be_freed() -> None:
    weight = torch.randn(1000)
    select(weight, Perturbation())
    assert weight.untyped_storage().resizable()  # FSDP frees what it gathered
