"""The guard against leaks: what it measures, what it calls a leak, and that its controls count."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prismatic.data import IIDTask
from prismatic.report.style import png
from prismatic.routers import PrismaticRouter
from prismatic.studies import ASSAY, judge
from prismatic.studies.protocols.leak import (
    FRESH,
    GainByPosition,
    Independence,
    PeekingRouter,
    fresh_gains,
    named,
)

from ..tiny import fit
from .protocols import declared

TASK = IIDTask(vocab_size=8, seq_len=5, held_out_tokens=64)
ERROR = 0.001


class Copier(nn.Module):
    """Knows the next token of its own window, and says nothing about the last."""

    def __init__(self):
        super().__init__()
        self.sure = nn.Parameter(torch.tensor(50.0))

    def forward(self, tokens_BT):
        logits_BTV = self.sure * F.one_hot(tokens_BT.roll(-1, 1), TASK.vocab_size)
        logits_BTV[:, -1] = 0
        return logits_BTV


def test_gains_are_those_of_fresh_batches_by_position():
    gain_GT = fresh_gains(Copier(), TASK, 4, 3, seed=1)
    assert gain_GT.shape == (3, 5)
    assert gain_GT[:, :-1] == pytest.approx(math.log(8))
    assert gain_GT[:, -1] == pytest.approx(0.0, abs=1e-7)


def test_fresh_tokens_are_those_of_no_training_step():
    batch = TASK.train_batch(FRESH, 4, 1)
    trained = [TASK.train_batch(index, 4, 1).tokens_BT for index in range(50)]
    assert not any(torch.equal(batch.tokens_BT, tokens) for tokens in trained)
    assert FRESH > 10**9


def test_names_carry_means_and_standard_errors_over_batches():
    gain_GT = torch.tensor([[1.0, 3.0], [2.0, 6.0], [3.0, 9.0]], dtype=torch.float64)
    found = named(gain_GT)
    assert found["leak/gain"] == pytest.approx(4.0)
    assert found["leak/error"] == pytest.approx(2.0 / math.sqrt(3))
    assert found["leak/position_1/gain"] == pytest.approx(6.0)
    assert found["leak/position_1/error"] == pytest.approx(3.0 / math.sqrt(3))
    assert len(found) == 6


def test_a_peeking_router_routes_a_position_by_the_next_token():
    options = dict(hidden_size=8, num_experts=3, level="token", pool="last", name="b")
    peeking, honest = (cls(nn.Linear(8, 8), **options) for cls in (PeekingRouter, PrismaticRouter))
    x_BTD = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    other_BTD = x_BTD.clone()
    other_BTD[:, 3, 0] += 1
    for router, place in ((honest, 3), (peeking, 2)):
        moved = (router.route(x_BTD).probs - router.route(other_BTD).probs).abs().amax((0, 2))
        assert moved.nonzero().flatten().tolist() == [place]
    assert peeking.causal  # by its level and pool, it passes


def test_the_probe_measures_as_many_fresh_tokens_as_are_held_out(tmp_path):
    probe = "+callbacks.leak._target_=prismatic.studies.protocols.leak.ByPosition"
    parts, _ = fit(tmp_path, probe)
    logged = parts.trainer.callback_metrics
    assert float(logged["leak/batches"]) == 512 / 16 / 4
    gain_GT = fresh_gains(parts.model.eval(), parts.task, 4, 8, seed=0)
    for name, value in named(gain_GT).items():
        assert float(logged[name]) == pytest.approx(value, abs=1e-6), name


def table(**gains):
    """Ten runs of every arm, with gains at three positions: each a number or one per seed."""
    rows = []
    for arm, gain_T in gains.items():
        for seed in range(10):
            gain_SC = np.broadcast_to(np.transpose(gain_T), (10, 3))[seed]
            row = {"arm": arm, "seed": seed, "diverged": 0.0, "leak/batches": 100.0}
            row |= {"leak/gain": gain_SC.mean(), "leak/error": ERROR}
            for t, gain in enumerate(gain_SC):
                row |= {f"leak/position_{t}/gain": gain, f"leak/position_{t}/error": ERROR}
            rows.append(row)
    return pd.DataFrame(rows)


def judged(runs, **options):
    claim = Independence(says="", routers=["one"], **options)
    return claim.judge(runs, np.random.default_rng(0))["one"]


@pytest.mark.parametrize(
    ("gain_T", "verdict", "where"),
    [
        ((-0.002, -0.001, -0.003), "supported", "seed 0"),  # has learnt noise
        ((0.0, 0.0, 0.0), "supported", "seed 0"),
        ((0.0, 0.0, 0.002), "refuted", "position 2"),  # a position of ten runs: 6 errors
        ((0.004, 0.004, 0.004), "refuted", "all tokens"),
        ((0.001, 0.001, 0.001), "supported", "all tokens"),  # 3.2 errors
    ],
)
def test_a_leak_is_four_errors_below_the_uniform_loss(gain_T, verdict, where):
    runs = table(one=gain_T)
    honest, leaky = judged(runs), judged(runs, leaks=True)
    assert honest.verdict == verdict
    # That no leak was learnt does not refute that there is one.
    assert leaky.verdict == ("supported" if verdict == "refuted" else "inconclusive")
    assert where in honest.note and honest.n == (100 if where == "seed 0" else 1000)
    assert (honest.interval[0] > 0) == (verdict == "refuted")


def test_one_leaky_run_of_ten_is_a_leak():
    gain_T = [[0.0] * 9 + [0.005]] * 3
    found = judged(table(one=gain_T))
    assert found.verdict == "refuted" and "seed 9" in found.note


def test_a_mean_too_uncertain_to_rule_out_a_leak_is_inconclusive():
    found = judged(table(one=(0.0, 0.0, 0.0)), smallest_effect=0.003)
    assert found.verdict == "inconclusive"


def test_the_study_says_nothing_when_a_control_fails():
    study = declared("leak")
    silent, leaky = (-0.001, -0.001, -0.001), (0.5, 0.5, 0.5)
    sound = table(**{arm: leaky if arm == "planted" else silent for arm in study.arms})
    found = judge(study, "cpu", sound)
    assert {f.verdict for f in found.claims["accepted"].values()} == {"supported"}
    assert {f.verdict for f in found.claims["refused"].values()} == {"inconclusive"}
    swapped = sound.assign(arm=sound["arm"].replace({"planted": "dense", "dense": "planted"}))
    for broken in (swapped, table(**dict.fromkeys(study.arms, silent))):
        found = judge(study, "cpu", broken)
        assert found.failed
        assert {f.verdict for c in found.claims.values() for f in c.values()} == {ASSAY}


def test_the_picture_has_a_panel_per_arm_and_marks_leaks():
    figure = GainByPosition(caption="").draw(table(honest=(0, 0, 0), leaky=(0, 0, 0.3)))
    honest, leaky = figure.axes
    assert [len(axes.lines[-1].get_xdata()) for axes in (honest, leaky)] == [0, 1]
    assert png(figure)
