"""`change` and `role` against the oracle of mechanism.md, and what the text promises about them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prismatic.perturb import MODES, PATTERNS, Focal, Perturbation, change, role

from . import oracle
from .problems import STRATEGIES, VIEWS, focals, perturbations, weights

FLAT = Focal(pattern="none")


def flat64(weight):
    return weight.detach().double().flatten().numpy()


def drawn(weight, perturbation, name, view):
    return frozenset(role(weight, perturbation, name, view).flatten().nonzero().flatten().tolist())


def expected(weight, view, num_views, perturbation, focal, name):
    chosen = drawn(weight, perturbation, name, view) if perturbation.strategy == "random" else None
    f = oracle.change(flat64(weight), view, num_views, perturbation, focal, name, chosen)
    return torch.from_numpy(f).view(weight.shape)


def close(got, want, ulps=4):
    size = max(1.0, float(want.abs().max()))
    return float((got.double() - want).abs().max()) <= ulps * torch.finfo(got.dtype).eps * size


@settings(max_examples=150)
@given(weights(), perturbations(), focals(), st.data())
def test_change_is_the_oracle(weight, perturbation, focal, data):
    num_views = data.draw(st.sampled_from(VIEWS[1:]))
    view = data.draw(st.integers(1, num_views - 1))
    got = change(weight, view, num_views, perturbation, focal, "a.weight")
    assert (got.dtype, got.shape) == (weight.dtype, weight.shape)
    assert close(got, expected(weight, view, num_views, perturbation, focal, "a.weight"))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("mode", MODES)
def test_every_combination_is_the_oracle_at_the_defaults(mode, strategy, pattern):
    weight = torch.tensor(np.random.default_rng(0).standard_normal((40, 60)))
    options = Perturbation(mode=mode, strategy=strategy), Focal(pattern=pattern)
    for view in (1, 3):
        assert close(
            change(weight, view, 4, *options, "w"), expected(weight, view, 4, *options, "w")
        )


@settings(max_examples=80)
@given(weights(), perturbations(), st.data())
def test_each_tier_has_exactly_k_weights(weight, perturbation, data):
    got = role(weight, perturbation, "w", data.draw(st.integers(1, 3)))
    num_top, num_bottom = oracle.counts(
        weight.numel(), perturbation.strategy, perturbation.sparsity
    )
    candidates = int((weight != 0).sum())
    top = min(num_top, candidates)
    assert got.dtype == torch.int8
    assert int((got == 1).sum()) == top
    assert int((got == -1).sum()) == min(num_bottom, candidates - top)
    assert not got[weight == 0].any()


def test_ties_go_to_the_lower_position():
    gain = torch.ones(10)
    assert role(gain, Perturbation(sparsity=0.4)).tolist() == [1, 1, -1, -1, 0, 0, 0, 0, 0, 0]
    only_top = Perturbation(sparsity=0.2, strategy="top_only")
    assert role(gain, only_top).tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    only_bottom = Perturbation(sparsity=0.2, strategy="bottom_only")
    assert role(torch.tensor([0.0, 3, 2, 2, 2]), only_bottom).tolist() == [0, 0, -1, 0, 0]


def test_one_weight_is_in_the_top_tier():
    assert role(torch.tensor(3.0), Perturbation()).tolist() == 1


@settings(max_examples=40)
@given(weights(kinds=("normal",)), st.sampled_from([0.05, 0.1, 0.5]), st.integers(1, 3))
def test_random_differs_from_dual_sided_in_which_weights_only(weight, sparsity, view):
    got = role(weight, Perturbation(strategy="random", sparsity=sparsity), "w", view)
    dual = role(weight, Perturbation(sparsity=sparsity))
    assert (got == 1).sum() == (dual == 1).sum() and (got == -1).sum() == (dual == -1).sum()
    if (got == -1).any():
        assert weight[got == 1].abs().min() >= weight[got == -1].abs().max()


def test_random_draws_among_the_weights_that_are_not_zero():
    weight = torch.ones(1000)
    weight[::2] = 0
    got = role(weight, Perturbation(strategy="random"), "w")
    assert (int((got == 1).sum()), int((got == -1).sum())) == (50, 50)


def test_random_draws_every_position_alike():
    chosen = Perturbation(strategy="random", sparsity=0.2)
    times = sum(role(torch.ones(50), chosen, f"w{i}").abs().int() for i in range(1000))
    assert times.sum() == 1000 * 10
    assert (times - 200).abs().max() < 5 * (1000 * 0.2 * 0.8) ** 0.5


def test_random_draws_the_same_weights_for_ever():
    got = role(torch.ones(20), Perturbation(strategy="random", sparsity=0.2), "w")
    assert got.nonzero().flatten().tolist() == [0, 8, 10, 11]


@pytest.mark.parametrize("seeding", ["pi", "hash"])
@pytest.mark.parametrize("options", [{"mode": "noise"}, {"strategy": "random"}])
def test_draws_depend_on_name_view_and_options_alone(seeding, options):
    weight = torch.ones(300)
    perturbation = Perturbation(seeding=seeding, **options)

    def f(view=1, name="a", perturbation=perturbation):
        return change(weight, view, 4, perturbation, FLAT, name)

    torch.manual_seed(1)
    np.random.seed(1)
    before = f()
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(f(), before)
    other = (
        replace(perturbation, seed=1) if seeding == "hash" else replace(perturbation, pi_offset=0)
    )
    different = [before, f(view=2), f(view=3), f(name="b"), f(perturbation=other)]
    scheme = "hash" if seeding == "pi" else "pi"
    different.append(f(perturbation=replace(perturbation, seeding=scheme)))
    for i, one in enumerate(different):
        assert not any(torch.equal(one, two) for two in different[i + 1 :])


def test_noise_is_the_same_draw_in_every_dtype():
    fs = [
        change(torch.ones(50, dtype=dtype), 1, 2, Perturbation(mode="noise"), FLAT, "a")
        for dtype in (torch.float64, torch.float32, torch.bfloat16)
    ]
    assert torch.equal(fs[0].float(), fs[1]) and torch.equal(fs[0].bfloat16(), fs[2])


def test_noise_and_random_of_one_tensor_are_not_the_same_draw():
    both = Perturbation(mode="noise", strategy="random", sparsity=0.5)
    xi = change(torch.ones(1000), 1, 2, both, FLAT, "a")
    assert abs(float(xi[xi != 0].mean())) < 5 * 0.8 / 500**0.5


def test_draws_leave_the_global_random_states_alone():
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    change(torch.ones(50), 1, 2, Perturbation(mode="noise", strategy="random"), FLAT, "a")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])


def test_pi_begins_with_3_and_has_a_7_at_position_99():
    digits = oracle.digits_of_pi(200)
    assert (digits[:5], digits[99]) == ("31415", "7")
    weight = torch.ones(20, dtype=torch.float64)
    for offset in (0, 99):
        perturbation = Perturbation(mode="noise", seeding="pi", pi_offset=offset)
        got = change(weight, 2, 4, perturbation, FLAT, "a")
        assert close(got, expected(weight, 2, 4, perturbation, FLAT, "a"))


def test_directional_is_repulsive():
    assert Perturbation(mode="directional") == Perturbation(mode="repulsive")


def test_perturb_by_magnitude_false_is_random():
    assert Perturbation(perturb_by_magnitude=False) == replace(
        Perturbation(strategy="random"), perturb_by_magnitude=False
    )
    assert Perturbation(perturb_by_magnitude=False, strategy="top_only").strategy == "random"


def test_view_0_changes_nothing():
    assert not change(torch.randn(30), 0, 4, Perturbation(), Focal()).any()


def test_change_is_a_constant_for_the_gradient():
    weight = torch.randn(30, requires_grad=True)
    assert not change(weight, 1, 2, Perturbation(), Focal()).requires_grad


def test_attractive_draws_the_tiers_together_and_repulsive_apart():
    weight = torch.tensor([4.0, -4, 1, -1])
    pull = change(weight, 1, 2, Perturbation(sparsity=1, scale=0.5), FLAT)
    push = change(weight, 1, 2, Perturbation(sparsity=1, scale=0.5, mode="repulsive"), FLAT)
    assert (weight * (1 + pull)).tolist() == [2, -2, 1.5, -1.5]
    assert (weight * (1 + push)).tolist() == [6, -6, 0.5, -0.5]


def test_aligned_phase_keeps_the_sign_of_the_mode_at_the_focus():
    weight = torch.ones(4000)
    signs = [
        change(weight, 1, 2, Perturbation(strategy="top_only", sparsity=1), Focal(phase=phase))[
            2000
        ]
        for phase in ("literal", "aligned")
    ]
    assert signs == pytest.approx([0.8, -0.8])


@settings(max_examples=80)
@given(weights(), perturbations(strength=0.2), focals(), st.sampled_from(VIEWS[1:]))
def test_a_strength_is_reached_or_refused(weight, perturbation, focal, num_views):
    roomy = replace(perturbation, strength_max_scale=1e300)
    want = expected(weight, 1, num_views, roomy, focal, "w")
    unit = expected(weight, 1, num_views, replace(roomy, strength=None, scale=1), focal, "w")
    scale = float(want.abs().max() / unit.abs().max()) if unit.any() else 0.0
    assume(abs(scale - 2) > 1e-3)
    if scale > 2:
        with pytest.raises(ValueError, match=r"strength=0\.2 .*focal\.units=fraction"):
            change(weight, 1, num_views, perturbation, focal, "w")
        return
    got = change(weight, 1, num_views, perturbation, focal, "w")
    assert close(got, want, ulps=32)
    if (weight.double() * unit).norm() > 0:
        reached = (weight.double() * got.double()).norm() / weight.double().norm()
        assert float(reached) == pytest.approx(0.2, rel=1e-5)


def test_a_tensor_that_cannot_move_keeps_no_change_under_a_strength():
    assert not change(torch.zeros(9), 1, 2, Perturbation(strength=0.3), FLAT).any()


def test_the_default_lens_cannot_reach_the_strength_of_none_on_a_large_tensor():
    weight = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"0\.4.*strength_max_scale is 2.*units=fraction"):
        change(weight, 1, 2, Perturbation(strength=0.4), Focal())
    wide = Focal(units="fraction", length=0.1, wavelength=1.0)
    f = change(weight, 1, 2, Perturbation(strength=0.1), wide)
    assert float((weight * f).norm() / weight.norm()) == pytest.approx(0.1, rel=1e-5)


REFUSED = [
    (Perturbation, {"mode": "fuzzy"}, "fuzzy.*attractive, repulsive, noise, directional"),
    (Perturbation, {"strategy": "best"}, "best.*dual_sided, top_only, bottom_only, random"),
    (Perturbation, {"seeding": "clock"}, "clock.*pi, hash"),
    (Perturbation, {"sparsity": 0}, r"sparsity=0 .*\(0, 1\].*scale=0"),
    (Perturbation, {"sparsity": 1.5}, r"sparsity=1\.5 .*\(0, 1\]"),
    (Perturbation, {"sparsity": float("nan")}, r"sparsity=nan .*\(0, 1\]"),
    (Perturbation, {"scale": -0.1}, r"scale=-0\.1 .*>= 0"),
    (Perturbation, {"scale": float("inf")}, "scale=inf .*>= 0"),
    (Perturbation, {"strength": -1}, "strength=-1 .*> 0"),
    (Perturbation, {"strength_max_scale": 0}, "strength_max_scale=0 .*> 0"),
    (Perturbation, {"pi_offset": -1}, "pi_offset=-1 .*>= 0"),
    (Focal, {"pattern": "round"}, "round.*none, radial, helical, radial_helical"),
    (Focal, {"units": "inches"}, "inches.*weights, fraction"),
    (Focal, {"phase": "full"}, "full.*literal, aligned"),
    (Focal, {"profile": "flat"}, "flat.*exponential, gaussian"),
    (Focal, {"length": 0}, "length=0 .*> 0"),
    (Focal, {"wavelength": -3}, "wavelength=-3 .*> 0"),
    (Focal, {"units": "fraction"}, r"focal\.length=314.*both lengths"),
    (Focal, {"units": "fraction", "length": 0.1}, r"focal\.wavelength=3141.*both lengths"),
]


@pytest.mark.parametrize(("cls", "options", "message"), REFUSED)
def test_nonsense_is_refused_with_its_value_and_what_is_valid(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)


@pytest.mark.parametrize("cls", [Perturbation, Focal])
def test_options_are_frozen(cls):
    with pytest.raises(AttributeError):
        cls().mode = "noise"


# mechanism.md section 4: % of weights changed at all, % changed by > 1 %, relative norm.
LITERAL_DEFAULTS = [
    ("none", 4, 10, 10, 0.42),
    ("helical", 4, 10, 9.9, 0.30),
    ("radial", 4, 0.10, 0.03, 0.007),
    ("radial_helical", 2, 0.10, 0.02, 0.007),
]


@pytest.mark.parametrize(("pattern", "num_views", "at_all", "over_1", "norm"), LITERAL_DEFAULTS)
def test_what_the_literal_defaults_do(pattern, num_views, at_all, over_1, norm):
    weight = torch.randn(512, 2048, generator=torch.Generator().manual_seed(0))
    f = change(weight, 1, num_views, Perturbation(), Focal(pattern=pattern))
    share = 100 * float((weight * (1 + f) != weight).double().mean())
    large = 100 * float((f.abs() > 0.01).double().mean())
    relative = float((weight * f).double().norm() / weight.double().norm())
    assert share == pytest.approx(at_all, abs=0.05 if at_all == 10 else 0.005)
    assert large == pytest.approx(over_1, abs=0.05 if over_1 > 1 else 0.005)
    # Some sixty selected weights lie within such a lens: a tensor's norm varies by a tenth.
    assert relative == pytest.approx(norm, abs=0.005 if norm > 0.1 else 0.0015)
