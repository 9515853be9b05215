"""The selection without a sort is the selection that `role` sorts for."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prismatic.bench.counting import counting
from prismatic.perturb import Perturbation, role, select, selection
from prismatic.perturb.selection import bisect, place, tiers, zeros_last

from .problems import perturbations


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


def roles(weights, perturbation, on_device):
    """The roles of some tensors, by the implementation for a device or for the CPU."""
    counts = [perturbation.counts(len(weight)) for weight in weights]
    if not on_device:
        return select(weights, counts)
    value_S2, cut_S2 = bisect(weights, tuple(counts))
    return [tiers(w, 0, len(w), value_S2[s], cut_S2[s]) for s, w in enumerate(weights)]


def test_a_compiler_may_hand_over_the_parameters_themselves():
    weight = torch.nn.Parameter(torch.randn(50))
    found = torch.ops.prismatic.select([weight], [5, 5], [0, 0, 50])
    assert torch.equal(found, role(weight, Perturbation(sparsity=0.2)))


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("strategy", ["dual_sided", "top_only", "bottom_only"])
@pytest.mark.parametrize("sparsity", [0.001, 0.1, 0.5, 1.0])
def test_it_is_the_role(sparsity, strategy, on_device):
    torch.manual_seed(0)
    perturbation = Perturbation(strategy=strategy, sparsity=sparsity)
    for dtype in (torch.float32, torch.float64):
        weights = {name: make().to(dtype) for name, make in WEIGHTS.items()}
        if sparsity != 0.1:
            del weights["large"]
        found = roles(list(weights.values()), perturbation, on_device)
        for (name, weight), got in zip(weights.items(), found, strict=True):
            assert torch.equal(got, role(weight, perturbation)), (name, dtype)


VALUES = [0.0, math.nan, math.inf, 1e-42, 0.5, -0.5, 1.0, 2.0, -3.5]


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.sampled_from(VALUES), min_size=1, max_size=40), min_size=1, max_size=4),
    perturbations(mode="attractive"),
    st.booleans(),
)  # fmt: skip
def test_ties_and_zeros_go_as_role_says(values, perturbation, on_device):
    if perturbation.strategy == "random":
        perturbation = Perturbation(sparsity=perturbation.sparsity)
    weights = [torch.tensor(value) for value in values]
    for weight, got in zip(weights, roles(weights, perturbation, on_device), strict=True):
        assert torch.equal(got, role(weight, perturbation))


LARGE = {
    "normal": lambda w: w,
    "half zeros": lambda w: torch.where(torch.rand_like(w) < 0.5, 0.0, w),
    "one that is no number": lambda w: w.index_fill(0, torch.tensor([7]), math.nan),
    "one zero": lambda w: w.index_fill(0, torch.tensor([7]), 0.0),
    "rounded": lambda w: (64 * w).round() / 64,
    "constant": torch.ones_like,
    "all zero": torch.zeros_like,
    "an unfair sample": lambda w: w.index_copy(0, torch.arange(0, len(w), 61), 9 + w[::61].abs()),
    "sorted": lambda w: w.sort().values,
}


@pytest.mark.parametrize("strategy", ["dual_sided", "top_only", "bottom_only"])
@pytest.mark.parametrize("kind", LARGE)
def test_a_sample_changes_nothing(kind, strategy):
    torch.manual_seed(0)
    weight = LARGE[kind](torch.randn(200_000))
    for sparsity in (1e-5, 0.1, 1.0):
        perturbation = Perturbation(strategy=strategy, sparsity=sparsity)
        (got,) = roles([weight], perturbation, False)
        assert torch.equal(got, role(weight, perturbation))


@pytest.mark.parametrize("sparsity", [1e-4, 0.01, 0.1, 0.5])
def test_a_sample_saves_the_partition(monkeypatch, sparsity):
    torch.manual_seed(0)
    monkeypatch.setattr(selection, "partition", lambda *_: pytest.fail("partitioned"))
    for strategy in ("dual_sided", "top_only", "bottom_only"):
        roles([torch.randn(300_000)], Perturbation(strategy=strategy, sparsity=sparsity), False)


@pytest.mark.parametrize("run", [(0, 10), (100_000, 180_000), (131_071, 131_073), (7, 7)])
def test_a_run_has_the_roles_of_its_place(run):
    weight = torch.randint(-3, 4, (200_000,)).float()
    counts = [Perturbation().counts(len(weight))]
    (got,) = select([weight], counts, [(0, *run)])
    assert torch.equal(got, role(weight, Perturbation())[slice(*run)])


def test_the_weight_can_still_be_freed() -> None:
    weight = torch.randn(1000)
    roles([weight], Perturbation(), False)
    assert weight.untyped_storage().resizable()  # FSDP frees what it gathered


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("find", [place, lambda w, o, k: zeros_last(w, o)[:, :k].sort().values])
def test_zeros_are_drawn_last(find, zeros):
    torch.manual_seed(0)
    weight, size = with_zeros(3000, zeros), 300
    order = torch.stack([torch.randperm(3000) for _ in range(2)]).int()
    expected = [torch.cat([o[weight[o.long()] != 0], o[weight[o.long()] == 0]])[:size]
                for o in order]  # fmt: skip
    ready = order.clone()
    ready[:, :size] = ready[:, :size].sort(1).values
    got = find(weight, ready, size)
    for row, one in zip(got, expected, strict=True):
        some = [set(x[weight[x.long()] != 0].tolist()) for x in (row, one)]
        assert some[0] == some[1] and torch.equal(row, row.sort().values)


def test_bisection_never_waits_for_its_device() -> None:
    weights = [torch.randn(3000), torch.ones(50)]
    bisect(weights, ((10, 20), (3, 4)))  # what depends on sizes alone is kept
    with counting() as counted:
        bisect(weights, ((10, 20), (3, 4)))
    assert counted.syncs == {}
