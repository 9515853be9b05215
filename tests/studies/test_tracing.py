"""How changes travel through layers: against chains and derivatives that are known."""

import math

import numpy as np
import pytest
import torch

from prismatic.models import Attention, Transformer
from prismatic.studies.protocols.amplification import (
    SITES,
    amplification,
    apart,
    changed_weights,
    exponent,
    exponent_of,
    site_of,
)
from prismatic.studies.tracing import sharpness, trace

from ..tiny import fit

VARIANTS = [
    {}, {"norm": "none"}, {"norm_placement": "post"}, {"norm": "rmsnorm"},
    {"qk_norm": "layernorm", "qk_gain": 4.0}, {"positions": "alibi", "bias": True},
]  # fmt: skip


def model(**options) -> Transformer:
    torch.manual_seed(3)
    known = {"dim": 8, "num_layers": 3, "num_heads": 2, "init": "xavier"} | options
    return Transformer(16, 6, **known).double().eval()


def tokens(rows: int = 2) -> torch.Tensor:
    return torch.randint(0, 16, (rows, 6), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("options", VARIANTS)
def test_a_trace_is_of_the_model_s_own_forward(options):
    made = model(**options)
    seen = trace(made, tokens())
    assert len(seen.hidden_L) == len(seen.logits_L) == len(seen.probs_L) == 3
    logits = torch.nn.functional.linear(made.norm(seen.hidden_L[-1]), made.embedding.weight)
    torch.testing.assert_close(logits, made(tokens()), rtol=1e-9, atol=1e-9)
    assert not made.blocks[0]._forward_hooks
    assert all(
        part.attend.__name__ == "fused" for part in made.modules() if isinstance(part, Attention)
    )


def test_a_trace_of_a_recurrent_model_has_every_pass():
    assert len(trace(model(num_layers=2, depth=5), tokens()).hidden_L) == 5


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("site", SITES)
def test_a_change_has_its_site_and_its_size(options, site):
    made = model(**options)
    weights, changed = dict(made.named_parameters()), changed_weights(made, site, 0.01, seed=7)
    assert set(changed) == set(site_of(made, site)) and len(changed) > 0
    for name, rows in site_of(made, site).items():
        moved, weight = changed[name], weights[name].detach()
        off = moved - weight
        assert off[rows].norm() == pytest.approx(0.01 * float(weight[rows].norm()), rel=1e-9)
        assert off.norm() == pytest.approx(off[rows].norm())
        assert name.startswith("blocks.0.")
    larger = changed_weights(made, site, 0.02, seed=7)
    for name in changed:
        torch.testing.assert_close(
            larger[name] - weights[name], 2 * (changed[name] - weights[name])
        )


def test_sites_share_out_the_first_layer_but_for_its_norms():
    made = model(qk_norm="layernorm", bias=True)
    every = set(site_of(made, "all"))
    parts = set(site_of(made, "qk")) | set(site_of(made, "vo_mlp"))
    assert every - parts == {name for name in every if ".inner." not in name} and every > parts
    qkv = "blocks.0.expert.attention.inner.qkv.weight"
    rows = torch.arange(24)
    queries_keys, rest = (rows[site_of(made, site)[qkv]].tolist() for site in ("qk", "vo_mlp"))
    assert queries_keys + rest == rows.tolist() and len(queries_keys) == 16


def test_a_change_of_values_reaches_the_second_attention_first():
    made = model()
    clean = trace(made, tokens())
    moved = trace(made, tokens(), changed_weights(made, "vo_mlp", 0.01, 0))
    variation, change = apart(clean, moved)
    assert variation[0] == 0 and min(variation[1:]) > 0 and min(change) > 0
    variation, _ = apart(clean, trace(made, tokens(), changed_weights(made, "qk", 0.01, 0)))
    assert min(variation) > 0


def test_no_change_changes_nothing():
    made = model()
    clean = trace(made, tokens())
    for site in SITES:
        found = apart(clean, trace(made, tokens(), changed_weights(made, site, 0.0, 0)))
        assert found == ([0] * 3, [0] * 3)


def test_total_variation_by_hand():
    seen = [trace(model(), tokens()) for _ in range(2)]
    probs = torch.zeros(1, 1, 3, 3)
    probs[0, 0] = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]])
    other = probs.clone()
    other[0, 0, 1:] = torch.tensor([[0.9, 0.1, 0], [0.2, 0.3, 0.5]])
    x = torch.ones(1, 3, 4)
    variation, change = apart(
        seen[0]._replace(probs_L=[probs], hidden_L=[x]),
        seen[1]._replace(probs_L=[other], hidden_L=[1.25 * x]),
    )
    assert variation == [pytest.approx(0.4 / 2)], "the first row has one entry and is left out"
    assert change == [pytest.approx(0.25)]


