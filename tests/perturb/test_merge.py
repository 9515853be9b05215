"""`merge`, the production path, against the oracle of mechanism.md and its gradients by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prismatic.perturb import MODES, PATTERNS, Focal, Perturbation, change, merge, role

from . import oracle
from .problems import STRATEGIES, VIEWS, focals, perturbations, probabilities, weights


def changes(weight, num_views, perturbation, focal, name):
    """Every f_i by the oracle, (N, P) float64."""
    flat = weight.detach().double().flatten().numpy()

    def drawn(view):
        if perturbation.strategy != "random":
            return None
        chosen = role(weight, perturbation, name, view).flatten().nonzero().flatten()
        return frozenset(chosen.tolist())

    return np.stack(
        [
            oracle.change(flat, view, num_views, perturbation, focal, name, drawn(view))
            for view in range(num_views)
        ]
    )


def angle_rounding(numel, focal):
    """How far two float64 evaluations of one cosine may differ, since its turns are rounded."""
    if "helical" not in focal.pattern:
        return 0.0
    turns = 1 / focal.wavelength if focal.units == "fraction" else numel / focal.wavelength
    return 2 * np.pi * turns * np.finfo(float).eps


def assert_merged(weight, probs, perturbation, focal):
    """|got - W (1 + sum r f)| <= 4 eps |W| (1 + sum r |f|), element by element."""
    got = merge(weight, probs, perturbation, focal, "a.weight")
    assert (got.dtype, got.shape) == (weight.dtype, weight.shape)
    f_EP = changes(weight, len(probs), perturbation, focal, "a.weight")
    r_E, w_P = probs.double().numpy(), weight.double().flatten().numpy()
    off_P = np.abs(got.double().flatten().numpy() - w_P * (1 + r_E @ f_EP))
    units_P = 1 + r_E @ np.abs(f_EP)
    allowed_P = 4 * torch.finfo(weight.dtype).eps * units_P
    allowed_P += angle_rounding(weight.numel(), focal) * np.abs(f_EP).max()
    assert (off_P <= np.abs(w_P) * allowed_P).all()


@settings(max_examples=150)
@given(weights(), perturbations(), focals(), st.sampled_from(VIEWS), st.integers(0, 99))
def test_merge_is_the_oracle(weight, perturbation, focal, num_views, seed):
    probs = probabilities(num_views, seed, weight.dtype)
    assert_merged(weight, probs, perturbation, focal)


@settings(max_examples=80)
@given(
    weights(kinds=("normal",)),
    perturbations(mode="attractive", strategy="dual_sided", sparsity=1.0, scale=1.0),
    focals(),
    st.sampled_from([8, 64]),
)
def test_many_overlapping_lenses_merge_as_the_oracle(weight, perturbation, focal, num_views):
    assert_merged(weight, probabilities(num_views, 0, weight.dtype), perturbation, focal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_views", [2, 3, 8, 64])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_large_tensor_merges_as_the_oracle(pattern, num_views, dtype):
    weight = torch.tensor(np.random.default_rng(0).standard_normal((150, 200)), dtype=dtype)
    probs = probabilities(num_views, 1, dtype)
    assert_merged(weight, probs, Perturbation(sparsity=0.2), Focal(pattern=pattern))


@settings(max_examples=40)
@given(weights(), perturbations(strength=0.1, strength_max_scale=1e6), st.sampled_from(VIEWS))
def test_merge_reaches_a_strength_as_the_oracle(weight, perturbation, num_views):
    wide = Focal(units="fraction", length=0.5, wavelength=1.3, phase="aligned")
    assert_merged(weight, probabilities(num_views, 2, weight.dtype), perturbation, wide)


def test_merge_refuses_a_strength_out_of_reach():
    with pytest.raises(ValueError, match=r"strength=0\.4.*units=fraction"):
        merge(torch.randn(100_000), probabilities(2, 0), Perturbation(strength=0.4), Focal())


@settings(max_examples=50)
@given(
    weights(kinds=("normal", "ties"), dtypes=(torch.float64,)),
    perturbations(),
    focals(),
    st.sampled_from([2, 3, 8]),
)
def test_gradients_of_merge_are_those_of_the_text(weight, perturbation, focal, num_views):
    weight.requires_grad_()
    probs = probabilities(num_views, 3).requires_grad_()
    upstream = torch.from_numpy(np.random.default_rng(4).standard_normal(tuple(weight.shape)))
    merge(weight, probs, perturbation, focal, "w").backward(upstream)
    f_EP = torch.from_numpy(changes(weight, num_views, perturbation, focal, "w"))
    w_P, g_P = weight.detach().flatten(), upstream.flatten()
    grad_P, grad_E = g_P * (1 + probs.detach() @ f_EP), f_EP @ (g_P * w_P)
    size = 1 + float(f_EP.abs().max())
    assert torch.allclose(weight.grad.flatten(), grad_P, rtol=1e-12, atol=1e-13 * size)
    assert torch.allclose(probs.grad, grad_E, rtol=1e-12, atol=1e-12 * size * len(w_P) ** 0.5)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("mode", MODES)
def test_one_hot_probabilities_give_one_view(mode, strategy, pattern):
    weight = torch.randn(37, 23, generator=torch.Generator().manual_seed(0))
    options = Perturbation(mode=mode, strategy=strategy), Focal(pattern=pattern), "w"
    for view in range(4):
        got = merge(weight, torch.eye(4)[view], *options)
        assert torch.allclose(got, weight * (1 + change(weight, view, 4, *options)), atol=1e-6)


@settings(max_examples=40)
@given(weights(), perturbations(), focals())
def test_one_view_merges_to_the_weight_bit_for_bit(weight, perturbation, focal):
    assert torch.equal(merge(weight, torch.ones(1), perturbation, focal, "w"), weight)


@settings(max_examples=40)
@given(weights(), perturbations(scale=0.0), focals(), st.sampled_from(VIEWS), st.integers(0, 99))
def test_scale_0_merges_to_the_weight_bit_for_bit(weight, perturbation, focal, num_views, seed):
    probs = probabilities(num_views, seed, weight.dtype)
    assert torch.equal(merge(weight, probs, perturbation, focal, "w"), weight)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_views", [2, 8])
def test_half_precision_merges_to_its_own_rounding(mode, num_views):
    weight = torch.randn(300, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    probs = probabilities(num_views, 5, torch.float32)
    assert_merged(weight, probs, Perturbation(mode=mode), Focal())
    assert merge(weight, probs.bfloat16(), Perturbation(mode=mode), Focal()).dtype == torch.bfloat16


def test_a_transposed_weight_merges_as_its_own_copy():
    weight = torch.randn(30, 20).T
    options = probabilities(3, 0, torch.float32), Perturbation(), Focal()
    assert torch.equal(merge(weight, *options), merge(weight.contiguous(), *options))


def test_merge_leaves_weight_and_random_state_alone():
    weight, state = torch.randn(50), torch.get_rng_state()
    before = weight.clone()
    merge(weight, probabilities(4, 0), Perturbation(mode="noise", strategy="random"), Focal())
    assert torch.equal(weight, before) and torch.equal(torch.get_rng_state(), state)


def test_merge_never_builds_the_views():
    """With 64 views the largest tensor autograd keeps or makes is far below 64 copies."""
    weight = torch.randn(200, 200, requires_grad=True)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            outs = out if isinstance(out, tuple | list) else (out,)
            largest = max([largest, *(o.numel() for o in outs if isinstance(o, torch.Tensor))])
            return out

    with Watch():
        merge(weight, probabilities(64, 0, torch.float32), Perturbation(), Focal()).sum().backward()
    assert 0 < largest < 8 * weight.numel()
