"""The Optuna sweeper, on a tiny Hydra app: what is asked, told, kept, resumed, refused."""

import importlib.util
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import yaml
from hydra.errors import HydraException
from optuna.distributions import CategoricalDistribution as Choice
from optuna.distributions import FloatDistribution as Float
from optuna.distributions import IntDistribution as Int
from optuna.trial import TrialState

from hydra_plugins.prismatic_optuna import _owner, _search, _space
from hydra_plugins.prismatic_optuna._storage import open_storage
from hydra_plugins.prismatic_optuna.callback import Callback
from hydra_plugins.prismatic_optuna.sweeper import refuse_ranks

from . import processes
from .toys import BASE, Batched, Stepwise, Sweep

SOURCES = Path(__file__).parents[2] / "src"
TWO = {"direction": ["maximize", "minimize"], "objectives": ["gain", "cost"]}
MAPPED = {"direction": "minimize", "objectives": ["loss"]}
Two = partial(Stepwise, n_jobs=2)


@pytest.fixture
def sweep(tmp_path):
    return Sweep(tmp_path)


def square(params, folder):
    return (params["x"] - 0.3) ** 2


def pair(params, folder):
    return {"gain": params["x"], "cost": params["x"] ** 2 + params["y"], "extra": 1.0}


def states(study):
    return [trial.state.name for trial in study.trials]


def reasons(study):
    return [trial.user_attrs.get("reason") for trial in study.trials]


def progress(folder, step, **values):
    with (folder / "progress.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "values": values}) + "\n")


class Lost(RuntimeError):
    """What a launcher returns for a job whose process died."""

    lost = True


# -- what is searched ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("interval(0.01, 1)", Float(0.01, 1)),
        ("interval(1, 10)", Float(1, 10)),
        ("tag(log, interval(0.01, 1))", Float(0.01, 1, log=True)),
        ("tag(int, interval(1, 8))", Int(1, 8)),
        ("tag(log, int, interval(1, 64))", Int(1, 64, log=True)),
        ("range(1, 10)", Int(1, 10)),
        ("range(3)", Int(0, 3)),
        ("range(0, 10, 4)", Int(0, 8, step=4)),
        ("range(0.0, 0.5, 0.2)", Float(0, 0.4, step=0.2)),
        ("choice(2, 2.5, true)", Choice([2, 2.5, True])),
        ("int(interval(1, 5))", Int(1, 5)),
        ("tag(log, int(interval(1, 64)))", Int(1, 64, log=True)),
        ("float(range(1, 4))", Float(1, 4, step=1)),
        ("tag(log, range(1, 8))", Int(1, 8, log=True)),
        ("shuffle(range(1, 4))", Choice([1, 2, 3])),
        ("range(8, 2, -2)", Choice([8, 6, 4])),
        ("1,null", Choice([1, None])),
        ("choice(a, 'b c')", Choice(["a", r"b\ c"])),
        ("choice([1,2],[3])", Choice(["[1,2]", "[3]"])),
        ("a,b", Choice(["a", "b"])),
        ("shuffle(a,b)", Choice(["a", "b"])),
    ],
)
def test_the_grammar_is_upstreams(written, expected):
    space = _space.Space.parse({"x": written}, [], loader=None)
    assert space.params == {"x": expected}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("interval(1, 0.1)", "reversed"),
        ("range(9, 1)", "reversed"),
        ("tag(log, interval(0, 1))", "logarithmic"),
        ("tag(lgo, interval(1, 2))", "unknown tag lgo; valid: log, int"),
        ("tag(int, interval(0.5, 2))", "whole numbers"),
        ("tag(log, range(1, 9, 2))", "step"),
        ("tag(log, choice(1, 2))", "no tag"),
        ("interval(0.1", "cannot read"),
        ("choice(1, true)", "True is there twice"),
        ([1, 2], "write it as a text"),
    ],
)
def test_a_space_without_sense_is_refused(written, message):
    with pytest.raises(ValueError, match=message) as error:
        _space.Space.parse({"some.key": written}, [], loader=None)
    assert "some.key" in str(error.value)


def test_params_and_the_command_line_meet(sweep):
    arguments = ["y=interval(0,1)", "n=3", "+extra=range(1,2)", "model=large"]
    params = {"x": "interval(0,1)", "y": 0.25, "n": "range(1,9)", "name": "a", "model": "small"}
    study = sweep.run(square, arguments, n_trials=2, params=params)
    assert set(study.trials[0].params) == {"x", "y", "+extra"}
    x, y, extra = (study.trials[0].params[key] for key in ("x", "y", "+extra"))
    overrides = ["name=a", "n=3", "model=large", f"x={x}", f"y={y}", f"+extra={extra}"]
    assert sweep.launcher.overrides[0] == overrides


def test_numbers_and_nothing_may_stand_in_params(sweep):
    params = {"x": "interval(0,1)", "y": 0.25, "n": 2, "name": None}
    sweep.run(square, [], n_trials=1, params=params)
    assert sweep.launcher.overrides[0][:3] == ["y=0.25", "n=2", "name=null"]


def test_a_choice_is_searched_and_passed_on_as_it_was_written(sweep):
    seen = []

    def job(params, folder):
        seen.append((params["model"], params["name"]))
        return len(seen)

    arguments = ["model=choice(small,large)", "name='a b',c"]
    sweep.run(job, arguments, sampler="grid")
    assert seen == [("small", "a b"), ("small", "c"), ("large", "a b"), ("large", "c")]


