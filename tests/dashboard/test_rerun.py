"""The command that repeats a trial means the configuration that the trial had."""

import shlex
import sys

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from hydra_plugins.prismatic_local.launcher import cores
from prismatic.config import paths
from prismatic.config.command_line import quote
from prismatic.dashboard import rerun

from ..tiny import CONF, ROOT

FILES = sorted((ROOT / "sweeps").glob("*/*.yaml"))
CHOSEN = {  # what else a trial of the sweep has
    "loss": ["perturbation.scale=0.012345678901234567", "focal=none"],
    "diversity_stability": ["perturbation=repulsive", "focal=helical", "router.num_experts=3"],
    "mode_x_focal": ["perturbation=noise", "focal=radial"],
}


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """As in a sweep's own process, Hydra is there."""
    monkeypatch.setattr(sys, "argv", ["src/train.py", "-m"])
    paths.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def trial(folder, overrides, n_jobs=1):
    """What Hydra leaves in the folder of trial 7, and the trial's configuration, resolved."""
    place = [f"hydra.sweep.dir={folder}", "hydra.job.num=7", f"hydra.launcher.n_jobs={n_jobs}"]
    config = compose("train", [*overrides, *place], return_hydra_config=True)
    kept = folder / "7" / ".hydra"
    kept.mkdir(parents=True)
    OmegaConf.save(OmegaConf.masked_copy(config, "hydra"), kept / "hydra.yaml")
    written = [*overrides, f"++{rerun.NESTING}=abc"]
    OmegaConf.save(OmegaConf.create(written), kept / "overrides.yaml")
    return rerun.resolved(config)


def typed(command):
    """The arguments of the script."""
    words = shlex.split(command)
    return words[words.index("src/train.py") + 1 :]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_a_sweeps_file_sets_is_written_out(path, tmp_path):
    fixed = ["debug=tiny", "trainer.max_steps=9", f"{path.parent.name}={path.stem}"]
    fixed.append("++logger.run_name=seed_${seed}")
    expected = trial(tmp_path, [*fixed, *CHOSEN.get(path.stem, [])])
    arguments = typed(rerun.command_of(tmp_path / "7"))
    assert not any(word.startswith(("-", "grid=", "optuna=", "hydra")) for word in arguments)
    alone = compose("train", arguments, return_hydra_config=True)
    assert rerun.resolved(alone) == expected
    assert expected["logger.parent_run_id"] is None


def test_a_point_of_a_plain_sweep_is_what_was_typed(tmp_path):
    overrides = ["seed=3", r"+tags.note='a, it\'s'", "focal=none"]
    trial(tmp_path, overrides)
    assert typed(rerun.command_of(tmp_path / "7")) == overrides


@pytest.mark.parametrize(("n_jobs", "threads"), [(1, None), (2, max(1, cores() // 2))])
def test_as_many_threads_as_in_the_sweep(tmp_path, monkeypatch, n_jobs, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    trial(tmp_path, ["seed=3"], n_jobs)
    begins = f"OMP_NUM_THREADS={threads} " if threads else ""
    command = rerun.command_of(tmp_path / "7").removesuffix(" src/train.py seed=3")
    assert command in (f"{begins}python", begins + shlex.quote(sys.executable))


def test_a_trial_that_never_ran_has_no_command(tmp_path):
    assert rerun.command_of(tmp_path / "7") == ""


VALUES = [
    1, 1.5, 1e-7, float("inf"), True, None, "a", "a b", "", "null", "true", "1e3", "it's", "a\\",
    "a,b", "a=b", "/a/b-c.d", [1, "a,b", None], {"loss/val": 0.1, "a": "b c"}, [], {},
]  # fmt: skip


def test_values_are_written_in_hydras_grammar():
    written = [f"++tags.v{i}={quote(value)}" for i, value in enumerate(VALUES)]
    tags = OmegaConf.to_container(compose("train", written).tags)
    assert list(tags.values()) == VALUES
