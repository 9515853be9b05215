"""One contract for all routers, at every level and with every legal pool."""

import copy
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prismatic.routers import ConstantRouter, PrismaticRouter, SmearRouter

from .toys import (
    CASES,
    LEGAL,
    PRISMATIC,
    ROUTED,
    WIDTH,
    Case,
    inputs,
    name_of,
    scrambled,
    toy,
)

every_case = pytest.mark.parametrize("case", CASES, ids=name_of)
every_routed = pytest.mark.parametrize("case", ROUTED, ids=name_of)


def grads(module):
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def equal(first, second):
    """Bit for bit the same tensors under the same names."""
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


@every_case
@pytest.mark.parametrize("shape", [(3, 6), (1, 6), (3, 1), (1, 1)])
def test_output_is_what_the_module_returns(case, shape):
    router, x = case.build(toy()), inputs(*shape)
    assert (router(x).shape, router(x).dtype) == (x.shape, x.dtype)


@every_case
def test_arguments_are_passed_on(case):
    router, x = case.build(toy()), inputs()
    assert torch.equal(router(x, 0.5), router(x, gain=0.5))
    assert not torch.equal(router(x), router(x, gain=0.5))


@every_case
def test_gradients_reach_base_and_router(case):
    router = case.build(toy())
    router(inputs()).square().sum().backward()
    missing = [name for name, grad in grads(router).items() if grad is None or not grad.any()]
    assert missing == []


@every_case
def test_routing_weights_sum_to_one(case):
    router = case.build(toy())
    router(inputs())
    probs = router.record.probs
    leading = {"token": (3, 6), "sequence": (3, 1)}.get(case.level, (1, 1))
    if case.pool == "first" and case.level == "token":
        leading = (3, 1)
    assert probs.shape == (*leading, router.num_experts)
    assert torch.allclose(probs.sum(-1), torch.ones_like(probs[..., 0]))


@every_case
def test_later_inputs_move_earlier_outputs_only_where_the_router_says_so(case):
    router, x = case.build(toy()), inputs()
    later = torch.cat([x[:, :4], inputs(seed=2)[:, 4:]], 1)
    before, after = router(x)[:, :4], router(later)[:, :4]
    same = torch.allclose(before, after, rtol=0, atol=1e-13)
    assert router.causal == case.causal
    assert same == (case.causal or case.pool == "first")


@every_case
def test_rows_are_independent_unless_the_batch_shares_one_merge(case):
    router, x = case.build(toy()), inputs()
    neighbours = torch.cat([x[:1], inputs(seed=2)[1:]])
    before, after = router(x)[0], router(neighbours)[0]
    assert torch.allclose(before, after, rtol=0, atol=1e-13) == case.lone


@every_case
def test_a_row_alone_is_the_row_in_a_batch(case):
    if case.lone:
        router, x = case.build(toy()), inputs()
        assert torch.allclose(router(x)[1:2], router(x[1:2]), rtol=0, atol=1e-13)


def trained(router, bare, x, num_steps=20):
    """Trains a routed and a bare module alike, router and trunk clipped as separate groups."""
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(9)).to(x.dtype)
    gate = list(router.gate.parameters()) if router is not None else []
    trunk = list((bare if router is None else router.expert).parameters())
    optimiser = torch.optim.AdamW([*trunk, *gate], lr=0.02)
    for _ in range(num_steps):
        optimiser.zero_grad()
        F.mse_loss((bare if router is None else router)(x), target).mul(50).backward()
        for group in (trunk, gate):
            nn.utils.clip_grad_norm_(group, 1.0) if group else None
        optimiser.step()
    return dict((bare if router is None else router.expert).named_parameters())


SAME_AS_BARE = [
    *((case, {"num_experts": 1}) for case in ROUTED),
    *((case, {"scale": 0.0}) for case in [*PRISMATIC, Case("constant", "", "")]),
    (Case("dense", "", ""), {}),
]


def label(value):
    return name_of(value) if isinstance(value, Case) else "-".join(value)