@pytest.mark.parametrize("arguments", [["x=interval(0,1)", "model=small,huge"], ["z=1,2"]])
def test_what_cannot_be_composed_is_refused_before_any_trial(sweep, arguments):
    with pytest.raises(Exception, match=r"huge|'z'"):
        sweep.run(square, arguments)
    assert not (sweep.dir / "study.journal").exists()


# -- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "tpa"}, "sampler='tpa'.*tpe, gp, nsgaii, nsgaiii, random, qmc, cmaes, grid"),
        ({"sampler_options": {"startup": 1}}, "tpe takes no 'startup'.*n_startup_trials"),
        ({"sampler": "grid"}, r"x=interval.*sampler=grid needs values one by one.*tpe"),
        ({"direction": "up"}, "direction='up': give minimize or maximize"),
        ({"direction": []}, "direction"),
        ({"direction": ["minimize"] * 2, "objectives": ["a"]}, "1 names.*give one for each"),
        ({"direction": ["minimize"] * 2, "objectives": ["a", "a"]}, "once"),
        ({"sampler": {"seed": 1}}, "sampler={'seed': 1}: a node needs a _target_"),
        ({"storage": {"url": "x"}}, "storage={'url': 'x'}: a node needs a _target_"),
        ({"sampler": "grid", "enqueue": [{"x": 1}]}, "enqueue: sampler=grid tries every"),
        ({"n_trials": None}, "n_trials=null: only sampler=grid"),
        ({"n_trials": 0}, "n_trials=0"),
        ({"n_jobs": "two"}, "n_jobs='two'"),
        ({"max_retries": -1}, "max_retries=-1"),
        ({"max_failure_rate": 2}, "max_failure_rate=2.0"),
        ({"storage": "study.db"}, "storage='study.db'.*journal:///path"),
        ({"storage": "nosql://host/study"}, "storage='nosql://host/study': give null, journal"),
        (
            {"storage": "postgresql+pg8000://me:word@host/s"},
            r"//me:\*\*\*@host/s: python has no.*pip",
        ),
        ({"shared": True}, "shared=true.*postgresql"),
        ({"enqueue": [{"z": 1}]}, "'z' is not searched; valid: x, y"),
        ({"compare_to": {"z": 1}}, "compare_to: 'z' is not searched; valid: x, y"),
        ({"compare_to": "x"}, "give values of the search as a mapping"),
        ({"retry": "all"}, "retry='all': give failed or null"),
        ({"enqueue": [{"x": 2}]}, "x=2 is outside"),
        ({"pruning": "medium"}, "pruning='medium'"),
        ({"pruning": "median"}, "objectives"),
        ({"pruning": {"rule": "median", "wait": 1}, "objectives": ["a"]}, "wait"),
        ({"pruning": {"rule": "dominated", "share": 0}, **TWO}, "share=0"),
        ({"pruning": {"rule": "dominated", "wait": 0}, **TWO}, "wait"),
        ({"pruning": "median", **TWO}, "one objective"),
        ({"sampler": "cmaes", **TWO}, "cmaes"),
    ],
)
def test_a_bad_option_is_named(sweep, options, message):
    with pytest.raises(ValueError, match=message):
        sweep.run(square, **options)


def test_an_empty_space_is_refused(sweep):
    with pytest.raises(ValueError, match="nothing to search"):
        sweep.run(square, ["n=2"])


def test_one_folder_for_all_trials_is_refused(sweep):
    with pytest.raises(ValueError, match=r"must contain \$\{hydra.job.num\}"):
        sweep.run(square, [*BASE, "hydra.sweep.subdir=here"])


def test_ranks_above_0_do_not_sweep(monkeypatch):
    refuse_ranks()
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(HydraException, match="LOCAL_RANK=1"):
        refuse_ranks()


def test_parallelism_is_the_launchers(sweep):
    for arguments, n_jobs in (([], 1), (["+hydra.launcher.n_jobs=3"], 3)):
        assert sweep.composed(arguments)[1].hydra.sweeper.n_jobs == n_jobs


# -- samplers and storages -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("tpe", {"n_startup_trials": 2}),
        ("gp", {"n_startup_trials": 2}),
        ("nsgaii", {"population_size": 2}),
        ("nsgaiii", {"population_size": 2}),
        ("random", {}),
        ("qmc", {}),
        ({"_target_": "optuna.samplers.RandomSampler", "seed": 1}, {}),
    ],
    ids=str,
)
def test_every_sampler_searches(sweep, sampler, options):
    arguments = ["x=interval(0,1)", "n=range(1,3)", "model=small,large"]
    options = {"sampler": sampler, "sampler_options": options, "seed": 0}
    study = sweep.run(square, arguments, n_trials=4, **options)
    assert states(study) == ["COMPLETE"] * 4
    assert len({trial.params["x"] for trial in study.trials}) > 1


def test_cmaes_searches_or_says_what_it_needs(sweep):
    if importlib.util.find_spec("cmaes"):
        assert len(sweep.run(square, sampler="cmaes", n_trials=4, seed=0).trials) == 4
    else:
        with pytest.raises(ValueError, match="pip install cmaes"):
            sweep.run(square, sampler="cmaes")


def test_a_grid_is_asked_once_through_and_no_further(sweep):
    """Its values are those of Hydra's own grids, in their order: a range is without its end."""
    arguments = ["x=choice(0.1,0.2)", "n=range(1,4)"]
    expected = [(x, n) for x in (0.1, 0.2) for n in (1, 2, 3)]
    for total, count in ((4, 4), (100, 6), (None, 6)):
        study = sweep.run(square, arguments, launcher=Two, sampler="grid", n_trials=total)
        points = [(trial.params["x"], trial.params["n"]) for trial in study.trials]
        assert points == expected[:count]
        assert states(study) == ["COMPLETE"] * count


