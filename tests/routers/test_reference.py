"""Routed outputs and gradients against weights that are merged one position or row at a time."""

import copy
from itertools import cycle, islice, product

import pytest
import torch
from torch import nn
from torch.func import functional_call

from prismatic.perturb import MODES, PATTERNS, Focal, Perturbation
from prismatic.routers import PrismaticRouter

from .reference import reference, view
from .toys import PAIRS, ROUTED, STRONG, WIDE, WIDTH, Gain, inputs, name_of, scrambled, toy

STRATEGIES = ("dual_sided", "top_only", "bottom_only", "random")
# Every mode with every pattern; the strategies, phases and profiles take turns.
OPTIONS = [
    (
        Perturbation(mode=mode, strategy=strategy, sparsity=0.6, scale=0.9),
        Focal(pattern, 0.3, 0.7, "fraction", phase, profile),
    )
    for (mode, pattern), strategy, phase, profile in zip(
        product(MODES, PATTERNS),
        islice(cycle(STRATEGIES + STRATEGIES[2:]), 12),
        cycle(("literal", "literal", "aligned")),
        cycle(("exponential", "gaussian")),
        strict=False,
    )
]


def prismatic(expert, level="token", pool=None, num_experts=3, options=(STRONG, WIDE), **more):
    pool = pool or dict(reversed(PAIRS))[level]
    router = PrismaticRouter(
        expert, WIDTH, num_experts, *options, level, pool, name="blocks.0", **more
    ).double()
    scrambled(router.gate, 5)
    return router


def assert_same(got, want, rel=1e-12):
    """Within `rel` of the largest magnitude."""
    got, want = got.detach(), want.detach()
    assert got.shape == want.shape
    off, size = float((got - want).abs().max()), float(want.abs().max())
    assert off <= rel * size


def assert_as_reference(router, x, *args, rel=1e-12, **kwargs):
    """Outputs, and the gradients of base, router and input, are those of the reference."""
    router.zero_grad()
    twin, x_2 = copy.deepcopy(router), x.clone().requires_grad_()
    x = x.clone().requires_grad_()
    y, y_2 = router(x, *args, **kwargs), reference(twin, x_2, *args, **kwargs)
    assert_same(y, y_2, rel)
    y.square().sum().backward()
    y_2.square().sum().backward()
    assert_same(x.grad, x_2.grad, rel)
    for one, two in zip(router.parameters(), twin.parameters(), strict=True):
        got = torch.zeros_like(one) if one.grad is None else one.grad  # one view: nothing to route
        assert_same(got, two.grad, rel)


@pytest.mark.parametrize("level", ["token", "sequence", "batch"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda pair: f"{pair[0].mode}-{pair[1].pattern}")
def test_every_mode_and_pattern_merges_as_the_reference(options, level):
    assert_as_reference(prismatic(toy(), level, options=options), inputs(2, 3))


@pytest.mark.parametrize("case", ROUTED, ids=name_of)
def test_every_router_and_pool_merges_as_the_reference(case):
    assert_as_reference(case.build(toy(), name="blocks.0"), inputs(2, 4))


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("num_experts", [1, 2, 9])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_number_of_views_merges_as_the_reference(strategy, num_experts, level):
    options = Perturbation(strategy=strategy, sparsity=0.3), WIDE
    assert_as_reference(prismatic(toy(), level, None, num_experts, options), inputs(2, 3))


def test_a_strength_merges_as_the_reference():
    options = Perturbation(strength=0.2, sparsity=0.5), WIDE
    assert_as_reference(prismatic(toy(), options=options), inputs(2, 3))


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1), (4, 4)])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_every_shape_of_input_merges_as_the_reference(level, shape):
    assert_as_reference(prismatic(toy(), level), inputs(*shape))


class Heads(nn.Module):
    """A norm and a map inside each of two heads: inputs with a dimension beside B, T and width."""

    def __init__(self):
        super().__init__()
        self.norm, self.map = nn.RMSNorm(WIDTH // 2), nn.Linear(WIDTH // 2, WIDTH // 2)

    def forward(self, x_BTD):
        x_BTHK = x_BTD.unflatten(-1, (2, -1))
        return x_BTD + self.map(self.norm(x_BTHK)).flatten(2)


@pytest.mark.parametrize("shape", [(3, 4), (2, 2), (3, 2), (2, 3)])
@pytest.mark.parametrize("level", ["token", "sequence", "batch"])
def test_parameters_inside_heads_merge_as_the_reference(level, shape):
    assert_as_reference(prismatic(scrambled(Heads()).double(), level), inputs(*shape))


class Transposed(Heads):
    """Heads before positions, as attention has them: (B, H, T, K)."""

    def forward(self, x_BTD):
        x_BHTK = x_BTD.unflatten(-1, (2, -1)).transpose(1, 2)
        return x_BTD + self.map(self.norm(x_BHTK)).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3), (4, 2)])
def test_a_sequence_may_have_its_positions_anywhere(shape):
    expert = scrambled(Transposed()).double()
    assert_as_reference(prismatic(expert, "sequence"), inputs(*shape))


class Squeeze(nn.Module):
    """Scales a sequence by what its mean says: an input without positions."""

    def __init__(self):
        super().__init__()
        self.norm, self.map = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x_BTD):
        return x_BTD * self.map(self.norm(x_BTD.mean(1))).sigmoid()[:, None]


@pytest.mark.parametrize("num_rows", [1, 3])
def test_a_sequence_may_be_pooled(num_rows):
    router = prismatic(scrambled(Squeeze()).double(), "sequence")
    assert_as_reference(router, inputs(num_rows, 4))