def test_sharpness_by_hand():
    logits = torch.tensor([[9.0, -math.inf, -math.inf], [1.0, 3.0, -math.inf], [0.0, 0.0, -6.0]])
    found = sharpness(logits[None, None], logits[None, None].softmax(-1))
    assert found.largest == 6, "a row of one entry is left out"
    assert found.spread == pytest.approx((1 + math.sqrt(8)) / 2)
    row = np.array([1, np.exp(2)]) / (1 + np.exp(2))
    last = np.array([1, 1, np.exp(-6)]) / (2 + np.exp(-6))
    share = [-(p * np.log(p)).sum() / np.log(len(p)) for p in (row, last)]
    assert found.entropy == pytest.approx(np.mean(share))


def test_the_exponent_of_a_linear_chain_is_the_logarithm_of_its_growth():
    x_BTD = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert exponent([lambda x: 1.5 * x] * 7, x_BTD, 0) == pytest.approx(math.log(1.5))
    shift = [lambda x: 0.5 * x.roll(1, 1) + 3] * 2
    assert exponent(shift, x_BTD, 0) == pytest.approx(math.log(0.5))


def test_the_exponent_of_a_matrix_is_that_of_its_largest_singular_value():
    matrix = torch.diag(torch.tensor([3.0, 1.0, 0.1, 0.2])) @ torch.linalg.qr(torch.rand(4, 4))[0]
    found = exponent([lambda x: x @ matrix.mT], torch.randn(2, 1, 4), 0, iterations=20)
    assert found == pytest.approx(math.log(3), rel=1e-4)


@pytest.mark.parametrize("options", VARIANTS)
def test_the_exponent_of_a_model_is_that_of_its_jacobian(options):
    made = model(**options)
    x_BTD = trace(made, tokens()).hidden_L[0]

    def rest(x_TD: torch.Tensor) -> torch.Tensor:
        x_BTD = x_TD[None]
        for router in made.passes()[1:]:
            x_BTD = router(x_BTD, made.positions)
        return x_BTD[0]

    largest = []
    for x_TD in x_BTD:
        jacobian = torch.autograd.functional.jacobian(rest, x_TD).reshape(48, 48)
        largest.append(torch.linalg.matrix_norm(jacobian, 2).log() / 2)
    known = float(torch.stack(largest).mean())
    assert exponent_of(made, x_BTD, 0, iterations=60) == pytest.approx(known, abs=1e-3)
    assert exponent_of(made, x_BTD, 0) == pytest.approx(known, abs=0.1)
    assert all(parameter.requires_grad for parameter in made.parameters())


def test_measures_of_a_state():
    made = model().float()
    before = {
        name: value.clone() for name, value in made.state_dict().items() if torch.is_tensor(value)
    }
    found = amplification(made, tokens(), "init", [1e-6, 1e-4], seed=0)
    assert found["amplification/init/nothing"] == 0
    assert found["amplification/init/chain"] == pytest.approx(math.log(1.5))
    for site in SITES:
        small, large = (
            found[f"amplification/init/{site}/{size}/layer_3/tv"] for size in ("1e-06", "0.0001")
        )
        assert large / small == pytest.approx(100, rel=0.01), "D is proportional to small changes"
    assert 0 < found["amplification/init/layer_2/entropy"] <= 1
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in before.items())
    assert next(made.parameters()).dtype == torch.float32


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_is_probed_before_training_and_after(tmp_path, steps):
    parts, _ = fit(
        tmp_path, "router=dense", f"trainer.max_steps={steps}", "optim.warmup_steps=0",
        "+callbacks.a._target_=prismatic.studies.protocols.amplification.Amplification",
    )  # fmt: skip
    found = {k: float(v) for k, v in parts.trainer.callback_metrics.items()}
    names = {name for name in found if name.startswith("amplification/trained")}
    assert bool(names) == (steps > 1), "a run of one step is there for its initial state"
    if names:
        key = "all/0.01/layer_2/tv"
        assert found[f"amplification/init/{key}"] != found[f"amplification/trained/{key}"]
