"""The fast paths compute what the definition of a view says, whatever wrote to the weights."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

from prismatic.perturb import Focal, Perturbation, change
from prismatic.routers import PrismaticRouter

# Shapes: B batch, T time, D width, E views.
DIM = 48
FOCALS = {
    "narrow": Focal(length=3.0, wavelength=30.0),
    "literal": Focal(),
    "none": Focal("none"),
    "helical": Focal("helical"),
    "radial": Focal("radial", 0.1, 1.0, units="fraction"),
    "radial_helical": Focal("radial_helical", 0.1, 1.0, units="fraction", phase="aligned"),
    "gaussian": Focal("radial_helical", 0.1, 1.0, units="fraction", profile="gaussian"),
}
POOLS = {"batch": "mean", "sequence": "mean", "token": "causal_mean"}


def block() -> nn.Module:
    return nn.Sequential(
        nn.LayerNorm(DIM), nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM, bias=False)
    )


def router(level: str, num_experts: int, focal: Focal, **options: Any) -> PrismaticRouter:
    torch.manual_seed(0)
    perturbation = Perturbation(**options)
    return PrismaticRouter(
        block(), DIM, num_experts, perturbation, focal, level, POOLS[level], name="b"
    )


def reference(router: PrismaticRouter, x_BTD: torch.Tensor) -> torch.Tensor:
    """Each position with a weight of its own, made from `change` view by view."""
    num_experts = router.num_experts
    shape_BTE = (*x_BTD.shape[:2], num_experts)
    probs_BTE = router.route(x_BTD).probs.expand(shape_BTE)
    factors = {
        name: torch.stack([
            change(p, i, num_experts, router.perturbation, router.focal, f"b.{name}")
            for i in range(num_experts)
        ])
        for name, p in router.expert.named_parameters()
    }  # fmt: skip

    def at(probs_E: torch.Tensor, x_D: torch.Tensor) -> torch.Tensor:
        named = router.expert.named_parameters()
        merged = {
            name: p * (1 + torch.einsum("e,e...->...", probs_E, factors[name])) for name, p in named
        }
        return functional_call(router.expert, merged, (x_D,))

    rows = zip(probs_BTE.flatten(0, 1), x_BTD.flatten(0, 1), strict=True)
    return torch.stack([at(*row) for row in rows]).unflatten(0, x_BTD.shape[:2])


def close(ours: torch.Tensor, theirs: torch.Tensor, rtol: float) -> None:
    scale = float(theirs.detach().abs().max())
    assert float((ours.detach() - theirs.detach()).abs().max()) <= rtol * max(scale, 1e-3)


def agrees(router: PrismaticRouter, rtol: float, gradients: bool = True) -> None:
    """Outputs, and gradients by the input and every parameter, are the float64 reference's."""
    generator = torch.Generator().manual_seed(1)
    x, seen = (torch.randn(2, 5, DIM, generator=generator) for _ in range(2))
    dtype = next(router.parameters()).dtype
    x, seen = x.to(dtype).requires_grad_(gradients), seen.to(dtype)
    exact, exact_x = copy.deepcopy(router).double(), x.detach().double().requires_grad_(gradients)
    ours, theirs = router(x), reference(exact, exact_x)
    close(ours, theirs, rtol)
    if gradients:
        mine = gradients_of(ours, seen, [x, *router.parameters()])
        others = gradients_of(theirs, seen.double(), [exact_x, *exact.parameters()])
        close(mine, others, rtol)


def gradients_of(y: torch.Tensor, seen: torch.Tensor, wanted: list[torch.Tensor]) -> torch.Tensor:
    """All gradients in one vector, 0 where there is none."""
    found = torch.autograd.grad((y * seen).sum(), wanted, allow_unused=True)
    pairs = zip(found, wanted, strict=True)
    return torch.cat(
        [torch.zeros_like(w).flatten() if g is None else g.flatten() for g, w in pairs]
    )