class Table(nn.Module):
    """A norm over positions and width together."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm((4, WIDTH))

    def forward(self, x_BTD):
        return self.norm(x_BTD)


@pytest.mark.parametrize("num_rows", [1, 3, 4])
def test_a_norm_over_whole_sequences_can_be_routed_by_sequence(num_rows):
    assert_as_reference(prismatic(scrambled(Table()).double(), "sequence"), inputs(num_rows, 4))


def test_a_norm_over_whole_sequences_cannot_be_routed_by_token():
    with pytest.raises(ValueError, match="level=token cannot wrap Table"):
        prismatic(scrambled(Table()).double())(inputs(4, 4))


@pytest.mark.parametrize("num_rows", [1, 3])
def test_a_sequence_of_a_class_without_a_rule_merges_as_the_reference(num_rows):
    expert = nn.Sequential(nn.Linear(WIDTH, WIDTH), Gain(), nn.LayerNorm(WIDTH)).double()
    assert_as_reference(prismatic(expert, "sequence"), inputs(num_rows, 4))


class WithWeights(nn.Module):
    """Returns what torch's attention returns: a tensor and None, or attention weights."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x, need_weights=False):
        return self.attention(x, x, x, need_weights=need_weights)


def test_attention_of_torch_returns_what_it_returns():
    router = prismatic(WithWeights().double(), "sequence")
    x = inputs(3, 4)
    y, weights = router(x)
    assert y.shape == x.shape and weights is None
    assert router(x, need_weights=True)[1].shape == (3, 4, 4)


class Branching(nn.Module):
    """Runs an operation that depends on data, which vmap cannot do."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, WIDTH))

    def forward(self, x):
        return x * self.gain if x.sum().item() > 0 else x * self.gain.square()


def test_a_sequence_falls_back_to_a_loop_where_vmap_cannot_go():
    x = inputs(4, 3)
    assert len({float(row.sum()) > 0 for row in x}) == 2
    assert_as_reference(prismatic(Branching().double(), "sequence"), x)


class Pair(nn.Module):
    """Returns more than a tensor, and takes one argument per row and one for all."""

    def __init__(self):
        super().__init__()
        self.map, self.gain = nn.Linear(WIDTH, WIDTH), Gain()

    def forward(self, x, per_row, shared=None):
        y = self.gain(self.map(x)) * per_row
        return {"y": y + shared, "row": y.mean((1, 2)), "note": None}


def test_structured_arguments_and_results_are_split_and_joined_by_row():
    x, expert = inputs(3, 4), scrambled(Pair()).double()
    per_row, shared = inputs(3, 1, 1, seed=3), inputs(1, 4, WIDTH, seed=4)[0]
    router = prismatic(expert, "sequence")
    out = router(x, per_row, shared=shared)
    for i in range(3):
        lone = router(x[i : i + 1], per_row[i : i + 1], shared=shared)
        assert torch.allclose(out["y"][i : i + 1], lone["y"], rtol=0, atol=1e-13)
        assert torch.allclose(out["row"][i], lone["row"], rtol=0, atol=1e-13)
    assert out["note"] is None


@pytest.mark.parametrize("case", [c for c in ROUTED if c.kind != "smear"], ids=name_of)
@pytest.mark.parametrize("i", range(4))
def test_a_forced_view_is_the_module_with_that_views_weights(case, i):
    expert, x = toy(), inputs()
    router = case.build(expert, name="blocks.0")
    with router.forced(i):
        assert_same(router(x), functional_call(expert, view(router, expert, i), (x,)))


@pytest.mark.parametrize("case", [c for c in ROUTED if c.kind == "smear"], ids=name_of)
@pytest.mark.parametrize("i", range(4))
def test_a_forced_view_of_smear_is_one_of_its_experts(case, i):
    expert, x = toy(), inputs()
    router = case.build(expert)
    with router.forced(i):
        assert_same(router(x), [expert, *router.others][i](x))


def test_smear_experts_differ_and_are_drawn_as_the_first_one():
    experts = [toy(64)]
    router = next(c for c in ROUTED if c.kind == "smear").build(experts[0], width=64)
    experts += router.others
    matrices = [expert.up.weight for expert in experts]
    for i, one in enumerate(matrices):
        assert not any(torch.equal(one, two) for two in matrices[i + 1 :])
        assert one.std().item() == pytest.approx(matrices[0].std().item(), rel=0.1)


def test_a_constant_router_routes_every_input_alike():
    router = next(c for c in ROUTED if c.kind == "constant").build(toy())
    assert torch.equal(router.route(inputs()).probs, router.route(inputs(seed=2)).probs)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_equal_blocks_of_different_names_have_noise_of_their_own(level):
    noise = Perturbation(mode="noise", sparsity=0.6)
    pool = dict(reversed(PAIRS))[level]
    ys = []
    for name in ("blocks.0", "blocks.1"):
        router = PrismaticRouter(toy(), WIDTH, 3, noise, WIDE, level, pool, name=name).double()
        with router.forced(1):
            ys.append(router(inputs()))
    assert not torch.allclose(*ys)


def test_noise_stays_where_it_is_while_the_base_learns():
    router, x = prismatic(toy(), options=(Perturbation(mode="noise", sparsity=1.0), WIDE)), inputs()
    for step in range(3):
        with torch.no_grad():
            for parameter in router.expert.parameters():
                parameter.mul_(1 + 0.1 * step)
        assert_as_reference(router, x[:2, :3])