def test_a_grid_that_was_interrupted_goes_on_without_repeating_a_run(sweep):
    ran = []

    def job(params, folder):
        ran.append((params["x"], params["n"]))
        if folder.name == "2" and len(ran) == 3:
            raise KeyboardInterrupt
        return 1.0

    arguments = ["x=1,null,3", "n=1,2"]
    with pytest.raises(SystemExit):
        sweep.run(job, arguments, sampler="grid", n_trials=None)
    study = sweep.run(job, arguments, sampler="grid", n_trials=None)
    assert sorted(ran, key=str) == sorted([*points_of(study, "COMPLETE"), ran[2]], key=str)
    assert len(points_of(study, "COMPLETE")) == 6
    assert states(study).count("FAIL") == 1


def points_of(study, state):
    return [(t.params["x"], t.params["n"]) for t in study.trials if t.state.name == state]


@pytest.mark.parametrize("sampler", ["tpe", "nsgaii"])
def test_a_seed_makes_the_search_reproducible(tmp_path, sampler):
    runs = []
    for name in ("a", "b"):
        study = Sweep(tmp_path / name).run(square, n_trials=12, seed=3, sampler=sampler)
        runs.append([trial.params for trial in study.trials])
    assert runs[0] == runs[1]


def test_a_resumed_search_does_not_repeat_itself(sweep):
    sweep.run(square, n_trials=3, seed=3, sampler="random")
    study = sweep.run(square, n_trials=6, seed=3, sampler="random")
    assert len({trial.params["x"] for trial in study.trials}) == 6


def test_storages_are_given_by_address_or_node(sweep, tmp_path):
    journal = f"journal://{tmp_path}/deep/er/a.journal"
    sqlite = f"sqlite:///{tmp_path}/new/b.db"
    node = {"_target_": "optuna.storages.RDBStorage", "url": f"sqlite:///{tmp_path}/c.db"}
    for name, storage in {"a": journal, "b": sqlite, "c": node}.items():
        arguments = [*BASE, f"hydra.sweep.dir={tmp_path}/{name}"]
        for total in (1, 2):
            sweep.run(square, arguments, storage=storage, study_name="s", n_trials=total)
    for name in ("new/b.db", "c.db"):
        study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/{name}")
        assert states(study) == ["COMPLETE"] * 2
    assert (tmp_path / "deep" / "er" / "a.journal").exists()


NAMES = ["r%41", "a b", "q?x", "h#x", "{x}", "{SCHEMA_VERSION}", "a@b:c", "&+;,'", "100%", "ä"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("address", ["sqlite:///{}/s.db", "journal://{}/s.db", None])
def test_a_folder_may_be_called_anything(tmp_path, name, address):
    folder = tmp_path / name
    given = address and address.replace("{}", str(folder))
    for _ in range(2):
        storage = open_storage(given, folder)
        study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True)
        study.tell(study.ask(), 1.0)
    assert len(study.trials) == 2
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (folder / ("s.db" if address else "study.journal")).is_file()


def test_a_line_that_a_killed_writer_left_is_dropped(sweep):
    sweep.run(square, n_trials=2)
    with (sweep.dir / "study.journal").open("a") as file:
        file.write('{"op_code": 8, "torn')
    assert states(sweep.run(square, n_trials=4)) == ["COMPLETE"] * 4


# -- results ---------------------------------------------------------------------------------


def test_one_objective_and_its_report(sweep):
    study = sweep.run(square, n_trials=3)
    found = yaml.safe_load((sweep.dir / "optimization_results.yaml").read_text())
    assert found["name"] == "optuna"
    assert found["best_value"] == study.best_value
    assert found["best_params"] == study.best_params
    assert found["trials"]["complete"] == 3
    assert (sweep.dir / "multirun.yaml").exists()


def test_several_objectives_and_their_front(sweep):
    study = sweep.run(pair, n_trials=6, **TWO)
    assert study.metric_names == ["gain", "cost"]
    assert study.trials[0].values == [
        study.trials[0].params["x"],
        study.trials[0].params["x"] ** 2 + study.trials[0].params["y"],
    ]
    found = yaml.safe_load((sweep.dir / "optimization_results.yaml").read_text())
    front = [[trial.number] for trial in study.best_trials]
    assert sorted(one["trials"] for one in found["solutions"]) == front
    assert study.trials[0].user_attrs["metrics"].keys() == {"gain", "cost", "extra"}


@pytest.mark.parametrize(
    ("value", "options", "values"),
    [
        (2, {}, [2.0]),
        ([2.0], {}, [2.0]),
        ({"loss": 2.0}, {}, [2.0]),
        ({"loss": 2.0, "other": 3.0}, MAPPED, [2.0]),
        ({"cost": 1, "gain": 2}, TWO, [2.0, 1.0]),
        ([1, 2], TWO, [1.0, 2.0]),
    ],
)
def test_a_job_returns_a_number_a_list_or_a_mapping(sweep, value, options, values):
    study = sweep.run(lambda params, folder: value, n_trials=1, **options)
    assert study.trials[0].values == values


