"""What is claimed of growth over layers, on tables whose law is known."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from prismatic.report.style import png
from prismatic.stats import paired_power
from prismatic.studies.protocols.amplification import (
    Amplified,
    Exponential,
    ExponentOverGain,
    Growth,
)

LAYERS = np.arange(8.0)


def rng() -> np.random.Generator:
    return np.random.default_rng(8)


def table(curves: dict, power: float = 1.0, seeds: int = 10) -> pd.DataFrame:
    """D by layer as given for a size of 1e-4, for each arm, and as a power of the size."""
    draw, rows = rng(), []
    for arm, curve_L in curves.items():
        for seed in range(seeds):
            row = {"arm": arm, "seed": seed, "diverged": 0.0, "amplification/init/exponent": 0.1}
            level = np.exp(0.3 * draw.normal())
            for size in ("1e-06", "0.0001"):
                noise_L = np.exp(0.02 * draw.normal(size=len(curve_L)))
                for layer, value in enumerate(level * curve_L * noise_L, 1):
                    less = 1e-2**power if size == "1e-06" else 1
                    row[f"amplification/init/all/{size}/layer_{layer}/tv"] = value * less
            rows.append(row)
    return pd.DataFrame(rows)


CURVES = {
    "pre, gain 1, xavier": 1e-4 + 0 * LAYERS,
    "post, gain 1, xavier": 1e-4 * np.exp(0.5 * LAYERS),
    "none, gain 1, xavier": 1e-4 * (1 + 6 * LAYERS),
}
ARMS = list(CURVES)
AMPLIFIED = Amplified(says="it grows", of=ARMS, state="init")


def judge(claim, runs):
    return {name: found.verdict for name, found in claim.judge(runs, rng()).items()}


def test_growth_is_judged_per_regime():
    found = AMPLIFIED.judge(table(CURVES), rng())
    assert [found[arm].verdict for arm in ARMS] == ["refuted", "supported", "supported"]
    assert found[ARMS[1]].estimate == pytest.approx(3.5, abs=0.05)
    assert found[ARMS[2]].estimate == pytest.approx(math.log(43), abs=0.05)
    assert found[ARMS[1]].level == pytest.approx(1 - 0.05 / 3)
    with pytest.raises(ValueError, match="layers measured"):
        judge(replace(AMPLIFIED, state="trained"), table(CURVES))


def test_a_change_that_is_not_small_gives_no_verdict():
    found = AMPLIFIED.judge(table(CURVES, power=0.8), rng())
    assert {one.verdict for one in found.values()} == {"inconclusive"}
    assert "gate" in found[ARMS[1]].note and "0.80" in found[ARMS[1]].note


def test_a_regime_that_diverged_has_no_state_and_keeps_its_place_in_the_family():
    runs = table(CURVES)
    lost = (runs["arm"] == ARMS[2]) & (runs["seed"] == 4)
    runs.loc[lost, "diverged"] = 1.0
    runs.loc[lost, [name for name in runs if "/" in str(name)]] = np.nan
    found = AMPLIFIED.judge(runs, rng())
    assert found[ARMS[2]].verdict == "inconclusive" and "1 of 10 runs" in found[ARMS[2]].note
    assert found[ARMS[1]].p == pytest.approx(3 * 2**-9)
    claim = Exponential(says="x", of={"none": [ARMS[2]], "post": [ARMS[1]]}, state="init")
    assert judge(claim, runs) == {"none": "inconclusive", "post": "supported"}


def test_a_hole_is_refused():
    runs = table(CURVES)
    runs.loc[3, "amplification/init/all/0.0001/layer_2/tv"] = np.nan
    found = AMPLIFIED.judge(runs, rng())[ARMS[0]]
    assert found.verdict == "no verdict" and "layer_2/tv" in found.note and "seed 3" in found.note


def test_a_tier_with_fewer_arms_asks_less():
    assert AMPLIFIED.within({ARMS[0], "other"}).arms() == {ARMS[0]}
    assert AMPLIFIED.within({"other"}) is None
    claim = Exponential(says="x", of={"a": ARMS[:2], "b": ARMS[2:]}, state="init")
    assert set(claim.within(set(ARMS[1:])).of) == {"b"} and claim.within(set()) is None


LAWS = {
    "constant": 1e-4 + 0 * LAYERS,
    "linear": 1e-4 * (1 + 4 * LAYERS),
    "power": 1e-4 * (1 + LAYERS) ** 2,
    "exponential": 1e-4 * np.exp(0.6 * LAYERS),
}


def test_only_an_exponential_is_called_one():
    claim = Exponential(says="x", of={law: [law] for law in LAWS}, state="init")
    found = claim.judge(table(LAWS), rng())
    assert {law: one.verdict for law, one in found.items()} == {
        "constant": "refuted", "linear": "refuted", "power": "refuted", "exponential": "supported",
    }  # fmt: skip
    assert "power" in found["power"].note
    assert found["exponential"].level == pytest.approx(1 - 0.05 / 16)


def test_it_must_be_exponential_with_every_depth():
    deep = np.exp(0.2 * np.arange(32.0)) * 1e-5
    both = {"deep": deep, "shallow": LAWS["exponential"], "bent": LAWS["power"]}
    claim = Exponential(
        says="x", of={"a": ["shallow", "deep"], "b": ["bent", "deep"]}, state="init"
    )
    assert judge(claim, table(both)) == {"a": "supported", "b": "refuted"}


def test_what_shrinks_exponentially_does_not_grow():
    runs = table({"falls": 1e-2 * np.exp(-0.4 * LAYERS)})
    found = Exponential(says="x", of={"falls": ["falls"]}, state="init").judge(runs, rng())["falls"]
    assert found.verdict == "refuted" and found.note == "weakest: growth, falls"
    assert found.estimate == pytest.approx(-0.4 * 7, abs=0.05)


def test_an_exponential_is_judged_of_small_changes_alone():
    """The gate is of the layers that count: a last layer that saturates is not small, either."""
    exponential = {"exponential": LAWS["exponential"]}
    claim = Exponential(says="x", of={"exponential": ["exponential"]}, state="init")
    found = claim.judge(table(exponential, power=0.8), rng())["exponential"]
    assert found.verdict == "inconclusive" and "0.80 in the last that counts" in found.note
    saturates = table({"exponential": 1e-3 * np.exp(0.9 * LAYERS)})
    last = "amplification/init/all/1e-06/layer_8/tv"
    saturates[last] = saturates["amplification/init/all/0.0001/layer_8/tv"]
    assert judge(claim, saturates) == {"exponential": "supported"}


def test_power_is_of_a_family_of_regimes():
    power = replace(AMPLIFIED, pilot_sd=0.3).power(10)
    assert power.effects == 3 and power.unit == "ln(D_L/D_1)"
    assert power.power == paired_power(10, 2 * math.log(2), 0.3, 0.05 / 3)


def test_saturated_points_do_not_count():
    """An exponential that is cut off at 0.5 is one below saturation."""
    cut = np.minimum(1e-3 * np.exp(0.9 * LAYERS), 0.5)
    claim = Exponential(says="x", of={"cut": ["cut"], "flat": ["flat"]}, state="init")
    found = claim.judge(table({"cut": cut, "flat": 0.4 + 0 * LAYERS}), rng())
    assert found["cut"].verdict == "supported"
    assert found["flat"].verdict == "inconclusive" and "0 layers below" in found["flat"].note


def test_two_seeds_give_no_verdict():
    runs = table(CURVES, seeds=2)
    assert set(judge(AMPLIFIED, runs).values()) == {"no verdict"}
    claim = Exponential(says="x", of={"a": ARMS[1:2]}, state="init")
    assert judge(claim, runs) == {"a": "no verdict"}


def test_pictures_are_drawn():
    runs = table(CURVES)
    arms = [*ARMS, "QK, gain 4, xavier"]
    growth = Growth(caption="c", heading="Growth", of=arms, state="init")
    figure = growth.draw(runs)
    left, right = figure.axes
    assert left.get_yscale() == right.get_yscale() == "log"
    assert (left.get_xscale(), right.get_xscale()) == ("linear", "log")
    drawn = {line.get_label(): line.get_ydata() for line in left.lines}
    assert drawn["post"][-1] / drawn["post"][0] == pytest.approx(math.exp(3.5), rel=0.05)
    assert len(png(figure)) > 10_000
    figure = ExponentOverGain(caption="c", panels={"xavier": ARMS}, states=["init"]).draw(runs)
    assert len(figure.axes) == 1 and len(png(figure)) > 5_000
    assert not replace(growth, of=arms[-1:]).draw(runs).axes
