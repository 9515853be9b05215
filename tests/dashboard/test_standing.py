"""What a sweep is worth, against definitions and chance."""

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from prismatic.dashboard.standing import (
    FIRST,
    compute_hypervolume,
    compute_reference,
    compute_worth,
)

SPACE = {"x": FloatDistribution(0.1, 100, log=True), "kind": CategoricalDistribution(("a", "b"))}


def study(rows, maximise, feasible=None, names=None):
    """A study with these values, a row a trial, and None for one that failed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = optuna.create_study(directions=["maximize" if up else "minimize" for up in maximise])
    objectives = list(names or (f"m{i}" for i in range(len(maximise))))
    made.set_user_attr("question", {"objectives": objectives, "params": {}})
    for i, values in enumerate(rows):
        ok = feasible is None or feasible[i]
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        params = {"x": 1.0 + i, "kind": "ab"[i % 2]}
        made.add_trial(
            create_trial(
                values=values, state=state, params=params, distributions=SPACE,
                constraints={"limit": -1.0 if ok else 1.0},
            )
        )  # fmt: skip
    return made


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


@settings(max_examples=20)
@given(data=st.data())
def test_more_trials_never_lower_the_hypervolume_and_the_front_has_all_of_it(data):
    """On a coarse grid, where ties and equals occur."""
    rows = data.draw(st.lists(st.tuples(*[st.integers(0, 3)] * 2), min_size=1, max_size=8))
    made = study(rows, [True, False], [data.draw(st.booleans()) for _ in rows])
    worth = [compute_worth(made, made.trials[: i + 1]) for i in range(len(rows))]
    known = [value for value in worth if not np.isnan(value)]
    assert known == sorted(known)
    front = made.best_trials if known else []
    np.testing.assert_allclose(compute_worth(made, front), worth[-1])


def test_scores_are_measured_from_0_and_others_from_their_worst_beginning():
    rows = [[0.5, 2.0], None, [0.7, 3.0], *[[0.6, 1.0]] * FIRST, [0.1, 9.0]]
    made = study(rows, [True, False], names=["objective/diversity", "loss/val"])
    np.testing.assert_array_equal(compute_reference(made), [0, 3])
    assert compute_reference(study([None], [False])) is None


def test_the_best_value_of_one_objective():
    made = study([[3], None, [2], [1], [2.5]], [False], [True, True, True, False, True])
    worth = [compute_worth(made, made.trials[: i + 1]) for i in range(5)]
    np.testing.assert_array_equal(worth, [3, 3, 2, 2, 2])
