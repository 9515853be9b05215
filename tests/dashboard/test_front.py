"""The front, its volume and its pictures, against definitions and other people's programs."""

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import create_trial

from prismatic.dashboard.front import (
    FIRST,
    Trials,
    compute_front,
    compute_history,
    compute_hypervolume,
    compute_outline,
    compute_reference,
    draw_front,
    draw_history,
    draw_parameters,
)
from prismatic.report.style import png

DRAWN = [draw_front, draw_history, draw_parameters]
NONE = float("nan")


def trials(values, maximise, feasible=True, names=None, params=None):
    """Trials with these rows of values, numbered from 0; names m0, m1, ... unless given."""
    values = np.array(values, dtype=float).reshape(-1, len(maximise))
    count = len(values)
    return Trials(
        objectives=tuple(names or (f"m{i}" for i in range(len(maximise)))),
        maximise_M=np.array(maximise),
        number_T=tuple(range(count)),
        values_TM=values,
        feasible_T=np.broadcast_to(feasible, count),
        params_T=tuple(params or ({"x": 1 + i, "kind": "ab"[i % 2]} for i in range(count))),
        logarithmic=frozenset({"x"}),
    )


@st.composite
def small(draw, objectives):
    """A few trials on a coarse grid, where ties and equals occur."""
    directions = draw(st.tuples(*[st.booleans()] * objectives))
    row = st.tuples(*[st.integers(0, 3)] * objectives)
    values = draw(st.lists(row, min_size=1, max_size=8))
    return trials(values, directions, [draw(st.booleans()) for _ in values])


@pytest.mark.parametrize("objectives", [1, 2, 3])
@settings(max_examples=30)
@given(data=st.data())
def test_the_front_is_optunas(objectives, data):
    found = data.draw(small(objectives))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        directions=["maximize" if up else "minimize" for up in found.maximise_M]
    )
    for values, ok in zip(found.values_TM, found.feasible_T, strict=True):
        limit = {"limit": -1.0 if ok else 1.0}
        study.add_trial(create_trial(values=list(values), constraints=limit))
    best = [trial.number for trial in study.best_trials] if found.feasible_T.any() else []
    assert sorted(compute_front(found)) == best
    first = found.values_TM[compute_front(found), 0]
    assert list(first) == sorted(first)


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_the_hypervolume_is_what_chance_finds(objectives):
    rng = np.random.default_rng(objectives)
    points, reference = rng.random((7, objectives)), np.full(objectives, 0.9)
    sample = rng.random((100_000, objectives)) * reference
    share = (sample[:, None] >= points).all(2).any(1).mean()
    error = 5 * np.sqrt(share * (1 - share) / len(sample))
    found = compute_hypervolume(points, reference) / reference.prod()
    assert found == pytest.approx(share, abs=error)


def test_hypervolumes_that_can_be_counted():
    reference = np.array([4.0, 4.0])
    assert compute_hypervolume(np.array([[1.0, 3.0], [3.0, 1.0]]), reference) == 3 + 3 - 1
    assert compute_hypervolume(np.array([[5.0, 0.0], [0.0, 4.0]]), reference) == 0
    assert compute_hypervolume(np.empty((0, 2)), reference) == 0


@settings(max_examples=30)
@given(data=st.data())
def test_more_trials_and_only_they_raise_the_hypervolume(data):
    found = data.draw(small(2))
    sooner = [
        compute_history(
            trials(found.values_TM[: i + 1], found.maximise_M, found.feasible_T[: i + 1])
        )[-1]
        for i in range(len(found.number_T))
    ]
    known = [value for value in sooner if not np.isnan(value)]
    assert known == sorted(known)
    reference = compute_reference(found)
    kept = (found.values_TM * found.sign_M)[compute_front(found)]
    whole = compute_hypervolume(kept, reference * found.sign_M) if len(kept) else NONE
    np.testing.assert_allclose(compute_history(found)[-1], whole)


def test_scores_are_measured_from_0_and_others_from_their_worst_beginning():
    names = ["objective/diversity", "loss/val"]
    values = [[0.5, 2.0], [NONE, NONE], [0.7, 3.0], *[[0.6, 1.0]] * FIRST, [0.1, 9.0]]
    found = trials(values, [True, False], names=names)
    np.testing.assert_array_equal(compute_reference(found), [0, 3])
    assert compute_reference(trials([[NONE]], [False])) is None


def test_the_best_value_of_one_objective():
    found = trials([[3], [NONE], [2], [1], [2.5]], [False], [True, True, True, False, True])
    np.testing.assert_array_equal(compute_history(found), [3, 3, 2, 2, 2])
    assert compute_front(found) == [2]


@pytest.mark.parametrize("maximise", [(False, False), (True, True), (True, False)])
def test_the_outline_encloses_the_hypervolume(maximise):
    rng = np.random.default_rng(0)
    found = trials(rng.random((12, 2)), maximise)
    x, y = compute_outline(found, compute_front(found)).T
    area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
    assert area == pytest.approx(compute_history(found)[-1])


@pytest.mark.parametrize("draw", DRAWN)
@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_pictures_of_every_sweep(draw, objectives):
    rng = np.random.default_rng(1)
    values = rng.random((9, objectives))
    values[4] = NONE
    found = trials(values, [True] * objectives, [True, False, True] * 3)
    assert png(draw(found)).startswith(b"\x89PNG")


@pytest.mark.parametrize("draw", DRAWN)
@pytest.mark.parametrize("values", [[], [[NONE, NONE]]])
def test_pictures_without_a_result_say_so(draw, values):
    figure = draw(trials(values, [True, False]))
    assert not figure.axes and "no trial is complete" in figure.texts[0].get_text()


def test_the_picture_shows_every_trial_and_names_the_front():
    found = trials([[1, 1], [2, 2], [3, 0], [9, 9]], [True, True], [True, True, True, False])
    axes = draw_front(found).axes[0]
    assert {text.get_text() for text in axes.texts} == {"1", "2"}
    cloud, infeasible, front = (c.get_offsets() for c in axes.collections if len(c.get_offsets()))
    assert (len(cloud), len(infeasible), len(front)) == (1, 1, 2)
    assert "more is better" in axes.get_xlabel()


def test_the_picture_holds_every_trial_whatever_the_reference():
    values = [[0.1, 0], [0.001, 0], [0.002, 0], [0.003, 0]]
    found = trials(values, [True, True], names=["objective/a", "objective/b"])
    low, high = draw_front(found).axes[0].get_xlim()
    assert low < 0.001 and high > 0.1
    far = trials([[5, 5], [6, 6], [1000, 1000]], [False, False], [True, True, False])
    assert draw_front(far).axes[0].get_xlim()[1] > 1000


def test_parameters_are_axes_of_their_own():
    params = [{"scale": 0.1, "focal": "none"}, {"scale": 1.0, "focal": "radial"}]
    figure = draw_parameters(trials([[1], [2]], [False], params=params))
    assert [axes.get_xlabel() for axes in figure.axes] == ["scale", "focal"]
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["none", "radial"]