@pytest.mark.parametrize(
    ("value", "options", "reason"),
    [
        (math.nan, {}, "the value is nan"),
        (-math.inf, {}, "the value is -inf"),
        (None, {}, "returned None"),
        ("good", {}, "returned 'good'"),
        ([1, 2], {}, "2 values for 1"),
        ({"a": 1, "b": 2}, {}, "name the metrics"),
        ({"other": 1}, MAPPED, "no 'loss'; there are other"),
        ({"loss": "low"}, MAPPED, "loss is 'low'"),
        ({"gain": 1, "cost": math.nan}, TWO, "cost is nan"),
        (1.0, {**MAPPED, "constraints": {"size": 1}}, "constraints need a mapping"),
        ({"loss": 1}, {**MAPPED, "constraints": {"size": 1}}, "no 'size'"),
        (RuntimeError("out of memory"), {}, "RuntimeError: out of memory"),
    ],
)
def test_a_bad_result_fails_alone_with_its_reason(sweep, value, options, reason):
    def job(params, folder):
        if folder.name == "1" and isinstance(value, Exception):
            raise value
        return value if folder.name == "1" else good

    good = {"loss": 1.0, "size": 0, "gain": 1, "cost": 1} if options else 1.0
    study = sweep.run(job, n_trials=3, **options)
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert reason in study.trials[1].user_attrs["reason"]


def test_constraints_are_upper_bounds(sweep):
    study = sweep.run(pair, n_trials=12, seed=0, constraints={"cost": 0.5}, **TWO)
    for trial in study.trials:
        assert trial.constraints == {"cost": pytest.approx(trial.values[1] - 0.5)}
    assert study.best_trials and all(trial.values[1] <= 0.5 for trial in study.best_trials)


def test_too_many_failures_end_the_sweep_with_their_reasons(sweep):
    def job(params, folder):
        raise RuntimeError(f"trial {folder.name} failed, its log:\nOSError: no such file")

    with pytest.raises(HydraException, match=r"6 of 6 trials failed.*\n.*6 x OSError: no such"):
        sweep.run(job, n_trials=50)
    assert states(sweep.study()) == ["FAIL"] * 6
    sweep.run(square, n_trials=8)
    assert states(sweep.study()) == ["FAIL"] * 6 + ["COMPLETE"] * 2


def test_all_may_fail_where_the_user_says_so(sweep):
    study = sweep.run(lambda params, folder: math.nan, n_trials=12, max_failure_rate=1)
    assert states(study) == ["FAIL"] * 12


def test_in_a_finite_space_no_point_runs_twice_and_the_search_ends_with_it(sweep, caplog):
    caplog.set_level(logging.INFO)
    ran = []

    def job(params, folder):
        ran.append((params["n"], params["x"]))
        return {"loss": params["n"] + params["x"], "other": 7.0}

    arguments = ["n=int(interval(1,3))", "x=choice(0.5,0.25)"]
    options = {"sampler_options": {"n_startup_trials": 2}, "seed": 0, **MAPPED}
    study = sweep.run(job, arguments, n_trials=60, constraints={"other": 9}, **options)
    assert sorted(ran) == [(n, x) for n in (1, 2, 3) for x in (0.25, 0.5)]
    assert len(study.trials) < 60 and study.user_attrs["total"] == len(study.trials)
    again = [trial for trial in study.trials if "reused" in trial.user_attrs]
    assert again, "TPE asks for a good point again and again"
    for trial in again:
        first = study.trials[trial.user_attrs["reused"]]
        assert (trial.params, trial.values) == (first.params, first.values)
        assert trial.user_attrs["folder"] == str(first.number) and trial.constraints
    assert "all 6 points of the space have a result" in caplog.text
    assert "goes on" not in caplog.messages[-1]


def test_where_results_vary_a_point_may_run_again(sweep):
    study = sweep.run(square, ["x=0.5,1.5"], n_trials=8, seed=0, repeat=True)
    assert len(sweep.launcher.overrides) == len(study.trials) == 8


def test_a_trial_of_a_long_study_is_no_more_work_than_one_of_a_short_study(tmp_path, monkeypatch):
    """What a sweep does from one trial to the next: the trials that it looks at or copies."""
    looked_at = []
    is_finished, get_trials = TrialState.is_finished, optuna.Study.get_trials

    def look(state):
        looked_at.append(state)
        return is_finished(state)

    def copy(study, deepcopy=True, states=None):
        found = get_trials(study, deepcopy, states)
        looked_at.extend(found if deepcopy else ())
        return found

    monkeypatch.setattr(TrialState, "is_finished", look)
    monkeypatch.setattr(optuna.Study, "get_trials", copy)
    # Results are written as often as that leaves time for trials: here not before the end.
    monkeypatch.setattr(_search, "time", SimpleNamespace(monotonic=lambda: 0.0))

    def work(length):
        sweep, begun = Sweep(tmp_path / str(length)), []

        def job(params, folder):
            begun.append(len(looked_at))
            return params["x"]

        study = sweep.run(job, n_trials=1, sampler="random")
        study.add_trials(study.trials * length)
        sweep.run(job, n_trials=length + 5, sampler="random")
        return begun[-1] - begun[-3]

    assert work(20) == work(2) > 0


def test_the_best_of_a_grid_over_seeds_is_the_best_mean(sweep):
    """Not that with the luckiest seed, nor that which is better where it did not fail."""

    def job(params, folder):
        if params["x"] == 0.5 and params["seed"] > 0:
            raise ValueError("no luck")
        return params["x"] + params["seed"] / 100 - 1.9 * (params["x"] == 2 and params["seed"] == 1)

    study = sweep.run(job, ["x=1,2,.5", "+seed=0,1,2"], sampler="grid", n_trials=None)
    found = yaml.safe_load((sweep.dir / "optimization_results.yaml").read_text())
    assert study.best_trial.params["x"] == 2
    assert (found["best_params"], found["best_trials"]) == ({"x": 1}, [0, 1, 2])
    assert found["best_value"] == pytest.approx(1.01)