@pytest.mark.parametrize(("case", "options"), SAME_AS_BARE, ids=label)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_view_and_scale_0_are_the_bare_module_bit_for_bit(case, options, dtype):
    bare, x = toy(dtype=dtype), inputs(dtype=dtype).requires_grad_()
    router, x_2 = case.build(copy.deepcopy(bare), **options), x.detach().clone().requires_grad_()
    y, y_2 = bare(x), router(x_2)
    assert torch.equal(y, y_2)
    y.square().sum().backward()
    y_2.square().sum().backward()
    assert torch.equal(x.grad, x_2.grad)
    assert equal(grads(bare), grads(router.expert))


@pytest.mark.parametrize(("case", "options"), SAME_AS_BARE, ids=label)
def test_so_they_are_after_20_clipped_steps(case, options):
    bare, x = toy(dtype=torch.float32), inputs(dtype=torch.float32)
    router = case.build(copy.deepcopy(bare), **options)
    start = {name: parameter.clone() for name, parameter in bare.named_parameters()}
    dense = trained(None, bare, x)
    assert equal(dense, trained(router, None, x))
    assert not any(torch.equal(dense[name], start[name]) for name in start)


@pytest.mark.parametrize("level", LEGAL)
@pytest.mark.parametrize("width", [512, 1031])
def test_wide_matrices_with_biases_are_the_bare_module_bit_for_bit(level, width):
    torch.manual_seed(0)
    bare = nn.Sequential(nn.LayerNorm(width), scrambled(nn.Linear(width, 40)))
    router = Case("prismatic", level, LEGAL[level][0]).build(bare, width=width, scale=0.0)
    x = inputs(3, 17, width, torch.float32)
    assert torch.equal(router(x), bare(x))


@every_routed
def test_view_0_runs_where_all_views_are_dropped(case):
    expert, x = toy(), inputs()
    router = case.build(expert, expert_dropout=1 - 1e-9).train()
    assert torch.allclose(router(x), expert(x), rtol=0, atol=1e-13)


def gauge(level, dropout, seed=0):
    """A router whose output shows the routing weights that were applied: y[..., i] = r_i."""
    router = SmearRouter(
        nn.Linear(4, 4, bias=False),
        4,
        4,
        level,
        LEGAL[level][0],
        expert_dropout=dropout,
        seed=seed,
    ).double()
    scrambled(router.gate)
    with torch.no_grad():
        for i, linear in enumerate([router.expert, *router.others]):
            linear.weight.zero_()[i, :] = 1
    return router


def show(router, x):
    """The weights that were applied and those that were recorded, (B, T, E) both."""
    applied = router(x) / x.sum(-1, keepdim=True)
    return applied, router.record.probs.expand_as(applied)


@pytest.mark.parametrize("level", LEGAL)
def test_dropout_drops_views_and_renormalises(level):
    router, x = gauge(level, 0.4).train(), inputs(40, 10, 4)
    drops = [show(router, x) for _ in range(30)]
    applied, probs = (torch.cat(parts).flatten(0, 1) for parts in zip(*drops, strict=True))
    kept = applied.abs() > 1e-9
    expected = probs * kept / (probs * kept).sum(-1, keepdim=True)
    view_0 = torch.tensor([1.0, 0, 0, 0], dtype=x.dtype)
    none_kept = torch.isclose(applied, view_0).all(-1)
    off = (applied - torch.where(none_kept[:, None], view_0, expected)).abs().max()
    assert off < 1e-9
    assert 0.3 < 1 - kept[:, 1:].double().mean() < 0.5
    assert len(kept.unique(dim=0)) > 8


@pytest.mark.parametrize("level", LEGAL)
def test_nothing_is_dropped_in_evaluation(level):
    applied, probs = show(gauge(level, 0.4).eval(), inputs(3, 5, 4))
    assert torch.allclose(applied, probs, rtol=0, atol=1e-12)


@every_routed
def test_dropout_goes_on_alike_after_a_state_dict_round_trip(case):
    x, options = inputs(), {"expert_dropout": 0.5}
    router = case.build(toy(), **options).train()
    seen = [router(x) for _ in range(3)]
    saved = copy.deepcopy(router.state_dict())
    seen += [router(x) for _ in range(3)]
    again = case.build(scrambled(toy(), 7), **options).train()
    again.load_state_dict(saved)
    assert all(torch.equal(again(x), y) for y in seen[3:])
    assert any(not torch.equal(seen[0], y) for y in seen[1:])


