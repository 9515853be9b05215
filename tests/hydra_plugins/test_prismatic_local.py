"""Trials run side by side, fail alone, come back in order, and leave nothing behind."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf

from hydra_plugins.prismatic_local import _job, _server, _slots, _trials
from hydra_plugins.prismatic_local._command import quoted
from hydra_plugins.prismatic_local.launcher import LocalLauncher

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KINDS = ("fork", "process", "inline")
QUICK = {"preload": []}


@pytest.fixture
def app(tmp_path):
    """The app in a folder of its own."""
    for name in ("app.py", "app.yaml", "other.yaml"):
        shutil.copy(HERE / name, tmp_path / name)
    return tmp_path / "app.py"


@pytest.fixture
def launcher(app, monkeypatch):
    """Makes a launcher as Hydra does: launcher("x=1", n_jobs=2); closed after the test."""
    before, opened = Singleton.get_state(), []
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.syspath_prepend(app.parent)
    monkeypatch.delitem(sys.modules, "app", raising=False)

    def make(*overrides: str, **keys) -> LocalLauncher:
        module = import_module("app")
        path = create_automatic_config_search_path(str(app), None, ".")
        hydra = Hydra.create_main_hydra2("app", path)
        sweep = [*overrides, f"hydra.sweep.dir={app.parent}/out"]
        monkeypatch.setattr(sys, "argv", [str(app), "-m", *sweep])
        config = hydra.compose_config("app", sweep, RunMode.MULTIRUN)
        made = LocalLauncher(**QUICK | keys)
        made.setup(
            hydra_context=HydraContext(hydra.config_loader, Callbacks()),
            task_function=module.main.__wrapped__,
            config=config,
        )
        opened.append(made)
        return made

    yield make
    for made in opened:
        made.close()
    GlobalHydra.instance().clear()
    Singleton.set_state(before)


def values(jobs):
    return [job.return_value for job in jobs]


def reason(job: JobReturn) -> str:
    """Why a job failed."""
    assert job.status == JobStatus.FAILED
    with pytest.raises(ChildProcessError) as caught:
        _ = job.return_value
    return str(caught.value)


def in_one_go(launched, *trials):
    """Launch trials given as "x=1 do=square"."""
    return launched.launch([trial.split() for trial in trials], 0)


def gone(pids, seconds=10):
    """Whether the processes end in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