def test_a_search_takes_no_seed_for_a_parameter(sweep):
    with pytest.raises(ValueError, match=r"seed varies: .*'seeds=\[0,1,2\]'.*sampler=grid"):
        sweep.run(square, [*BASE, "+seed=0,1"])
    assert not sweep.dir.exists()


def test_failed_trials_alone_run_again_where_that_is_asked(sweep):
    mended = []

    def job(params, folder):
        if params["x"] == 2 and not mended:
            raise ValueError("no luck")
        return params["x"]

    grid = {"sampler": "grid", "n_trials": None}
    study = sweep.run(job, ["x=1,2,3"], **grid)
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE"]
    mended.append(True)
    assert len(sweep.run(job, ["x=1,2,3"], **grid).trials) == 3
    for _ in range(2):  # the second has nothing to do
        study = sweep.run(job, ["x=1,2,3"], retry="failed", **grid)
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert (study.trials[3].params, study.trials[3].user_attrs["retry_of"]) == ({"x": 2}, 1)
    found = yaml.safe_load((sweep.dir / "optimization_results.yaml").read_text())["trials"]
    assert (found["complete"], found["failed"], found["retried"]) == (3, 0, 1)


# -- one study, several sweeps ---------------------------------------------------------------


def test_baselines_are_asked_first_and_once(sweep):
    enqueue = [{"x": 1, "y": 0.5}, {"x": 0.25}]
    sweep.run(square, n_trials=3, enqueue=enqueue)
    study = sweep.run(square, n_trials=5, enqueue=enqueue)
    assert [trial.params["x"] for trial in study.trials[:2]] == [1.0, 0.25]
    assert [trial.params["x"] for trial in study.trials].count(0.25) == 1


def test_n_trials_is_the_total(sweep):
    for total in (2, 5, 5, 3):
        sweep.run(square, n_trials=total)
    assert [trial.number for trial in sweep.study().trials] == list(range(5))
    assert sweep.launcher.log == []


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["x=interval(0,2)", BASE[1]], MAPPED, r"x was Float\(.*high=1.0.*is Float\(.*high=2.0"),
        ([BASE[0]], MAPPED, "y was Float.* is absent"),
        (BASE, {"objectives": ["other"]}, r'objectives: was \["loss"\], is \["other"\]'),
        (BASE, {**MAPPED, "direction": "maximize"}, "directions: was"),
        (BASE, {**MAPPED, "constraints": {"loss": 1}}, "constraints: loss was absent, is 1"),
    ],
)
def test_another_question_is_another_study(sweep, arguments, options, message):
    def job(params, folder):
        return {"loss": 1.0}

    sweep.run(job, n_trials=1, **MAPPED)
    with pytest.raises(ValueError, match=message) as error:
        sweep.run(job, arguments, n_trials=2, **options)
    assert "study_name" in str(error.value)
    assert len(sweep.study().trials) == 1


def test_a_study_of_another_program_is_refused(sweep):
    sweep.dir.mkdir()
    optuna.create_study(study_name="sweep", storage=sweep.storage()).ask()
    with pytest.raises(ValueError, match="another program"):
        sweep.run(square)


def test_changed_overrides_are_mentioned(sweep, caplog):
    sweep.run(square, [*BASE, "n=1"], n_trials=1)
    sweep.run(square, [*BASE, "n=2"], n_trials=2)
    assert "without ['n=1'], with ['n=2']" in caplog.text


def test_a_trial_lost_with_its_process_is_asked_again_twice(sweep):
    def job(params, folder):
        return square(params, folder) if params["x"] != 0.75 else Lost("killed")

    study = sweep.run(lambda *a: raising(job(*a)), n_trials=3, enqueue=[{"x": 0.75}])
    lost = [trial for trial in study.trials if trial.params["x"] == 0.75]
    assert [trial.user_attrs.get("retry_of") for trial in lost] == [None, 0, lost[1].number]
    assert [trial.user_attrs["again"] for trial in lost] == ["lost", "lost", None]
    assert len({trial.params["y"] for trial in lost}) == 1
    assert sorted(states(study)) == ["COMPLETE"] * 2 + ["FAIL"] * 3
    found = yaml.safe_load((sweep.dir / "optimization_results.yaml").read_text())
    assert (found["trials"]["failed"], found["trials"]["lost"]) == (1, 2)


def test_a_trial_that_was_lost_finds_what_it_left_and_one_that_failed_does_not(sweep):
    found = {}

    def job(params, folder):
        found.setdefault(params["x"], []).append((folder / "last.ckpt").exists())
        (folder / "last.ckpt").touch()
        if params["x"] == 0.75 and len(found[0.75]) == 1:
            return Lost("killed")
        return square(params, folder) if params["x"] != 0.25 else ValueError("no")

    points = [{"x": 0.75}, {"x": 0.25}]
    sweep.run(lambda *a: raising(job(*a)), n_trials=3, enqueue=points)
    sweep.run(lambda *a: raising(job(*a)), n_trials=3, enqueue=points, retry="failed")
    assert found[0.75] == [False, True] and found[0.25] == [False, False]


def raising(value):
    if isinstance(value, Exception):
        raise value
    return value


