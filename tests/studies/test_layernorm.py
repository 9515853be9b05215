"""When logits explode, and losses at a best rate that was not chosen to fit."""

import numpy as np
import pandas as pd
import pytest
import torch

from prismatic.models import Transformer
from prismatic.report.style import png
from prismatic.studies.protocols.layernorm import (
    EVERY,
    AtBestRate,
    Explodes,
    LogitsOverLayers,
    LossOverRate,
    first_above,
    largest_logits,
)

from ..tiny import fit


def rng() -> np.random.Generator:
    return np.random.default_rng(9)


def model(**options) -> Transformer:
    torch.manual_seed(3)
    known = {"dim": 8, "num_layers": 4, "num_heads": 2, "init": "xavier"} | options
    return Transformer(16, 6, **known)


def test_largest_logits_are_those_of_queries_and_keys():
    tokens_BT = torch.randint(0, 16, (2, 6), generator=torch.Generator().manual_seed(4))
    made = model(positions="none", norm="none").double()
    attention = made.blocks[0].expert.attention.inner
    q_BTD, k_BTD, _ = attention.qkv(made.embedding(tokens_BT)).chunk(3, -1)
    known = 0.0
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        logits_BTT = q_BTD[..., part] @ k_BTD[..., part].mT / 2
        known = max(known, float(logits_BTT.tril()[:, 1:].abs().max().detach()))
    found = largest_logits(made, tokens_BT)
    assert len(found) == 4 and found[0] == pytest.approx(known)
    louder = largest_logits(model(positions="none", norm="none", qk_gain=8.0), tokens_BT)
    assert louder[0] == pytest.approx(8 * known, rel=1e-5)


def test_the_first_layer_above():
    largest_NL = np.array([[1, 30, 5, 90], [1, 2, 3, 4], [21, 1, 1, 1]])
    assert first_above(largest_NL, 20).tolist() == [2, np.inf, 1]
    assert first_above(largest_NL, 88.7).tolist() == [4, np.inf, np.inf]


def test_a_run_is_probed_before_training_and_after(tmp_path):
    parts, _ = fit(
        tmp_path, "router.num_experts=2", "optim.lr=0.1",
        "+callbacks.a._target_=prismatic.studies.protocols.layernorm.LargestLogits",
    )  # fmt: skip
    found = {k: float(v) for k, v in parts.trainer.callback_metrics.items()}
    before, after = (found[f"layernorm/{s}/layer_2/largest"] for s in ("init", "trained"))
    assert 0 < before != after > 0
    assert "layernorm/init/layer_3/largest" not in found


def logits(layers_of: dict[str, list[float]], diverged: dict[str, int] | None = None):
    """The layer from which a logit is 30, by arm and seed."""
    rows = []
    for arm, first_N in layers_of.items():
        for seed, first in enumerate(first_N):
            lost = seed < (diverged or {}).get(arm, 0)
            row = {"arm": arm, "seed": seed, "diverged": float(lost)}
            for layer in range(1, 9):
                value = 30.0 if layer >= first else 1.0
                row[f"layernorm/init/layer_{layer}/largest"] = np.nan if lost else value
            rows.append(row)
    return pd.DataFrame(rows)


CLAIM = Explodes(says="x", of={"early": "a", "late": "b", "mixed": "c"}, state="init")


def test_what_explodes_early_is_told_from_what_does_late():
    table = logits({"a": [3, 4] * 5, "b": [6] * 10, "c": [3, 9] * 5})
    found = CLAIM.judge(table, rng())
    assert {name: one.verdict for name, one in found.items()} == {
        "early: 20": "supported", "early: 88.7": "refuted", "late: 20": "refuted",
        "late: 88.7": "refuted", "mixed: 20": "inconclusive", "mixed: 88.7": "refuted",
    }  # fmt: skip
    assert found["early: 20"].estimate == 0.5 and "[3, 3" in found["early: 20"].note
    assert "never in 5 seeds" in found["mixed: 20"].note
    assert found["early: 20"].level == pytest.approx(1 - 0.05 / 6)


def test_runs_that_diverged_may_count_either_way():
    table = logits(
        {"a": [3] * 10, "b": [6] * 10, "c": [3] * 10}, diverged={"a": 4, "b": 4, "c": 10}
    )
    found = CLAIM.judge(table, rng())
    assert found["early: 20"].verdict == found["late: 20"].verdict == "inconclusive"
    low, high = found["mixed: 20"].interval
    assert (low, high) == (-0.5, 0.5) and "10 seeds diverged" in found["mixed: 20"].note


def test_few_seeds_say_nothing_of_explosions():
    found = CLAIM.within({"a"}).judge(logits({"a": [3] * 4}), rng())
    assert {one.verdict for one in found.values()} == {"no verdict"}
    assert CLAIM.within({"d"}) is None and CLAIM.arms() == {"a", "b", "c"}


def losses(means: dict[str, dict[str, float]], noise: float, seeds: int = 10) -> pd.DataFrame:
    draw = rng()
    return pd.DataFrame(
        {"arm": f"{group}, rate {rate}", "seed": seed, "diverged": 0.0,
         "loss/val": mean + noise * draw.normal()}
        for group, by_rate in means.items()
        for rate, mean in by_rate.items()
        for seed in range(seeds)
    )  # fmt: skip


RATES = ["0.001", "0.01", "0.1"]


