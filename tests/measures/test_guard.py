"""Each alarm sounds for what it is named after, in time, and once."""

import logging
import math
import re
import shlex
from contextlib import suppress

import pytest
from hydra.utils import instantiate

from prismatic.measures import Guard, guard
from prismatic.replicas import run
from prismatic.report import compute_alarms, record
from prismatic.training import DivergedError

from ..tiny import CONF, composed

GOOD = {
    guard.LOSS: 2.0, guard.RISE: -1.0, guard.CONCENTRATION: 0.5, guard.LEAST_USED: 0.1,
    guard.CLOSEST: 0.1, guard.STRENGTH: 0.3, guard.SHARPEST: 0.4, guard.SPIKES: 0,
}  # fmt: skip
BAD = {
    "nan": (guard.LOSS, math.inf, 0),
    "divergence": (guard.RISE, 1.1, 20),
    "router_collapse": (guard.CONCENTRATION, 0.96, 50),
    "dead_view": (guard.LEAST_USED, 0.009, 50),
    "identical_views": (guard.CLOSEST, 0.0, 0),
    "near_identity": (guard.STRENGTH, 0.019, 0),
    "attention_collapse": (guard.SHARPEST, 0.04, 0),
    "gradient_spikes": (guard.SPIKES, 5, 0),
}
TABLE = (CONF / "guard" / "default.yaml").read_text()
SHORT = shlex.split(re.search(r"^# with (data.*)$", TABLE, re.MULTILINE)[1])
JOINED = re.sub(r"\n#       ", " ", TABLE)
RUNS = re.findall(r"^#   python src/train.py *(.*?)  +([\w ]+)$", JOINED, re.MULTILINE)


def names(alarms):
    return {alarm.name for alarm in alarms}


def test_a_sound_run_sets_off_nothing():
    assert Guard().see(0, GOOD) == []


@pytest.mark.parametrize("name", BAD)
def test_an_alarm_sounds_after_its_time_and_once(name):
    measure, value, patience = BAD[name]
    watch, bad = Guard(), GOOD | {measure: value}
    for step in range(0, patience, 10):
        assert watch.see(step, bad) == []
    [alarm] = watch.see(patience, bad)
    assert alarm.name == name and alarm.message and alarm.remedy
    assert watch.see(patience + 10, bad) == [], "once"
    assert watch.see(patience + 20, GOOD) == []
    again = [watch.see(patience + 30 + step, bad) for step in range(0, patience + 1, 10)]
    assert names(again[-1]) == {name}, "it was good in between"


@pytest.mark.parametrize("name", [name for name, (_, _, steps) in BAD.items() if steps])
def test_patience_starts_anew_after_a_good_look(name):
    measure, value, patience = BAD[name]
    watch = Guard()
    watch.see(0, GOOD | {measure: value})
    watch.see(patience - 1, GOOD)
    assert watch.see(patience, GOOD | {measure: value}) == []


def test_what_follows_from_divergence_is_not_named():
    everything = GOOD | {measure: value for measure, value, _ in BAD.values()}
    assert names(Guard().see(0, everything)) == {"nan"}
    watch = Guard(divergence_steps=0)
    assert names(watch.see(0, everything | {guard.LOSS: 3.0})) == {"divergence"}
    assert watch.see(100, {guard.SHARPEST: 0.0}) == []
    assert watch.see(110, {guard.LOSS: math.nan}) == []
    assert names(watch.see(120, {guard.RISE: 0.0, guard.SHARPEST: 0.0})) == {"attention_collapse"}


def test_what_was_not_measured_is_no_reason():
    assert Guard().see(0, {}) == []
    nothing = dict.fromkeys(set(GOOD) - {guard.LOSS}, math.nan)
    assert Guard(collapse_steps=0, unused_steps=0).see(0, nothing) == []


def test_a_resumed_guard_goes_on():
    collapsed = GOOD | {guard.CONCENTRATION: 1.0}
    first, second = Guard(), Guard()
    first.see(0, collapsed)
    second.restore(first.state())
    assert names(second.see(50, collapsed)) == {"router_collapse"}
    third = Guard()
    third.restore(second.state())
    assert third.see(60, collapsed) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("action", "shout"), ("collapse_weight", 1.5), ("spike_count", 0), ("collapse_steps", -1),
     ("spike_factor", 1.0), ("divergence_nats", 0.0), ("identity_norm", -0.1)],
)  # fmt: skip
def test_a_threshold_out_of_range_is_refused(key, value):
    with pytest.raises(ValueError, match=f"guard.{key}={value!r} is not valid"):
        Guard(**{key: value})


def test_the_table_names_every_alarm():
    described = set(re.findall(r"^# (\w+) {2,}[\w ]", TABLE, re.MULTILINE)) - {"alarm"}
    assert described == {rule.name for rule in Guard().rules()} == set(BAD)
    assert len(RUNS) >= 6
    assert instantiate(composed("guard.action=stop").guard) == Guard(action="stop")


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "alarms"), RUNS, ids=[command for command, _ in RUNS])
def test_a_run_sets_off_what_the_table_says_and_no_more(arguments, alarms, tmp_path, caplog):
    few = ["trainer.limit_val_batches=5", "trainer.accelerator=cpu", "logger=none"]
    quiet = ["~callbacks.progress", "~callbacks.checkpoint"]
    caplog.set_level(logging.WARNING, logger="prismatic")
    with suppress(DivergedError):  # whether divergence ends in NaN is a matter of the last bits
        run(composed(*SHORT, *few, *quiet, *shlex.split(arguments)), tmp_path)
    found = [alarm.name for alarm in compute_alarms(record.read(tmp_path / record.FILE))]
    expected = set() if alarms == "none" else set(alarms.split())
    assert set(found) == expected
    warned = " ".join(entry.message for entry in caplog.records)
    assert all(f"alarm {name} at step" in warned for name in expected)