def left_running(sweep, owner, params=(0.125, 0.5)):
    """A trial that a sweep left running, of a study that has one finished trial."""
    study = sweep.run(square, n_trials=1)
    study.enqueue_trial(dict(zip("xy", params, strict=True)))
    trial = study.ask({"x": Float(0, 1), "y": Float(0, 1)})
    if owner:
        trial.set_user_attr("owner", owner)
    return trial.number


def test_what_a_dead_sweep_left_running_is_asked_again(sweep):
    host, pid, start = _owner.identity().rsplit(":", 2)
    number = left_running(sweep, f"{host}:{pid}:{int(start) - 1}")
    study = sweep.run(square, n_trials=3)
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert "died" in study.trials[number].user_attrs["reason"]
    assert study.trials[2].params == study.trials[1].params


def test_a_death_between_asking_and_signing_is_found_too(sweep):
    left_running(sweep, None)
    assert states(sweep.run(square, n_trials=2)) == ["COMPLETE", "FAIL", "COMPLETE"]


@pytest.mark.parametrize("host", ["elsewhere", f"{_owner.host()}0"])  # a container of this name
def test_an_owner_on_another_host_is_known_by_its_beat(sweep, host):
    study = sweep.run(square, n_trials=1)
    owner = _owner.identity().replace(_owner.host(), host)
    for beat, living in ((time.time(), True), (time.time() - 1000, False)):
        study.set_user_attr(f"owner:{owner}", {"since": 0, "beat": beat})
        assert _owner.lives(owner, study) == living


def neighbour():
    """A process of this host that lives, as an owner."""
    host, pid = _owner.identity().split(":")[0], os.getppid()
    return f"{host}:{pid}:{_owner.started(pid)}"


def test_two_sweeps_on_one_study(sweep):
    study = sweep.run(square, n_trials=1)
    claim = {"since": 0, "beat": time.time()}
    study.set_user_attr(f"owner:{neighbour()}0", claim)  # the process number, not the start
    assert len(sweep.run(square, n_trials=2).trials) == 2
    study.set_user_attr(f"owner:{neighbour()}", claim)
    with pytest.raises(HydraException, match=f"being run by {neighbour()}") as error:
        sweep.run(square, n_trials=3)
    assert "study_name" in str(error.value)
    assert len(sweep.study().trials) == 2


def test_of_two_sweeps_at_once_not_both_go_on(sweep, monkeypatch):
    """The other one claims at the same time, looks again, and finds this one."""
    study = sweep.run(square, n_trials=1)
    monkeypatch.setattr(_owner.random, "uniform", lambda low, high: 0.01)
    looks = []

    def rivals(claim):
        looks.append(claim.name)
        return [("other", claim.since)] if len(looks) == 1 else []

    monkeypatch.setattr(_owner.Ownership, "_rivals", rivals)
    with _owner.Ownership(study, shared=False) as claim:
        assert study.user_attrs[f"owner:{claim.name}"]
    assert len(looks) == 2
    assert study.user_attrs[f"owner:{claim.name}"] is None


def test_an_interrupted_sweep_tells_how_to_go_on(sweep, caplog):
    caplog.set_level(logging.INFO)

    def job(params, folder):
        if folder.name == "1":
            raise KeyboardInterrupt
        yield
        return 1.0

    with pytest.raises(SystemExit) as end:
        sweep.run(job, launcher=Two, n_trials=4)
    assert end.value.code == 130
    study = sweep.study()
    assert states(study)[:2] == ["FAIL", "FAIL"]
    assert reasons(study)[:2] == ["interrupted"] * 2
    assert "0 of 4" in caplog.messages[-1] and "same command" in caplog.messages[-1]
    study = sweep.run(square, launcher=Two, n_trials=4)
    assert states(study) == ["FAIL"] * 2 + ["COMPLETE"] * 4
    assert [t.params for t in study.trials[2:4]] == [t.params for t in study.trials[:2]]


# -- launchers -------------------------------------------------------------------------------


def test_a_free_slot_is_filled_at_once(sweep):
    def job(params, folder):
        for _ in range(6 if folder.name == "0" else 1):
            yield
        return 1.0

    sweep.run(job, launcher=Two, n_trials=4)
    assert [n for what, n in sweep.launcher.log if what == "end"] == [1, 2, 3, 0]
    assert sweep.launcher.most == 2


def test_a_sweep_may_use_fewer_slots_than_there_are(sweep):
    sweep.run(square, launcher=partial(Stepwise, n_jobs=4), n_jobs=2, n_trials=6)
    assert sweep.launcher.most == 2


def test_other_launchers_get_batches(sweep):
    study = sweep.run(square, launcher=Batched, n_jobs=3, n_trials=7)
    assert sweep.launcher.batches == [[0, 1, 2], [3, 4, 5], [6]]
    assert states(study) == ["COMPLETE"] * 7


def test_a_launcher_that_fails_leaves_its_trials_to_be_asked_again(sweep):
    class Broken(Batched):
        def launch(self, job_overrides, initial_job_idx):
            raise RuntimeError("no cluster")

    with pytest.raises(RuntimeError, match="no cluster"):
        sweep.run(square, launcher=Broken, n_jobs=2, n_trials=2)
    study = sweep.run(square, launcher=Batched, n_jobs=2, n_trials=2)
    assert states(study) == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]


def test_a_job_that_cannot_be_started_fails_alone(sweep):
    class Picky(Stepwise):
        def start(self, number, overrides):
            if number == 1:
                raise HydraException("cannot compose")
            return super().start(number, overrides)

    study = sweep.run(square, launcher=Picky, n_trials=3)
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE"]


# -- pruning ---------------------------------------------------------------------------------


