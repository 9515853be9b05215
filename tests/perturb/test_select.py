"""The selection without a sort is the selection that `role` sorts for."""

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