def alive(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
    return False


def families(folder, count):
    """The process ids in the folder, as soon as so many are there."""
    until = time.monotonic() + 20
    while len(pids := [int(path.stem) for path in folder.glob("*.pid")]) < count:
        assert time.monotonic() < until
        time.sleep(0.02)
    return pids


@pytest.mark.parametrize("executor", KINDS)
def test_results_are_in_order_whoever_ends_first(launcher, app, executor):
    launched = launcher(executor=executor, n_jobs=2)
    jobs = launched.launch([["x=3", "seconds=0.3"], ["x=4"], ["x=5"]], 7)
    assert values(jobs) == [9, 16, 25]
    assert [job.overrides for job in jobs] == [["x=3", "seconds=0.3"], ["x=4"], ["x=5"]]
    folders = [job.hydra_cfg.hydra.runtime.output_dir for job in jobs]
    assert folders == [str(app.parent / "out" / number) for number in "789"]
    assert all(Path(folder, ".hydra", "config.yaml").is_file() for folder in folders)


@pytest.mark.parametrize("executor", ["fork", "process"])
def test_trials_run_side_by_side(launcher, executor):
    launched = launcher(executor=executor, n_jobs=2)
    assert values(in_one_go(launched, "do=meet x=1", "do=meet x=2")) == [1, 2]


@pytest.mark.parametrize("executor", ["fork", "process"])
def test_a_failure_stays_alone_and_says_why(launcher, app, executor):
    launched = launcher(executor=executor)
    jobs = in_one_go(launched, *(f"do=fail_at_2 x={x}" for x in (1, 2, 3)))
    assert [jobs[0].return_value, jobs[2].return_value] == [1, 3]
    text = reason(jobs[1])
    assert text.startswith(f"trial 1 failed with exit status 1: {app.parent}/out/1/trial.log\n")
    assert "hello from 2\n" in text and "\nLookupError: two is no good" in text
    assert not (app.parent / "out/1/result.json").exists()


def test_inline_runs_here_and_keeps_the_exception(launcher):
    launched = launcher(executor="inline", n_jobs=4)
    assert launched.n_jobs == 1
    jobs = in_one_go(launched, "do=fail_at_2 x=2", "do=surroundings")
    with pytest.raises(LookupError, match="two is no good"):
        _ = jobs[0].return_value
    assert jobs[1].return_value["pid"] == os.getpid()


def test_a_killed_trial_has_failed(launcher):
    [job, after] = in_one_go(launcher(), "do=killed", "x=2")
    assert "trial 0 was killed (out of memory?)" in reason(job)
    assert reason(job).endswith("last words") and job._return_value.lost
    assert after.return_value == 4


def test_a_trial_may_return_what_json_knows(launcher):
    jobs = in_one_go(launcher(n_jobs=2), *(f"do=various x={x}" for x in range(4)))
    assert jobs[0].return_value is None
    assert jobs[1].return_value[:3] == [1, 2.5, "text"]
    assert math.isnan(jobs[1].return_value[3]) and jobs[1].return_value[4] == -math.inf
    assert jobs[2].return_value == {"loss": 0.5, "all": [1.0, 1.0], "node": {"a": 1}}
    assert "ended without a result" in reason(jobs[3]) and "cannot be recorded" in reason(jobs[3])


def test_an_old_result_is_not_taken_for_a_new_one(launcher, app):
    (app.parent / "out/0").mkdir(parents=True)
    (app.parent / "out/0/result.json").write_text("1.0")
    assert "last words" in reason(in_one_go(launcher(), "do=killed")[0])


@pytest.mark.parametrize("executor", ["fork", "process"])
def test_overrides_are_taken_as_they_were_typed(app, executor):
    """What they interpolate is known in a trial only."""
    keys = ["hydra.sweep.subdir=trial_${hydra.job.num}", "hydra.job.name=named_${x}"]
    keys += [f"hydra.launcher.executor={executor}"]
    with sweep(app, "-m", "do=surroundings", "x=8,9", *keys) as running:
        _, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    folders = [app.parent / "out" / f"trial_{number}" for number in (0, 1)]
    jobs = [json.loads((folder / "result.json").read_text())["job"] for folder in folders]
    assert jobs == [[0, "0", "named_8"], [1, "1", "named_9"]]


@pytest.mark.parametrize("executor", ["fork", "process"])
def test_a_start_that_raises_keeps_no_slot(launcher, monkeypatch, executor):
    launched = launcher(executor=executor)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(_trials, "Order", Mock(side_effect=MemoryError))
        launched.start(0, ["x=2"])
    launched.start(1, ["x=3"])
    assert launched.finished()[0][1].return_value == 9


@pytest.mark.parametrize("executor", ["fork", "process"])
def test_a_trial_has_the_surroundings_of_its_slot(launcher, app, executor, monkeypatch):
    inherited = {"LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1", "RANKED": "yes"}
    inherited |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "0"}
    for name, value in (inherited | {"CUDA_VISIBLE_DEVICES": "4,GPU-b"}).items():
        monkeypatch.setenv(name, value)
    launched = launcher(executor=executor, n_jobs=2, threads=3)
    first, second = values(in_one_go(launched, *["do=surroundings"] * 2))
    environment = first["environment"]
    assert environment.keys() & inherited == {"RANKED"}
    assert environment["OMP_NUM_THREADS"] == "3"
    visible = [trial["environment"]["CUDA_VISIBLE_DEVICES"] for trial in (first, second)]
    assert visible == ["4", "GPU-b"]
    assert first["session"] == first["pid"] != second["pid"]
    assert second["job"] == [1, "1", "app"] and second["mode"] == "RunMode.RUN"
    assert second["output_dir"] == str(app.parent / "out/1")
    assert second["sweep_dir"] == str(app.parent / "out")
    assert Path(second["argv"][0]) == app and "hydra.mode=RUN" in second["argv"]
    assert not {"-m", "--multirun"} & set(second["argv"])