def climbing(slope, steps=4):
    """A job whose metrics grow with its x; it ends when asked to."""

    def job(params, folder):
        gain = slope * params["x"]
        for step in range(steps):
            progress(folder, step, gain=gain, cost=1 - gain, loss=1 - gain)
            yield
            if (folder / "stop").exists():
                break
        return {"gain": gain, "cost": 1 - gain, "loss": 1 - gain}

    return job


def test_a_value_that_is_not_finite_ends_the_trial(sweep):
    def job(params, folder):
        progress(folder, 0, loss=1.0)
        yield
        progress(folder, 5, loss=math.nan, other=1.0)
        while not (folder / "stop").exists():
            yield
        return {"loss": 0.0}

    study = sweep.run(job, n_trials=1, **MAPPED)
    assert (states(study), reasons(study)) == (["PRUNED"], ["loss is nan"])
    attrs = study.trials[0].user_attrs
    assert (attrs["progress:0"], attrs["progress:5"]["loss"]) == ({"loss": 1.0}, "nan")
    assert (sweep.dir / "0" / "stop").read_text() == "loss is nan"


def test_an_alarm_of_its_own_ends_the_trial(sweep):
    def job(params, folder):
        progress(folder, 3, **{"alarm/router_collapse": 1.0})
        while not (folder / "stop").exists():
            yield
        return {"loss": 0.0}

    study = sweep.run(job, n_trials=1, **MAPPED)
    assert (states(study), reasons(study)) == (["PRUNED"], ["alarm/router_collapse"])


@pytest.mark.parametrize(
    ("pruning", "options"),
    [
        ({"rule": "dominated", "n_startup_trials": 2, "n_warmup_steps": 1}, TWO),
        ({"rule": "median", "n_startup_trials": 2, "n_warmup_steps": 1}, MAPPED),
        ({"rule": "asha", "min_resource": 1, "reduction_factor": 2}, MAPPED),
        ({"rule": "hyperband", "max_resource": 1, "reduction_factor": 2}, MAPPED),
    ],
    ids=lambda value: value.get("rule", ""),
)
def test_a_bad_trial_is_pruned_and_a_good_one_not(sweep, pruning, options):
    enqueue = [{"x": x, "y": 0.5} for x in (0.5, 0.6, 0.7, 0.1, 0.9)]
    options = {"n_trials": 5, "enqueue": enqueue, "pruning": pruning, **options}
    study = sweep.run(climbing(1.0), **options)
    assert (states(study)[3], states(study)[4]) == ("PRUNED", "COMPLETE")
    assert pruning["rule"] in reasons(study)[3]
    options |= {"n_trials": 8, "sampler_options": {"n_startup_trials": 2}}
    study = sweep.run(climbing(1.0), **options)  # the sampler lives with what was kept
    assert len(study.trials) == 8


def test_no_trial_on_the_front_is_pruned(sweep):
    """Dominated at its step by most, but better than what any trial ended with."""

    def job(params, folder):
        early = {"gain": params["x"], "cost": 1 - params["x"]}
        for step in range(3):
            progress(folder, step, **early)
            yield
            if (folder / "stop").exists():
                break
        return {"gain": 0.0, "cost": 1.0}  # all end badly

    enqueue = [{"x": x, "y": 0.5} for x in (0.5, 0.6, 0.7, 0.1)]
    pruning = {"rule": "dominated", "n_startup_trials": 2}
    study = sweep.run(job, n_trials=4, enqueue=enqueue, pruning=pruning, **TWO)
    assert states(study) == ["COMPLETE"] * 4


def test_a_trial_that_does_not_stop_is_killed(sweep):
    def job(params, folder):
        progress(folder, 0, loss=math.inf)
        while True:
            yield

    study = sweep.run(job, n_trials=1, grace_seconds=0.0, **MAPPED)
    assert (states(study), reasons(study)) == (["PRUNED"], ["loss is inf"])
    assert ("stop", 0) in sweep.launcher.log


def test_a_sweeps_folder_may_be_moved_and_no_other_study_writes_into_it(sweep):
    """The study in the folder goes on, whatever the folder is called now."""
    sweep.run(square, n_trials=2)
    moved = sweep.dir.rename(sweep.folder / "moved")
    there = [*BASE, f"hydra.sweep.dir={moved}"]
    assert len(sweep.run(square, there, n_trials=3).trials) == 3
    assert sorted(path.name for path in moved.iterdir() if path.is_dir()) == ["0", "1", "2"]
    before = (moved / "optimization_results.yaml").read_text()
    assert yaml.safe_load(before)["trials"]["complete"] == 3
    elsewhere = f"sqlite:///{sweep.folder}/other.db"
    for options in ({"study_name": "other"}, {"storage": elsewhere, "study_name": "sweep"}):
        with pytest.raises(ValueError, match="moved holds the trials of the study 'sweep'"):
            sweep.run(square, there, **options)
    assert (moved / "optimization_results.yaml").read_text() == before


def test_half_a_line_is_read_when_it_is_whole(sweep, caplog):
    def job(params, folder):
        with (folder / "progress.jsonl").open("a") as file:
            for part in ('{"step": 1, "val', 'ues": {"loss": 2}}\nnonsense\n', ""):
                file.write(part)
                file.flush()
                yield
        return {"loss": 1.0}

    study = sweep.run(job, n_trials=1, **MAPPED)
    assert study.trials[0].user_attrs["progress:1"] == {"loss": 2.0}
    assert "nonsense" in caplog.text


# -- callbacks -------------------------------------------------------------------------------

