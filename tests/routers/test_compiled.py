"""A compiler sees routed modules as one graph, and a step waits for no result."""

from functools import partial

import pytest
import torch
from torch import nn

from prismatic.bench.counting import counting
from prismatic.models import Transformer
from prismatic.perturb import Focal, Perturbation
from prismatic.routers import PrismaticRouter, SmearRouter

POOLS = {"batch": "mean", "sequence": "mean", "token": "causal_mean"}
RELATIVE = {"length": 0.1, "wavelength": 1.0, "units": "fraction"}
VIEWS = {
    "literal": (Perturbation(), Focal()),
    "none": (Perturbation("repulsive"), Focal("none")),
    "helical": (Perturbation(strategy="top_only"), Focal("helical")),
    "relative": (Perturbation(strategy="bottom_only"), Focal(**RELATIVE)),
    "gaussian": (Perturbation(), Focal(**RELATIVE, profile="gaussian")),
    "noise": (Perturbation("noise"), Focal(**RELATIVE)),
    "narrow noise": (Perturbation("noise"), Focal(length=1.0)),
    "random": (Perturbation(strategy="random"), Focal(**RELATIVE)),
    "strength": (Perturbation(strength=0.01, strength_max_scale=100.0), Focal(**RELATIVE)),
}
FEW = [("batch", "random"), ("sequence", "none"), ("token", "literal")]
EVERY_OTHER = [
    pytest.param(level, views, marks=pytest.mark.slow)
    for level in POOLS for views in VIEWS if (level, views) != ("token", "literal")
]  # fmt: skip
EVERY = [pytest.param(*pair, marks=[] if pair in FEW else pytest.mark.slow)
         for pair in ((level, views) for level in POOLS for views in VIEWS)]  # fmt: skip


def routed(level, views, width=16, **options):
    torch.manual_seed(0)
    expert = nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
    )
    perturbation, focal = VIEWS[views]
    return PrismaticRouter(expert, width, 4, perturbation, focal, level, POOLS[level], **options)


def gradients(call, module, x):
    module.zero_grad()
    y = call(x)
    y.square().sum().backward()
    return [y.detach(), *(p.grad for p in module.parameters())]


def assert_one_graph(module, x, backend):
    """One graph, the same results, and no second compilation for new weights."""
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    with torch._dynamo.config.patch(error_on_recompile=False):
        gradients(compiled, module, x)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    with torch._dynamo.config.patch(error_on_recompile=True):
        ours = gradients(compiled, module, x)
    for one, two in zip(ours, gradients(module, module, x), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("level", "views"), EVERY)
def test_a_routed_block_is_one_graph(level, views, backend):
    assert_one_graph(routed(level, views), torch.randn(2, 5, 16), backend)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("level", "views"), [*EVERY_OTHER, ("token", "literal")])
def test_a_whole_model_is_one_graph(level, views):
    perturbation, focal = VIEWS[views]
    router = partial(
        PrismaticRouter, level=level, pool=POOLS[level], perturbation=perturbation, focal=focal
    )
    model = Transformer(16, 8, dim=16, num_layers=1, depth=2, num_heads=2, router=router)
    assert_one_graph(model, torch.randint(0, 16, (2, 8)), "aot_eager")


@pytest.mark.filterwarnings("ignore")
def test_dropped_views_and_separate_experts_are_one_graph_too():
    dropping = routed("token", "none", expert_dropout=0.5)
    torch._dynamo.reset()
    compiled, x = torch.compile(dropping, fullgraph=True, backend="eager"), torch.randn(2, 5, 16)
    seen = [compiled(x) for _ in range(3)]
    dropping.dropout_step.zero_()
    for y in seen:
        torch.testing.assert_close(dropping(x), y)
    assert not torch.equal(seen[0], seen[1])
    smear = SmearRouter(nn.Sequential(nn.Linear(16, 16)), 16, 3)
    torch.compile(smear, fullgraph=True, backend="eager")(x)


def syncs(module, x):
    gradients(module, module, x)  # what depends on shapes and options alone is kept
    with counting() as counted:
        gradients(module, module, x)
    return dict(counted.syncs)


@pytest.mark.parametrize("views", [name for name in VIEWS if name != "strength"])
@pytest.mark.parametrize("level", POOLS)
def test_a_routed_block_waits_for_nothing(level, views):
    assert syncs(routed(level, views, expert_dropout=0.1), torch.randn(2, 5, 16)) == {}


def test_a_wait_is_counted():
    class Waiting(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum().item() > 0 else x

    module = nn.Sequential(nn.Linear(4, 4), Waiting())
    assert syncs(module, torch.randn(2, 4)) == {"_local_scalar_dense": 1}