def test_the_server_has_torch_ready_and_unused(launcher):
    launched = launcher(preload=["torch"], threads=1)
    assert values(in_one_go(launched, "do=torch_state")) == [[1, 1, False]]


def test_an_interrupt_ends_the_sweep(launcher, monkeypatch):
    launched = launcher(executor="inline")
    monkeypatch.setattr(launched._trials, "start", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as ended:
        in_one_go(launched, "x=2")
    assert ended.value.code == 130


def test_one_by_one(launcher):
    launched = launcher(n_jobs=2)
    assert launched.finished() == []
    launched.start(5, ["do=square", "x=3"])
    launched.start(3, ["do=family", "x=1"])
    [(number, job)] = launched.finished()
    assert (number, job.return_value) == (5, 9)
    assert launched.finished(timeout=0.01) == []
    launched.start(6, ["x=4"])  # its slot is free again
    assert launched.finished()[0][0] == 6
    launched.stop(3)
    [(number, job)] = launched.finished()
    assert number == 3 and "trial 3 was stopped" in reason(job) and not job._return_value.lost
    launched.close()
    launched.close()


def test_a_trial_that_takes_too_long_is_ended(launcher):
    [job] = in_one_go(launcher(timeout=0.2), "seconds=60")
    assert "ran longer than hydra.launcher.timeout" in reason(job)


def test_closing_ends_even_who_does_not_listen(launcher, app, monkeypatch):
    (app.parent / "hasty.py").write_text(f"import {_server.__name__} as s; s.GRACE = 0.5")
    monkeypatch.syspath_prepend(app.parent)
    launched = launcher(n_jobs=2, preload=["hasty"])
    for x in (0, 1):
        launched.start(x, ["do=family", f"x={x}", f"folder={app.parent}"])
    pids = families(app.parent, 4)
    launched.close()
    assert gone(pids, 0.1)
    assert launched.finished() == []


def test_a_lost_server_fails_its_trials_and_is_replaced(launcher, app):
    launched = launcher()
    launched.start(0, ["do=family", "x=1", f"folder={app.parent}"])
    families(app.parent, 2)
    os.kill(launched._trials.server.process.pid, signal.SIGKILL)
    [(number, job)] = launched.finished()
    assert number == 0 and "lost with the fork server" in reason(job) and job._return_value.lost
    launched.start(1, ["x=3"])
    assert launched.finished()[0][1].return_value == 9
    for path in app.parent.glob("*.pid"):
        with suppress(ProcessLookupError):
            os.kill(int(path.stem), signal.SIGKILL)  # `sleep`, which has no reason to notice


def test_a_module_that_cannot_be_preloaded_is_named(launcher):
    launched = launcher(preload=["no_such_module"])
    with pytest.raises(HydraException, match=r"preload.*no_such_module"):
        in_one_go(launched, "x=1")


def sweep(app, *arguments, **keys):
    """The app's own command, in a process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(
        [sys.executable, str(app), *arguments, f"hydra.sweep.dir={app.parent}/out"],
        env=environment, cwd=app.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("executor", "how"),
    [("fork", "SIGKILL"), ("fork", "SIGTERM"), ("fork", "SIGINT"), ("process", "SIGKILL")],
)
def test_nothing_outlives_a_sweep(app, executor, how):
    keys = [f"hydra.launcher.executor={executor}", "hydra.launcher.n_jobs=2"]
    with sweep(app, "-m", "do=family", "x=1,2,3", f"folder={app.parent}", *keys) as running:
        pids = families(app.parent, 4)
        running.send_signal(signal.Signals[how])
        running.communicate(timeout=20)
    assert gone(pids)
    assert running.returncode != 0


def test_a_grid_under_hydras_own_sweeper(app):
    """`process` keeps -cn and -cd and drops what is the sweep's; one error ends it, afterwards."""
    keys = ["hydra.launcher.executor=process", "hydra.launcher.n_jobs=2", "hydra.verbose=[nobody]"]
    found = ["-cn", "other", "-cd", str(app.parent)]
    with sweep(app, *found, "--multirun", "do=surroundings,fail_at_2", "x=2", *keys) as run:
        _, err = run.communicate(timeout=30)
    result = json.loads((app.parent / "out/0/result.json").read_text())
    assert (result["y"], result["config_name"]) == (7, "other")
    assert result["command"][1:] == result["argv"]
    assert f"--config-dir={app.parent}" in result["argv"]
    typed = [word for word in result["argv"][1:] if "dir=" not in word]
    assert typed == [
        "--config-name=other", "hydra.verbose=[nobody]", "do=surroundings", "x=2",
        "hydra.mode=RUN", "hydra.job.num=0", "hydra.job.id=0",
        "+hydra.callbacks.prismatic_local._target_=hydra_plugins.prismatic_local._job.TrialCallback",
    ]  # fmt: skip
    assert run.returncode == 1 and "LookupError: two is no good" in err


def test_a_process_is_a_fresh_python_under_a_sweeper_that_adds_overrides_too(app):
    """Further ranks of a trial are started by its command."""
    keys = ["hydra/sweeper=prismatic_optuna", "hydra.launcher.executor=process"]
    with sweep(app, "-m", "do=surroundings", "x=choice(1,2)", *keys) as running:
        running.communicate(timeout=60)
    result = json.loads((app.parent / "out/0/result.json").read_text())
    assert result["command"][1:] == result["argv"]


def test_quotes():
    assert quoted("it's, (a) dir") == r"'it\'s, (a) dir'"


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_a_further_rank_does_not_sweep(launcher, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pytest.raises(HydraException, match=f"^{name}=1: a sweep runs in one process"):
        launcher()


def test_the_first_rank_alone_records(tmp_path, monkeypatch):
    config = OmegaConf.create({"hydra": {"runtime": {"output_dir": str(tmp_path)}}})
    job = SimpleNamespace(status=JobStatus.COMPLETED, return_value=1.5)
    monkeypatch.setenv("LOCAL_RANK", "1")
    _job.TrialCallback().on_job_end(config, job)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("LOCAL_RANK", "0")
    _job.TrialCallback().on_job_end(config, job)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("n_jobs", 0), ("executor", "thread"), ("threads", 0), ("gpus_per_job", -1), ("timeout", 0)],
)
def test_bad_values_are_named(key, value):
    with pytest.raises(ValueError, match=rf"^hydra.launcher.{key}={value!r} is not valid: "):
        LocalLauncher(**{key: value})