EVENTS: list[tuple] = []


class Recorder(Callback):
    def on_sweep_start(self, study, config, sweep_dir):
        EVENTS.append(("sweep", config.hydra.sweep.dir == str(sweep_dir), sweep_dir.is_absolute()))

    def on_trial_start(self, trial, overrides):
        overrides.append("+tag=7")
        EVENTS.append(("start", trial.number))

    def on_trial_end(self, study, frozen_trial, job_return):
        EVENTS.append(("end", frozen_trial.number, frozen_trial.state, job_return.return_value))

    def on_poll(self, study):
        raise RuntimeError("the display is broken")

    def on_sweep_end(self, study):
        EVENTS.append(("done", len(study.trials)))


def test_callbacks_hear_of_everything_and_break_nothing(sweep, caplog):
    EVENTS.clear()
    node = {"_target_": f"{__name__}.Recorder"}
    study = sweep.run(square, n_trials=1, callbacks=[node])
    value = study.trials[0].value
    assert EVENTS == [
        ("sweep", True, True),
        ("start", 0),
        ("end", 0, TrialState.COMPLETE, value),
        ("done", 1),
    ]
    assert sweep.launcher.overrides[0][-1] == "+tag=7"
    assert "on_poll of Recorder failed" in caplog.text


def test_each_trial_is_one_line_of_the_log(sweep, caplog):
    caplog.set_level(logging.INFO)
    sweep.run(pair, n_trials=1, enqueue=[{"x": 0.5, "y": 0.25}], **TWO)
    assert "trial 0 complete: gain=0.5 cost=0.5 | x=0.5 y=0.25" in caplog.messages


# -- as a program ----------------------------------------------------------------------------

APP = """\
import time, hydra
@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config):
    time.sleep(config.y)
    return config.x ** 2
main()
"""


@pytest.fixture
def program(sweep):
    """Starts the app in a process of its own, with Hydra's own launcher."""
    (sweep.folder / "app.py").write_text(APP)
    path = {"PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}

    def start(*arguments, **environment):
        command = [sys.executable, "app.py", "-m", *arguments]
        return subprocess.Popen(
            command, cwd=sweep.folder, env={**os.environ, **path, **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    return start


def test_under_hydra_killed_and_resumed(sweep, program):
    arguments = ["x=interval(0,1)", "y=0.2", "hydra.sweeper.n_trials=4"]
    first = program(*arguments)
    deadline = time.monotonic() + 30
    while not (sweep.dir / "1").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    first.kill()
    first.communicate()
    second = program(*arguments)
    out = second.communicate()[0]
    assert second.returncode == 0, out
    study = sweep.study()
    done = [trial for trial in study.trials if trial.state is TrialState.COMPLETE]
    assert len(done) == 4
    assert [trial.number for trial in study.trials] == list(range(len(study.trials)))
    assert all(trial.value == trial.params["x"] ** 2 for trial in done)
    assert all((sweep.dir / str(trial.number)).is_dir() for trial in done)


def test_a_trials_folder_is_what_its_own_configuration_says(tmp_path):
    """Its progress is read there, and nothing else is left in the sweep's folder."""
    toy = processes.toy(tmp_path)
    subdir = "hydra.sweep.subdir=trial_${hydra.job.num}_${hydra.job.override_dirname}"
    toy.finish("x=1,2", "do=square", "hydra.sweeper.sampler=grid", subdir)
    assert [trial.value for trial in toy.trials] == [1, 4]
    folders = [trial.user_attrs["folder"] for trial in toy.trials]
    assert folders == ["trial_0_do=square,x=1", "trial_1_do=square,x=2"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == folders
    assert all((tmp_path / "out" / folder / "result.json").is_file() for folder in folders)


def test_a_grid_that_was_killed_is_finished_by_its_command_without_repeating_a_run(sweep, program):
    arguments = [
        "x=1,2,3",
        "y=0.2,0.21",
        "hydra.sweeper.sampler=grid",
        "hydra.sweeper.n_trials=null",
    ]
    first = program(*arguments)
    deadline = time.monotonic() + 60
    while not (sweep.dir / "3").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    first.kill()
    first.communicate()
    before = [t for t in sweep.study().trials if t.state is TrialState.COMPLETE]
    out = program(*arguments).communicate()[0]
    done = [t for t in sweep.study().trials if t.state is TrialState.COMPLETE]
    assert len(before) >= 2, out
    assert sorted((t.params["x"], t.params["y"]) for t in done) == [
        (x, y) for x in (1, 2, 3) for y in (0.2, 0.21)
    ]
    assert {t.number: t.datetime_complete for t in before}.items() <= {
        t.number: t.datetime_complete for t in done
    }.items()


def test_a_request_to_terminate_is_an_interrupt(sweep, program):
    process = program("x=interval(0,1)", "y=0.1", "hydra.sweeper.n_trials=1000")
    deadline = time.monotonic() + 30
    while not (sweep.dir / "1").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out = process.communicate()[0]
    assert process.returncode == 130, out
    assert "The same command goes on" in out.splitlines()[-1]
    assert TrialState.RUNNING not in [trial.state for trial in sweep.study().trials]


def test_the_plugin_is_light_until_it_sweeps():
    code = (
        "import sys; from hydra.core.plugins import Plugins; Plugins.instance();"
        "assert 'hydra_plugins.prismatic_optuna.sweeper' in sys.modules;"
        "heavy = {'optuna', 'numpy', 'torch', 'pandas'} & set(sys.modules); assert not heavy, heavy"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