@every_case
def test_state_dict_round_trip(case, tmp_path):
    router, x = case.build(toy()), inputs()
    torch.save(router.state_dict(), tmp_path / "state.pt")
    again = case.build(scrambled(toy(), 7))
    if case.routed:
        scrambled(again.gate, 8)
    assert not torch.equal(again(x), router(x))
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(again(x), router(x))


@every_case
def test_a_forward_leaves_the_base_alone(case):
    expert, x = toy(), inputs()
    before, y = copy.deepcopy(expert.state_dict()), expert(x)
    router = case.build(expert)
    router(x).sum().backward()
    assert equal(before, expert.state_dict()) and torch.equal(expert(x), y)


@every_case
def test_a_failing_forward_leaves_the_base_alone(case):
    expert, x = toy(), inputs()
    y, router = expert(x), case.build(expert)
    with pytest.raises(TypeError):
        router(x, gain=None)
    assert torch.equal(expert(x), y)


@every_case
def test_a_forward_that_a_submodule_was_given_counts(case):
    expert = toy()
    expert.up.forward = lambda x: torch.zeros(*x.shape[:-1], 2 * WIDTH, dtype=x.dtype)
    if case.level == "token":
        with pytest.raises(ValueError, match=r"up \(Linear\) has a forward of its own"):
            case.build(expert)
        return
    before = case.build(expert)(inputs())
    with torch.no_grad():
        expert.up.weight.add_(1)
    assert torch.equal(case.build(expert)(inputs()), before)


@every_case
def test_only_base_and_router_are_trained_and_buffers_never_change(case):
    expert = toy()
    router = case.build(expert)
    names = {name for name, _ in router.named_parameters() if not name.startswith("gate.")}
    assert {name for name in names if name.startswith("expert.")} == {
        f"expert.{name}" for name, _ in expert.named_parameters()
    }
    if case.kind != "smear":
        assert all(name.startswith("expert.") for name in names)
    shift = expert.shift.clone()
    router.train()(inputs())
    assert torch.equal(expert.shift, shift)


