"""What the benefit study measures of routing, and that its controls count."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from prismatic.data import Batch
from prismatic.measures import views_apart
from prismatic.measures.routing import DomainRouting, Twins
from prismatic.studies import ASSAY, judge
from prismatic.studies.protocols.benefit import (
    Swap,
    gated,
    history,
    replayed,
    rows_by_domain,
    swap_costs,
)

from ..tiny import fit, text_data, tiny
from .protocols import declared

PROBES = [
    f"+callbacks.{name.lower()}={{_target_: prismatic.studies.protocols.benefit.{name}}}"
    for name in ("History", "DomainInformation", "Swap")
]
STRONG = ["focal=none", "perturbation.scale=2", "router.temperature=0.01"]


class Squares:
    """Two domains of three and five held-out rows."""

    domains = ("a", "b")

    def held_out(self, split):
        rows = torch.arange(8)
        return Batch(rows[:, None], rows[:, None], (rows >= 3).long())


def two_domains(folder):
    """Two texts with no byte in common."""
    (folder / "texts").mkdir()
    letters = np.random.default_rng(0)
    for name, drawn in (("low", "abcd"), ("high", "wxyz")):
        text = "".join(letters.choice(list(drawn), 3200))
        (folder / "texts" / f"{name}.txt").write_text(text)
    return ["data=text", f"data.path={folder / 'texts'}", "data.seq_len=16"]


def batches(parts):
    return rows_by_domain(parts.task, 4)


def test_every_domain_gives_as_many_rows_from_all_of_its_text():
    assert [b.tokens_BT.flatten().tolist() for b in rows_by_domain(Squares(), 2)] == [
        [0, 2],
        [3, 7],
    ]
    assert [len(b.tokens_BT) for b in rows_by_domain(Squares(), 9)] == [3, 3]


@pytest.mark.parametrize("level", ["token", "sequence", "batch"])
def test_a_forward_with_its_own_routing_replayed_is_the_same(level, tmp_path):
    leaky = [] if level == "token" else ["router.pool=mean", "router.allow_leak=true"]
    parts, _ = fit(tmp_path, *STRONG, f"router.level={level}", *leaky)
    model, tokens_BT = parts.model.eval(), parts.task.held_out("val").tokens_BT[:4]
    with torch.no_grad():
        logits_BTV = model(tokens_BT)
        given_L = gated(model)
        gates = [router.gate for router in model.routers]
        with replayed(model, given_L):
            assert torch.allclose(model(tokens_BT), logits_BTV, atol=1e-6)
        with replayed(model, [logits.flip(-1) for logits in given_L]):
            assert not torch.allclose(model(tokens_BT), logits_BTV, atol=1e-3)
    assert [router.gate for router in model.routers] == gates


def test_gates_come_back_after_an_error(tmp_path):
    parts, _ = fit(tmp_path)
    gates = [router.gate for router in parts.model.routers]
    with pytest.raises(StopIteration), replayed(parts.model, []):
        parts.model(parts.task.held_out("val").tokens_BT[:4])
    assert [router.gate for router in parts.model.routers] == gates


def test_swapping_costs_what_losses_by_hand_say(tmp_path):
    parts, _ = fit(tmp_path, *two_domains(tmp_path), *STRONG)
    model = parts.model.eval()
    first, second = batches(parts)
    probs = {}
    with torch.no_grad():
        for name, batch in (("first", first), ("second", second)):
            model(batch.tokens_BT)
            probs[name] = [routing.probs for routing in model.routing]

        def loss(batch, probs_L):
            """Of a forward in which each router is told its weights."""
            told = dict(zip(model.routers, probs_L, strict=True))
            for router, weights in told.items():
                router._applied = lambda _, weights=weights: weights
            logits_BTV = model(batch.tokens_BT)
            for router in told:
                del router._applied
            nll_BT = -logits_BTV.log_softmax(-1).gather(-1, batch.targets_BT[..., None])
            return float(nll_BT.mean())

        own = (loss(first, probs["first"]) + loss(second, probs["second"])) / 2
        rolled = {name: [p.roll(1, 0) for p in parts_L] for name, parts_L in probs.items()}
        same = (loss(first, rolled["first"]) + loss(second, rolled["second"])) / 2
        other = (loss(first, probs["second"]) + loss(second, probs["first"])) / 2
    found = swap_costs(model, [first, second])
    assert found["swap/row"] == pytest.approx(same - own, abs=2e-6)
    assert found["swap/domain"] == pytest.approx(other - same, abs=2e-6)
    assert abs(found["swap/domain"]) > 1e-4 and abs(found["swap/row"]) > 1e-5


def test_routing_that_changes_nothing_costs_nothing_to_swap(tmp_path):
    parts, _ = fit(tmp_path, *two_domains(tmp_path), "perturbation.scale=0")
    assert swap_costs(parts.model.eval(), batches(parts)) == {"swap/row": 0.0, "swap/domain": 0.0}


def test_history_is_what_is_left_of_the_largest():
    found = history([0.1, 0.4, 0.3, 0.2])
    assert found["history/kept"] == pytest.approx(0.5)
    assert found["history/part_1/disagreement"] == 0.4 and len(found) == 5
    assert history([0.0] * 5)["history/kept"] == 0.0
    nothing = history([0.0021, 0.0024, 0.002, 0.0019])
    assert nothing["history/kept"] == pytest.approx(0.0019 / 0.02)  # all views are the same


def test_probes_log_what_their_functions_measure(tmp_path):
    parts, _ = fit(tmp_path, *two_domains(tmp_path), *STRONG, *PROBES)
    logged = {name: float(x) for name, x in parts.trainer.callback_metrics.items()}
    model = parts.model.eval()
    for name, value in swap_costs(model, rows_by_domain(parts.task, 16)).items():
        assert logged[name] == pytest.approx(value, abs=1e-6)
    apart = views_apart(model, *parts.learner.probe[:2])["views/disagreement"]
    assert logged["history/part_4/disagreement"] == pytest.approx(apart, rel=1e-5)
    assert logged["history/part_0/disagreement"] != logged["history/part_1/disagreement"]
    assert 0 <= logged["history/least_used"] <= 0.25
    assert (
        logged["history/least_used"]
        <= min(logged[f"routing/expert_{i}_weight"] for i in range(4)) + 0.1
    )
    assert logged["adaptation/control/told"] > 0.9  # two domains, nearly as long
    held_out = parts.task.held_out("val")
    tables = []
    fresh = Twins(fit(tmp_path / "twin", *two_domains_again(tmp_path), *STRONG, still())[0].model)
    with torch.no_grad():
        for gates in (None, fresh):
            table = DomainRouting(model.depth, 2, 4, torch.device("cpu"))
            if gates:
                gates.begin(model)
            model(held_out.tokens_BT)
            table.update(gates.routing if gates else model.routing, held_out.domain_B)
            if gates:
                gates.end()
            tables.append(float(table.information().mean()))
    assert logged["adaptation/information"] == pytest.approx(tables[0], abs=1e-5)
    assert logged["adaptation/twin"] == pytest.approx(tables[1], abs=1e-5)
    gain = logged["adaptation/information"] - logged["adaptation/twin"]
    assert logged["adaptation/gain"] == pytest.approx(gain, abs=1e-6)
    assert tables[0] != pytest.approx(tables[1], abs=1e-5)


def two_domains_again(folder):
    return ["data=text", f"data.path={folder / 'texts'}", "data.seq_len=16"]


def still():
    """Trains nothing: what is left are the first weights."""
    return "optim.lr=1e-30"


def test_probes_log_nothing_of_a_bare_model(tmp_path):
    dense = ["router=dense", *text_data(tmp_path), *PROBES]
    logged = fit(tmp_path, *dense)[0].trainer.callback_metrics
    assert not [name for name in logged if name.startswith(("history", "adaptation", "swap"))]


def test_one_domain_has_nothing_to_swap(tmp_path):
    logged = fit(tmp_path, *text_data(tmp_path), *PROBES)[0].trainer.callback_metrics
    assert "swap/domain" not in logged and "history/kept" in logged
    with pytest.raises(ValueError, match=r"rows=1 .*at least 2"):
        Swap(1)


def test_arms_share_what_the_study_says_they_share():
    study = declared("benefit")
    for tier in study.tiers.values():
        assert {arm for arm in tier.of_arms} <= set(study.arms)
    weights = {}
    for arm in ("dense", "smear, equal parameters", "smear, equal width"):
        own = study.tier("cpu").of_arms.get(arm, ())
        config = tiny("model.dim=64", *study.arms[arm], *own)
        blocks = config.router.num_experts * 12 * config.model.dim**2
        weights[arm] = blocks
    assert weights["dense"] == weights["smear, equal parameters"] < weights["smear, equal width"]


def table(study, losses, seeds=10):
    """Runs of the cpu tier: `loss/val` by arm; all other measures say that nothing happens."""
    shared_S = np.random.default_rng(0).normal(0, 0.01, seeds)
    quiet = dict.fromkeys(study.measures, 0.0) | {"adaptation/control/told": 0.95}
    rows = [
        quiet | {"arm": arm, "seed": s, "loss/val": losses.get(arm, 2.0) + shared_S[s]}
        for arm in study.arms_of(study.tier("cpu"))
        for s in range(seeds)
    ]
    return pd.DataFrame(rows)


def test_the_study_says_nothing_when_a_control_fails():
    study = declared("benefit")
    losses = {"dense, twice the steps": 1.8, "attractive, relative": 1.9, "constant": 1.95}
    sound = table(study, losses)
    found = judge(study, "cpu", sound)
    assert not found.failed
    better = found.claims["better_than_dense"]
    assert better["attractive, relative"].verdict == "supported"
    assert better["repulsive, relative"].verdict == "refuted"
    assert better["attractive, relative"].estimate == pytest.approx(0.1)
    assert found.claims["better_than_constant"]["attractive, relative"].verdict == "supported"
    assert found.claims["fails_by_identical_views"]["noise, relative"].verdict == "supported"
    assert found.claims["fails_by_collapse"]["noise, relative"].verdict == "refuted"
    names = {"dense, twice the steps": "scale 0", "scale 0": "dense, twice the steps"}
    adapted = sound["adaptation/gain"].where(sound["arm"] != "scale 0", 0.1)
    for broken in (
        sound.assign(arm=sound["arm"].replace(names)),
        table(study, losses | {"dense, twice the steps": 2.0}),
        table(study, losses | {"scale 0": 2.00001}),
        sound.assign(**{"adaptation/gain": adapted}),
        sound.assign(**{"adaptation/control/told": 0.3}),
    ):
        found = judge(study, "cpu", broken)
        assert found.failed
        assert {f.verdict for c in found.claims.values() for f in c.values()} == {ASSAY}


def test_a_diverged_run_counts_as_the_uniform_predictor():
    study = declared("benefit")
    runs = table(study, {"dense, twice the steps": 1.8})
    lost = (runs["arm"] == "noise, relative") & (runs["seed"] == 3)
    runs.loc[lost, [m for m in study.measures if m not in ("loss/val", "diverged")]] = math.nan
    runs.loc[lost, "loss/val"], runs.loc[lost, "diverged"] = math.log(256), 1.0
    found = judge(study, "cpu", runs)
    worse = found.claims["better_than_dense"]["noise, relative"]
    assert worse.estimate == pytest.approx((2 - math.log(256)) / 10, abs=0.01)
    kept = {kind: one.verdict for kind, one in found.claims["no_collapse"].items()}
    assert kept.pop("noise, relative") == "no verdict" and set(kept.values()) == {"refuted"}
