"""Routing over trips: what oscillates is found, what does not is not, by one path for both."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from prismatic.models import Transformer
from prismatic.perturb import Focal
from prismatic.routers import PrismaticRouter
from prismatic.studies.protocols.oscillation import (
    Recurring,
    RiseTogether,
    Trips,
    cost_of_mean_routing,
    noisy_script,
    oscillation,
    scripted_routing,
    unroll_model,
    wavy_script,
)
from prismatic.studies.scripted import Scripted, scripted

from ..tiny import fit

PROBE = "+callbacks.trips._target_=prismatic.studies.protocols.oscillation.Trips"
RECURRENT = ["model.depth=8", "router.num_experts=2", "focal=none"]


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def model(depth: int = 8) -> Transformer:
    torch.manual_seed(1)
    router = partial(PrismaticRouter, num_experts=2, focal=Focal("none"))
    made = Transformer(16, 6, dim=8, num_layers=2, depth=depth, num_heads=2, router=router)
    for part in made.routers:
        part.gate.linear.weight.data *= 50
    return made.eval()


def tokens(rows: int = 3) -> torch.Tensor:
    return torch.randint(0, 16, (rows, 6), generator=torch.Generator().manual_seed(2))


def test_a_model_unrolled_to_its_own_trips_routes_as_it_does():
    made, tokens_BT = model(), tokens()
    made(tokens_BT)
    passes = torch.stack([one.probs.mean(1) for one in made.routing])
    found = unroll_model(made, tokens_BT, 4)
    assert found.shape == (4, 2, 3, 2)
    np.testing.assert_allclose(found.reshape(8, 3, 2), passes.detach().numpy(), rtol=1e-6)
    np.testing.assert_array_equal(unroll_model(made, tokens_BT, 9)[:4], found)


def test_a_wave_is_found_and_noise_with_a_memory_is_not():
    wave = oscillation(scripted_routing(wavy_script(64, 60, rng())), rng(), 199)
    noise = oscillation(scripted_routing(noisy_script(64, 60, rng())), rng(), 199)
    assert wave.share >= 0.9 and 0.1 < wave.frequency < 0.4
    assert noise.share <= 0.05
    assert 0.08 < noise.amplitude < wave.amplitude


def test_a_script_is_followed():
    script = np.log([[[3.0, 1.0]], [[0.5, 9.0]]])  # 2 trips, 1 router, 2 sequences
    found = scripted_routing(script)
    np.testing.assert_allclose(found[..., 0], [[[0.75, 0.5]], [[1 / 3, 0.9]]])
    np.testing.assert_allclose(found.sum(-1), 1)


def test_routing_that_hardly_moves_has_no_period():
    weight_RKBE = np.full((64, 1, 2, 2), 0.5)
    weight_RKBE[:, 0, 0, 0] += 1e-8 * (-1.0) ** np.arange(64)
    weight_RKBE[:, 0, 1, 0] += 1e-2 * (-1.0) ** np.arange(64)
    found = oscillation(weight_RKBE, rng(), 99)
    assert found.share == 0.5 and found.amplitude == pytest.approx(5e-3, rel=1e-3)


def test_scripts_end_with_their_context():
    made = model()
    before = [router.gate for router in made.routers]
    with pytest.raises(ZeroDivisionError), scripted(made.routers, [Scripted([]), Scripted([])]):
        assert made.routers[0].gate is not before[0]
        raise ZeroDivisionError
    assert [router.gate for router in made.routers] == before


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_mean_routing_costs_what_the_same_model_with_that_routing_loses(temperature):
    made, tokens_BT = model(), tokens()
    for router in made.routers:
        router.temperature = temperature
    found = cost_of_mean_routing(made, tokens_BT, tokens_BT)
    x_BTD, means = made.embedding(tokens_BT), []
    own = F.cross_entropy(made(tokens_BT).transpose(1, 2), tokens_BT)
    for k in range(2):
        means.append(torch.stack([one.probs for one in made.routing[k::2]]).mean(0))
    for t in range(8):
        router = made.routers[t % 2]
        x_BTD = router.run(means[t % 2], x_BTD, made.positions)
    logits_BTV = F.linear(made.norm(x_BTD), made.embedding.weight)
    expected = F.cross_entropy(logits_BTV.transpose(1, 2), tokens_BT) - own
    assert found == pytest.approx(expected.item(), abs=1e-5) and abs(found) > 1e-4


def test_mean_routing_of_one_trip_is_the_routing():
    made = model(depth=2)
    assert cost_of_mean_routing(made, tokens(), tokens()) == pytest.approx(0, abs=1e-6)


def test_a_run_is_probed(tmp_path):
    parts, _ = fit(
        tmp_path, *RECURRENT, PROBE,
        "+callbacks.trips.rows=2", "+callbacks.trips.trips=24", "+callbacks.trips.surrogates=19",
    )  # fmt: skip
    found = {k: float(v) for k, v in parts.trainer.callback_metrics.items()}
    assert 0 <= found["oscillation/share"] <= 1
    assert {f"oscillation/trip_{t}" for t in range(1, 25)} <= set(found)
    assert found["oscillation/control/sinusoid/share"] >= found["oscillation/control/ar1/share"]
    assert np.isfinite(found["oscillation/mean_routing"])
    seen = found["routing/pass_0/expert_0_weight"]
    assert found["oscillation/trip_1"] == pytest.approx(seen, abs=0.05)


def test_a_model_without_views_has_no_routing_over_trips(tmp_path):
    with pytest.raises(ValueError, match=r"router\.num_experts=1.*2 or more"):
        fit(
            tmp_path, "model.depth=8", "router=dense",
            PROBE,
        )  # fmt: skip
    with pytest.raises(ValueError, match="rows=0"):
        Trips(rows=0)


def over_trips(patterns: dict[str, np.ndarray], seeds: int = 10) -> pd.DataFrame:
    draw = rng()
    return pd.DataFrame(
        {
            "arm": arm, "seed": seed, "diverged": 0.0,
            **{
                f"routing/pass_{2 * t}/expert_0_weight": value
                for t, value in enumerate(0.5 + pattern + 0.02 * draw.normal(size=4))
            },
        }
        for arm, pattern in patterns.items()
        for seed in range(seeds)
    )  # fmt: skip


WALSH = Recurring(says="x", of=["a", "b", "c"], passes=[0, 2, 4, 6], smallest_effect=0.1)


def test_a_pattern_that_recurs_is_supported_and_no_other():
    still = np.zeros(4)
    patterns = {"a": 0.1 * np.array([1, -1, 1, -1]), "b": 0.1 * np.arange(4), "c": still}
    found = WALSH.judge(over_trips(patterns), rng())
    assert {name for name, one in found.items() if one.verdict == "supported"} == {
        "a: alternation", "b: step",
    }  # fmt: skip
    assert found["a: step"].verdict == "refuted"
    assert found["c: bump"].verdict in ("inconclusive", "refuted")
    assert found["a: alternation"].estimate == pytest.approx(2 / 3, abs=0.05)
    assert found["a: alternation"].n == 10


def test_two_runs_prove_no_pattern():
    table = over_trips({"a": np.array([0, 1, 0, 1])}, seeds=2)
    found = WALSH.within({"a", "d"}).judge(table, rng())
    assert {one.verdict for one in found.values()} == {"no verdict"}
    assert WALSH.within({"d"}) is None and WALSH.arms() == {"a", "b", "c"}


def configurations(slope: float, number: int = 32, diverged: int = 0) -> pd.DataFrame:
    draw = rng()
    rows = []
    for arm in range(number):
        success = draw.normal()
        for seed in range(3):
            lost = arm < diverged or (arm == diverged and seed == 0)
            share = np.nan if lost else slope * success + draw.normal(0, 0.5)
            rows.append([f"arm {arm}", seed, float(lost), 5.5 if lost else 3 - success, share])
    return pd.DataFrame(rows, columns=["arm", "seed", "diverged", "loss", "share"])


def correlation(number: int = 32) -> RiseTogether:
    """Arms in two blocks, turn by turn."""
    blocks = {
        name: [f"arm {k}" for k in range(start, number, 2)] for start, name in enumerate("ab")
    }
    given = {"measure": "share", "outcome": "loss", "smallest_effect": 0.3}
    return RiseTogether(says="x", blocks=blocks, sign=-1, **given)


@pytest.mark.parametrize(("slope", "verdict"), [(1, "supported"), (-1, "refuted")])
def test_what_goes_together_is_told_from_what_does_not(slope, verdict):
    (found,) = correlation().judge(configurations(slope), rng()).values()
    assert found.verdict == verdict and found.estimate * slope > 0.5 and found.n == 32


def test_configurations_that_diverged_are_counted_and_too_few_are_not_judged():
    (found,) = correlation().judge(configurations(1, diverged=2), rng()).values()
    assert found.n == 30 and "2 of 32" in found.note and found.verdict == "supported"
    (found,) = correlation().judge(configurations(1, diverged=3), rng()).values()
    assert found.verdict == "no verdict" and "29 configurations" in found.note


def test_what_sets_blocks_apart_is_no_correlation():
    """Both follow the block alone: rank correlation of all would be near 1, permuted freely."""
    table = configurations(0.0)
    of_b = table["arm"].isin(correlation().blocks["b"])
    table.loc[of_b, "share"] += 50
    table.loc[of_b, "loss"] -= 50
    (found,) = correlation().judge(table, rng()).values()
    assert abs(found.estimate) < 0.3 and found.verdict != "supported"
    assert "blocks mixed: 0.7" in found.note or "blocks mixed: 0.8" in found.note


def test_without_any_difference_nothing_is_said():
    table = configurations(1).assign(share=0.0)
    (found,) = correlation().judge(table, rng()).values()
    assert found.verdict == "inconclusive" and "same everywhere" in found.note