def at_best(contrasts: dict, **options) -> AtBestRate:
    given = {"says": "x", "rates": RATES, "smallest_effect": 0.05}
    return AtBestRate(contrasts=contrasts, **given | options)


def test_groups_are_compared_at_their_own_best_rates():
    means = {
        "none": {"0.001": 3.0, "0.01": 3.5, "0.1": 4.0},
        "pre": {"0.001": 3.5, "0.01": 2.8, "0.1": 3.2},
    }
    claim = at_best({"xavier": {"none": 1, "pre": -1}})
    (found,) = claim.judge(losses(means, 0.01), rng()).values()
    assert found.estimate == pytest.approx(0.2, abs=0.02)
    assert "none: 0.001 (end of the grid)" in found.note and "pre: 0.01" in found.note
    assert found.verdict == "inconclusive"  # a lower rate might do without a norm
    within = means | {"none": {"0.001": 3.5, "0.01": 3.0, "0.1": 4.0}}
    (found,) = claim.judge(losses(within, 0.01), rng()).values()
    assert found.verdict == "supported" and found.estimate == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(("best", "verdict"), [("none", "inconclusive"), ("pre", "refuted")])
def test_a_rate_beyond_the_grid_cannot_take_back_what_it_would_only_add_to(best, verdict):
    """Pre against none: refuted, unless pre could be better by a rate that was not tried."""
    at_end, inside = {"0.001": 2.8, "0.01": 3, "0.1": 3}, {"0.001": 3, "0.01": 2.8, "0.1": 3}
    means = {one: at_end if one == best else inside for one in ("none", "pre")}
    claim = at_best({"e": {"pre": 1, "none": -1}})
    assert claim.judge(losses(means, 0.01), rng())["e"].verdict == verdict


def test_searching_among_equal_rates_gains_nothing():
    """The least of three would be lower than one by .85 deviations; chosen by others it is not."""
    rates = {rate: 3.0 for rate in RATES}
    claim = at_best({"e": {"searched": 1, "one": -1}})
    gains = []
    for k in range(40):
        table = losses({"searched": rates, "one": {"0.001": 3, "0.01": 9, "0.1": 9}}, 0.1, 10)
        table["loss/val"] += np.random.default_rng(k).normal(0, 0.1, len(table))
        gains.append(claim.judge(table, rng())["e"].estimate)
    assert np.mean(gains) == pytest.approx(0, abs=0.03)


def test_a_blow_up_is_no_worse_than_divergence():
    table = losses({"none": {r: 3.0 for r in RATES}, "pre": {r: 3.0 for r in RATES}}, 0.01)
    table.loc[table["arm"].str.startswith("none") & (table["seed"] == 3), "loss/val"] = 3000.0
    claim = at_best({"e": {"none": 1, "pre": -1}}, worst=5.5)
    assert claim.effect(table, "e") == pytest.approx([0, 0, 0, 2.5] + [0] * 6, abs=0.05)
    assert claim.judge(table, rng())["e"].estimate == pytest.approx(0.25, abs=0.02)


def test_every_effect_must_hold():
    good = {"0.001": 3.2, "0.01": 3.0, "0.1": 3.2}
    worse, same = {r: m + 0.5 for r, m in good.items()}, dict(good)
    contrasts = {"a": {"none a": 1, "pre": -1}, "b": {"none b": 1, "pre": -1}}
    claim = at_best(contrasts, every=True)
    found = claim.judge(losses({"none a": worse, "none b": worse, "pre": good}, 0.01), rng())
    assert [one.verdict for one in found.values()] == ["supported"] * 3
    found = claim.judge(losses({"none a": worse, "none b": same, "pre": good}, 0.01), rng())
    assert [one.verdict for one in found.values()] == ["supported", "refuted", "refuted"]
    assert found[EVERY].estimate == found["b"].estimate and found[EVERY].note.endswith("b")
    two = claim.judge(losses({"none a": worse, "none b": worse, "pre": good}, 0.01, 2), rng())
    assert two[EVERY].verdict == "no verdict"


def test_a_tier_may_have_fewer_rates_and_groups():
    contrasts = {"a": {"none a": 1, "pre": -1}, "b": {"none b": 1, "pre": -1}}
    arms = {f"{group}, rate {rate}" for group in ("none a", "pre") for rate in RATES[:2]}
    kept = at_best(contrasts).within(arms)
    assert kept.rates == RATES[:2] and kept.arms() == arms and set(kept.contrasts) == {"a"}
    assert at_best(contrasts).within({"pre, rate 0.001"}) is None


def test_pictures_are_drawn():
    table = logits({"a": [3, 4] * 5, "b": [6] * 10})
    for layer in range(1, 9):
        table[f"layernorm/trained/layer_{layer}/largest"] = 2.0
    lines = {"none": "a", "pre": "b", "gone": "d"}
    figure = LogitsOverLayers(caption="c", panels={"xavier": lines}).draw(table)
    (axes,) = figure.axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert drawn["none, before training"] == [1, 1, 15.5, 30, 30, 30, 30, 30]
    assert drawn["pre, after"] == [2] * 8 and len(png(figure)) > 5_000
    table = losses({"none": {"0.001": 3.0, "0.01": 3.5}, "pre": {"0.01": 2.8}}, 0.01)
    panels = {"xavier": {"without": "none", "with": "pre"}, "other": {"with": "gone"}}
    figure = LossOverRate(caption="c", panels=panels, rates=RATES, worst=5.5).draw(table)
    assert len(figure.axes) == 1 and len(png(figure)) > 5_000