def test_without_fork_trials_run_in_this_process_alone(monkeypatch):
    monkeypatch.delattr(os, "fork")  # as on Windows
    for executor in ("fork", "process"):
        with pytest.raises(ValueError, match=f"{executor}' is not valid.*Linux or macOS.*inline"):
            LocalLauncher(executor=executor)
    LocalLauncher(executor="inline")


def test_cores_and_gpus_are_shared_out(monkeypatch, tmp_path):
    monkeypatch.setattr(_slots, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [slot["OMP_NUM_THREADS"] for slot in _slots.slots(3, None, 1, [])] == ["2"] * 3
    assert "OMP_NUM_THREADS" not in _slots.slots(1, None, 1, [])[0]
    assert _slots.slots(16, None, 1, [])[0]["OMP_NUM_THREADS"] == "1"
    assert _slots.shared_out("abcd", 2, 2) == [["a", "b"], ["c", "d"]]
    assert _slots.shared_out("ab", 3, 1) == [["a"], ["b"], ["a"]]
    assert _slots.slots(2, 1, 0, ["0"])[1]["CUDA_VISIBLE_DEVICES"] == ""
    with pytest.raises(HydraException, match=r"gpus_per_job=2 is not valid: 1 visible"):
        _slots.shared_out("a", 1, 2)
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert _slots.visible_gpus({}, tmp_path) == ["0", "1"]
    assert _slots.visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}, tmp_path) == []


def test_threads_that_a_user_has_set_are_kept(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert "OMP_NUM_THREADS" not in _slots.slots(2, None, 1, [])[0]  # a trial inherits it
    assert _slots.slots(2, 3, 1, [])[0]["OMP_NUM_THREADS"] == "3"


def test_the_plugin_is_light():
    code = (
        "import hydra_plugins.prismatic_local.launcher, sys\n"
        "print({'torch', 'optuna', 'multiprocessing', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "set()\n"