@pytest.mark.parametrize("num_experts", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("focal", FOCALS)
@pytest.mark.parametrize("level", POOLS)
def test_every_pattern(level: str, focal: str, num_experts: int) -> None:
    agrees(router(level, num_experts, FOCALS[focal]), 2e-6)


@pytest.mark.parametrize("options", [
    {"strategy": "top_only"}, {"strategy": "bottom_only"}, {"strategy": "random"},
    {"mode": "repulsive"}, {"mode": "noise"}, {"scale": 0.0}, {"sparsity": 1.0},
    {"strength": 0.005, "strength_max_scale": 100.0},
])  # fmt: skip
@pytest.mark.parametrize("level", POOLS)
def test_every_option(level: str, options: dict[str, Any]) -> None:
    agrees(router(level, 3, FOCALS["radial_helical"], **options), 2e-6)


@pytest.mark.parametrize("level", POOLS)
@pytest.mark.parametrize("focal", ["helical", "radial_helical"])
def test_float64(level: str, focal: str) -> None:
    agrees(router(level, 8, FOCALS[focal]).double(), 1e-12)


def adamw(**options: Any) -> Callable[[nn.Module], None]:
    def write(module: nn.Module) -> None:
        for parameter in module.parameters():
            parameter.grad = torch.randn_like(parameter)
        torch.optim.AdamW(module.parameters(), lr=0.1, **options).step()

    return write


def fresh(like: torch.Tensor) -> torch.Tensor:
    return 0.1 * torch.randn_like(like) if like.is_floating_point() else like


def by_data(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data = fresh(parameter)


def by_numpy(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.detach().numpy()[:] = fresh(parameter).numpy()


def by_vector(module: nn.Module) -> None:
    vector = nn.utils.parameters_to_vector(module.parameters())
    nn.utils.vector_to_parameters(fresh(vector).detach(), module.parameters())


def by_assignment(module: nn.Module) -> None:
    state = {k: fresh(v) if isinstance(v, torch.Tensor) else v
             for k, v in copy.deepcopy(module.state_dict()).items()}  # fmt: skip
    module.load_state_dict(state, assign=True)


@torch.inference_mode()
def in_inference(module: nn.Module) -> None:
    module(torch.randn(2, 5, DIM))


@torch.no_grad()
def in_place(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.mul_(torch.randn_like(parameter))


WRITERS = {
    "foreach": adamw(foreach=True), "fused": adamw(fused=True), "data": by_data, "numpy": by_numpy,
    "vector": by_vector, "assign": by_assignment, "inference": in_inference, "in place": in_place,
}  # fmt: skip


@pytest.mark.parametrize("level", POOLS)
@pytest.mark.parametrize("writer", WRITERS)
def test_no_selection_is_stale(writer: str, level: str) -> None:
    routed = router(level, 4, FOCALS["radial_helical"])
    agrees(routed, 2e-6, gradients=False)
    WRITERS[writer](routed)
    agrees(routed, 2e-6)
    agrees(copy.deepcopy(routed), 2e-6)


@pytest.mark.parametrize("level", POOLS)
def test_autocast(level: str) -> None:
    routed = router(level, 4, FOCALS["radial_helical"])
    x = torch.randn(2, 5, DIM)
    with torch.autocast("cpu", torch.bfloat16):
        close(routed(x).float(), reference(routed, x).float(), 2e-2)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("level", POOLS)
@pytest.mark.filterwarnings("ignore")
def test_compiled(level: str, backend: str) -> None:
    routed = router(level, 4, FOCALS["radial_helical"])
    x, x_2 = (torch.randn(2, 5, DIM).requires_grad_() for _ in range(2))
    x_2 = x.detach().clone().requires_grad_()
    ours, theirs = torch.compile(routed, backend=backend)(x), reference(routed, x_2)
    close(ours, theirs, 2e-6)
    wanted = list(routed.expert.parameters())
    seen = torch.randn_like(ours)
    close(gradients_of(ours, seen, [x, *wanted]), gradients_of(theirs, seen, [x_2, *wanted]), 2e-6)


@pytest.mark.parametrize("level", POOLS)
@pytest.mark.parametrize("focal", ["narrow", "helical", "radial_helical"])
def test_a_graph_can_be_gone_back_twice(level: str, focal: str) -> None:
    routed = router(level, 3, FOCALS[focal])
    y = routed(torch.randn(2, 5, DIM)).square().sum()
    once = torch.autograd.grad(y, list(routed.parameters()), retain_graph=True)
    again = torch.autograd.grad(y, list(routed.parameters()))
    for first, second in zip(once, again, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


LARGE = [
    ("token", "literal"),
    pytest.param("batch", "none", marks=pytest.mark.slow),
    pytest.param("sequence", "radial_helical", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("level", "focal"), LARGE)
def test_three_million_weights(level: str, focal: str) -> None:
    torch.manual_seed(0)
    expert = nn.Sequential(nn.Linear(DIM, 1200), nn.Linear(1200, 2500, bias=False))
    pool = POOLS[level]
    routed = PrismaticRouter(expert, DIM, 4, None, FOCALS[focal], level, pool, name="b")
    x = torch.randn(2, 1, DIM)
    with torch.no_grad():
        routed(x)
        expert[1].weight.add_(1e-5 * torch.randn_like(expert[1].weight))
        # This selection is found by the edges of the last.
        close(routed(x), reference(copy.deepcopy(routed).double(), x.double()), 2e-6)