class Tied(nn.Module):
    """Two linear maps that share one matrix, and a third one of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.second.weight = self.first.weight
        self.third = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        return self.third(self.second(self.first(x).tanh()).tanh())


@every_case
def test_tied_parameters_stay_tied(case):
    expert = scrambled(Tied()).double()
    router = case.build(expert)
    router(inputs()).square().sum().backward()
    assert expert.second.weight is expert.first.weight
    assert sum(name.startswith("expert.") for name, _ in router.named_parameters()) == 4
    untied = copy.deepcopy(router)
    untied.expert.second.weight = nn.Parameter(expert.first.weight.detach().clone())
    for other in getattr(untied, "others", []):
        other.second.weight = nn.Parameter(other.first.weight.detach().clone())
    untied.zero_grad()
    untied(inputs()).square().sum().backward()
    both = untied.expert.first.weight.grad + untied.expert.second.weight.grad
    assert torch.allclose(expert.first.weight.grad, both, rtol=1e-10)


@every_case
def test_frozen_parameters_stay_frozen(case):
    expert = toy()
    expert.requires_grad_(False)
    expert.up.requires_grad_(True)
    router = case.build(expert)
    router(inputs()).square().sum().backward()
    got = {name for name, grad in grads(expert).items() if grad is not None}
    assert got == {"up.weight", "up.bias"}
    assert all(parameter.grad.any() for parameter in router.gate.parameters())


@every_case
def test_a_router_can_be_copied_after_a_forward(case):
    router, x = case.build(toy()), inputs()
    y = router(x)
    twin = copy.deepcopy(router)
    assert torch.equal(twin(x), y)
    scrambled(twin)
    assert torch.equal(router(x), y) and not torch.equal(twin(x), y)


@every_case
def test_half_precision_is_close_to_full_precision(case):
    router, x = case.build(toy()), inputs()
    y = router(x)
    half = router.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.double() - y).norm() < 0.03 * y.norm()
    half.float().square().sum().backward()
    assert all(grad.isfinite().all() for grad in grads(router).values())


@every_case
def test_autocast_is_close_to_full_precision(case):
    router, x = case.build(toy(dtype=torch.float32)), inputs(dtype=torch.float32)
    y = router(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = router(x)
    assert (half.float() - y).norm() < 0.03 * y.norm()


@every_case
def test_the_same_call_gives_the_same_output(case):
    x = inputs()
    routers = [case.build(toy(), lively=False) for _ in range(2)]
    outputs = [router(x) for router in [*routers, routers[0]]]
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


@every_routed
def test_router_and_noise_are_keyed_by_name_and_seed(case):
    states = [
        torch.cat([v.flatten() for v in router.state_dict().values() if torch.is_tensor(v)])
        for router in (
            case.build(toy(), lively=False, **key)
            for key in ({}, {"name": "blocks.1"}, {"seed": 1})
        )
    ]
    alike = torch.equal(states[0], states[1]) or torch.equal(states[0], states[2])
    assert alike == (case.kind == "constant")


@every_case
def test_wrapping_and_routing_leave_the_global_random_state_alone(case):
    expert, x = toy(), inputs()
    options = {"expert_dropout": 0.5} if case.routed else {}
    before = torch.get_rng_state()
    case.build(expert, lively=False, **options).train()(x).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


@every_routed
def test_a_forced_view_ends_with_its_context(case):
    router, x = case.build(toy()), inputs()
    y = router(x)
    with router.forced(2):
        two = router(x)
        with router.forced(1):
            one = router(x)
        assert torch.equal(router(x), two)
    with pytest.raises(KeyError), router.forced(1):
        raise KeyError
    assert torch.equal(router(x), y)
    assert not torch.allclose(one, two)


@every_routed
def test_forced_view_0_is_the_bare_module(case):
    expert, x = toy(), inputs()
    router = case.build(expert, expert_dropout=0.5).train()
    with router.forced(0):
        assert torch.allclose(router(x), expert(x), rtol=0, atol=1e-13)


@every_routed
@pytest.mark.parametrize("view", [-1, 4])
def test_a_view_that_is_not_there_cannot_be_forced(case, view):
    with pytest.raises(ValueError, match=f"view={view} .*from 0 to 3"):
        with case.build(toy()).forced(view):
            pass


ILLEGAL = [
    (level, pool)
    for level, pool in product(LEGAL, ["mean", "first", "last", "causal_mean", "max"])
    if pool not in LEGAL[level]
]


@pytest.mark.parametrize("router", [PrismaticRouter, SmearRouter])
@pytest.mark.parametrize(("level", "pool"), ILLEGAL)
def test_any_other_pair_of_level_and_pool_is_refused(router, level, pool):
    with pytest.raises(ValueError, match=f"pool='{pool}' .*{', '.join(LEGAL[level])}"):
        router(toy(), WIDTH, 4, level=level, pool=pool)


@pytest.mark.parametrize("router", [PrismaticRouter, SmearRouter])
@pytest.mark.parametrize("level", LEGAL)
def test_without_a_pool_a_level_has_its_own(router, level):
    default, named = (
        router(toy(), WIDTH, 4, level=level, pool=pool) for pool in (None, LEGAL[level][0])
    )
    assert default.gate.pool is named.gate.pool and default.causal == named.causal


@pytest.mark.parametrize("router", [PrismaticRouter, SmearRouter])
def test_an_unknown_level_is_refused(router):
    with pytest.raises(ValueError, match=r"level='word' .*token, sequence, batch"):
        router(toy(), WIDTH, 4, level="word")


REFUSED = [
    ({"num_experts": 0}, "num_experts=0 .*>= 1"),
    ({"num_experts": 2.5}, r"num_experts=2\.5 .*>= 1"),
    ({"temperature": 0}, "temperature=0 .*> 0"),
    ({"temperature": -1.0}, r"temperature=-1\.0 .*> 0"),
    ({"expert_dropout": 1.0}, r"expert_dropout=1\.0 .*\[0, 1\)"),
    ({"expert_dropout": -0.1}, r"expert_dropout=-0\.1 .*\[0, 1\)"),
    ({"balance_loss": -1}, "balance_loss=-1 .*>= 0"),
    ({"z_loss": -1}, "z_loss=-1 .*>= 0"),
]


@pytest.mark.parametrize("router", [PrismaticRouter, SmearRouter, ConstantRouter])
@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_options_out_of_range_are_refused(router, options, message):
    with pytest.raises(ValueError, match=message):
        router(toy(), WIDTH, **options)
