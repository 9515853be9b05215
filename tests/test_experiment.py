import json
import logging
import math

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from mlflow import MlflowClient
from omegaconf import OmegaConf
from scipy.stats import entropy
from torch.nn import functional as F

import prismatic
from prismatic import experiment, replicas, report
from prismatic.config.checks import pinned
from prismatic.replicas import run
from prismatic.report.record import read
from prismatic.run_folder.recording import choice_tags, run_name
from prismatic.training import DivergedError

from .tiny import fit, text_data, tiny


@pytest.fixture
def run_dir(tmp_path):
    """A finished run on text, with checkpoints."""
    folder = tmp_path / "run"
    run(
        tiny(
            *text_data(tmp_path), "callbacks=default", "~callbacks.progress", "~callbacks.pictures"
        ),
        folder,
    )
    return folder


def test_the_objective_is_returned(tmp_path):
    one = run(tiny(), tmp_path / "one")
    several = run(tiny("objective=[loss/val,views/relative_norm]"), tmp_path / "two")
    assert list(several) == ["loss/val", "views/relative_norm"]
    assert several["loss/val"] == one == pytest.approx(math.log(16), abs=0.1)
    assert several["views/relative_norm"] > 0


SEEDS = ["objective=[loss/val,objective/diversity,objective/stability]", "optim.warmup_steps=1"]


def test_seeds_are_runs_of_their_own_and_their_mean_is_returned(tmp_path):
    alone = [run(tiny(*SEEDS, f"seed={seed}"), tmp_path / f"alone_{seed}") for seed in (3, 5)]
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    logged = ["logger=mlflow", f"logger.tracking_uri={uri}", "seeds=[3,5]"]
    together = run(tiny(*SEEDS, *logged), tmp_path / "both")
    for name in ("loss/val", "objective/diversity"):
        assert together[name] == pytest.approx(sum(one[name] for one in alone) / 2)
    [recorded] = MlflowClient(uri).search_runs(["1"])
    assert recorded.info.status == "FINISHED"
    metrics, params = recorded.data.metrics, recorded.data.params
    for seed, one in zip((3, 5), alone, strict=True):
        assert metrics[f"seed_{seed}/loss/val"] == pytest.approx(one["loss/val"])
        assert (tmp_path / "both" / f"seed_{seed}" / "config.yaml").exists()
    assert metrics["objective/stability"] == pytest.approx(together["objective/stability"])
    assert metrics["objective/loss/val"] == pytest.approx(together["loss/val"])
    assert not any(name.startswith("objective/objective") for name in metrics)
    assert params["seeds"] == "[3, 5]"
    assert recorded.data.tags["run_dir"] == str(tmp_path / "both")
    means = json.loads((tmp_path / "both" / "metrics.json").read_text())
    assert together.items() <= means.items()
    assert not any(name.startswith("changed.") for name in recorded.data.tags)


def test_the_dense_baseline_is_trained_once_and_compared_with(tmp_path, monkeypatch):
    monkeypatch.setenv("PRISMATIC_OUTPUTS", str(tmp_path))
    beside = ["objective=[loss/val,loss/excess,diversity/relative]", "baseline=dense"]
    beside += ["router.num_experts=2"]
    found = run(tiny(*beside, "focal=none"), tmp_path / "one")
    dense = run(tiny("router=dense"), tmp_path / "dense")
    assert found["loss/excess"] == pytest.approx(found["loss/val"] - dense)
    weak = run(tiny(*beside, "perturbation.scale=0"), tmp_path / "zero")
    assert weak["loss/excess"] == 0
    assert weak["diversity/relative"] == pytest.approx(0, abs=1e-9)
    trained = list((tmp_path / "baselines").glob("*/metrics.json"))
    assert len(trained) == 2  # as many as views
    both = run(tiny(*beside, "seeds=[0,1]", "focal=none"), tmp_path / "seeds")
    assert list((tmp_path / "baselines").glob("*/metrics.json")) == trained
    second = run(tiny(*beside, "seed=1", "focal=none", "objective=loss/excess"), tmp_path / "two")
    assert both["loss/excess"] == pytest.approx((found["loss/excess"] + second) / 2)


def test_a_run_ends_with_what_it_shows(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PRISMATIC_OUTPUTS", str(tmp_path))
    caplog.set_level(logging.INFO)
    typed = [*text_data(tmp_path), "baseline=dense", "focal=none", "router.num_experts=2"]
    callbacks = ["callbacks=default", "~callbacks.progress", "~callbacks.pictures"]
    run(tiny(*typed, *callbacks), tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    routed, dense = metrics["loss/val"], metrics["loss/dense"]
    assert metrics["loss/excess"] == pytest.approx(routed - dense, abs=1e-6)
    page = report.described(read(tmp_path / "run" / "diagnostics.jsonl"))
    for line in (f"{routed:.4f}", f"{dense:.4f}", f"{routed - dense:+.4f}", "view 1 alone"):
        assert line in caplog.text and line in page
    assert "shows neither" in caplog.text and "shows neither" in page


def test_a_view_alone_is_compared_with_all_merged_on_the_same_text(tmp_path):
    rows = ["focal=none", "callbacks.views_alone.rows=8", "router.num_experts=2"]
    only = [f"~callbacks.{name}" for name in ("progress", "pictures", "checkpoint", "diagnostics")]
    parts, _ = fit(tmp_path, *text_data(tmp_path), *rows, "callbacks=default", *only)
    model, num_rows = parts.model.eval(), parts.task.num_rows("val")
    tokens_BT, targets_BT, _ = parts.task.held_out("val", torch.linspace(0, num_rows - 1, 8).long())

    @torch.no_grad()
    def loss():
        return F.cross_entropy(model(tokens_BT).flatten(0, 1), targets_BT.flatten()).item()

    merged = loss()
    with model.forced(1):
        expected = loss() - merged
    found = float(parts.trainer.callback_metrics["views/1/over_merged"])
    assert found == pytest.approx(expected, abs=1e-6)


def test_diversity_is_also_told_relative_to_dense_models(tmp_path, monkeypatch):
    """As many as there are views, each of a seed of its own."""
    monkeypatch.setenv("PRISMATIC_OUTPUTS", str(tmp_path))
    beside = ["objective=[objective/diversity,diversity/relative]", "baseline=dense"]
    found = run(tiny(*beside, "focal=none", "router.num_experts=3"), tmp_path / "one")
    predicted = []
    for seed in range(3):
        parts, _ = fit(tmp_path / str(seed), "router=dense", f"seed={seed}")
        with torch.no_grad():
            logits = parts.model(parts.learner.probe.tokens_BT).flatten(0, 1)
        predicted.append(logits.double().softmax(-1).numpy())
    apart = entropy(np.mean(predicted, 0), axis=-1).mean() - entropy(predicted, axis=-1).mean()
    expected = found["objective/diversity"] / (apart / np.log(3))
    assert found["diversity/relative"] == pytest.approx(expected, rel=1e-4)


def test_a_seed_that_diverges_counts_as_unstable_and_all_of_them_as_divergence(
    tmp_path, monkeypatch
):
    train = experiment.train

    def diverging(config, *args):
        if config.seed in broken:
            raise DivergedError("the loss is nan")
        return train(config, *args)

    monkeypatch.setattr(replicas, "train", diverging)
    broken = {5}
    found = run(tiny(*SEEDS, "seeds=[3,5]"), tmp_path)
    alone = run(tiny(*SEEDS, "seed=3"), tmp_path / "alone")
    assert found["objective/stability"] == pytest.approx(alone["objective/stability"] / 2)
    broken = {3, 5}
    with pytest.raises(DivergedError):
        run(tiny(*SEEDS, "seeds=[3,5]"), tmp_path)


def test_an_unknown_objective_stops_at_the_first_validation(tmp_path):
    config = tiny("objective=loss/vla", "trainer.max_steps=100", "trainer.val_check_interval=1")
    with pytest.raises(ValueError, match=r"objective='loss/vla' is not valid: choose.* loss/val"):
        run(config, tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=abc"], "seed='abc' is not valid"),
        (["seed=-1"], "seed=-1 is not valid: give a whole number from 0"),
        (["seed=true"], "seed=True is not valid: give a whole number from 0"),
        (["seeds=3"], r"seeds=3 is not valid: give a list of different numbers, seeds=\[0,1,2\]"),
        (["seeds=[]"], r"seeds=\[\] is not valid: give a list of different numbers"),
        (["seeds=[0,1,0]"], r"seeds=\[0, 1, 0\] is not valid: give a list of different numbers"),
        (["seeds=[0,1]", "ckpt_path=x"], "ckpt_path='x' is not valid: it holds one training"),
        (["objective=3"], "objective=3 is not valid: name a metric"),
        (["trainer.log_every_n_steps=abc"], "log_every_n_steps='abc' is not valid: give null"),
        (["trainer.limit_val_batches=0"], "limit_val_batches=0 .*objective loss/val is measured"),
        (["objective=null"], "objective=None is not valid: name a metric such as loss/val"),
        (["trainer.val_check_interval=0"], "val_check_interval=0 is not valid: give a whole"),
        (["router=dense", "perturbation.sparsity=7"], "perturbation.sparsity=7 is not valid"),
        (["+router.temprature=2"], "router key='temprature' is not valid: choose one of expert"),
        (["trainer.max_steps=abc"], "trainer.max_steps='abc' is not valid: give a whole number"),
        (["+foo=1"], "root key='foo' is not valid: choose one of data, model"),
    ],
)  # fmt: skip
def test_what_would_fail_late_is_refused_at_once(overrides, message, tmp_path):
    with pytest.raises((ValueError, InstantiationException), match=message):
        run(tiny(*overrides), tmp_path)


def test_a_run_folder_rebuilds_the_run(run_dir):
    config = OmegaConf.load(run_dir / "config.yaml")
    assert "${" not in (run_dir / "config.yaml").read_text(), "everything is resolved"
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert manifest["vocab_size"] == 256 and manifest["domains"] == ["squares.txt"]
    assert {"source", "version", "sha256", "bytes"} <= manifest["sources"][0].keys()
    model, loaded = prismatic.load(run_dir, checkpoint="last")
    assert loaded == config
    assert not model.training
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    state = model.state_dict()
    for name, value in checkpoint["state_dict"].items():
        kept = state[name.removeprefix("model.")]
        assert torch.equal(kept, value) if torch.is_tensor(value) else kept == value


def test_loading_leaves_the_random_state_alone(run_dir):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    prismatic.load(run_dir)
    assert torch.equal(torch.rand(3), expected)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config.yaml; give a folder that src/train"):
        prismatic.load(tmp_path)
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json"):
        prismatic.load(tmp_path)


def test_checkpoints_that_cannot_be_used(run_dir, tmp_path):
    with pytest.raises(
        ValueError, match="checkpoint='worst' is not valid: choose one of best, las"
    ):
        prismatic.load(run_dir, checkpoint="worst")
    best = run_dir / "checkpoints" / "best.ckpt"
    whole = best.read_bytes()
    for damaged in (b"", b"not a checkpoint", whole[: len(whole) // 2]):
        best.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"best.ckpt cannot be read: it is damaged"):
            prismatic.load(run_dir)
    torch.save({"weights": torch.zeros(1)}, best)
    with pytest.raises(ValueError, match="holds no model state"):
        prismatic.load(run_dir)
    best.unlink()
    with pytest.raises(FileNotFoundError, match=r"best.ckpt does not exist; give a file such as"):
        prismatic.load(run_dir)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        run(tiny("ckpt_path=nowhere.ckpt"), tmp_path / "other")


class Bomb:
    def __reduce__(self):
        return (exit, (3,))


def test_loading_runs_no_code(run_dir):
    torch.save({"state_dict": {}, "bomb": Bomb()}, run_dir / "checkpoints" / "best.ckpt")
    with pytest.raises(ValueError, match="cannot be read"):
        prismatic.load(run_dir)


def test_choice_tags_record_resolved_values():
    tags = choice_tags(tiny("perturbation=directional", "sparsity=moderate", "+tags.note=a b"))
    assert tags["sparsity"] == "0.2" and tags["strategy"] == "dual_sided"
    assert tags["focal"] == "radial_helical" and tags["note"] == "a b"
    assert tags["perturbation"] == "repulsive"
    assert choice_tags(tiny("experiment=ablation"))["strategy"] == "random"
    assert choice_tags(tiny("router=dense"))["perturbation"] == "none"


def test_a_trial_is_called_by_its_number():
    tags = {"experiment": "-", "router": "prismatic", "perturbation": "repulsive", "focal": "none"}
    assert run_name(tags) == "prismatic repulsive"
    assert run_name({**tags, "trial": "3"}) == "3: repulsive"
    assert run_name({**tags, "trial": "3", "experiment": "delta_8"}) == "3: delta_8"


def test_a_weak_perturbation_is_told_with_its_remedy(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="prismatic")
    watched = [
        "callbacks=default",
        "~callbacks.progress",
        "~callbacks.pictures",
        "~callbacks.checkpoint",
    ]
    run(tiny("experiment=willow", "perturbation.scale=0.01", *watched), tmp_path / "weak")
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1 and "focal.units=fraction focal.length=0.1" in warned[0]
    caplog.clear()
    run(tiny("focal=helical", *watched), tmp_path / "strong")
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
    assert any("changes the wrapped weights by" in record.message for record in caplog.records)


def test_a_run_is_repeated_bit_for_bit(tmp_path):
    results = {run(tiny("perturbation=noise"), tmp_path / name) for name in ("one", "two")}
    assert len(results) == 1
    assert run(tiny("perturbation=noise", "seed=1"), tmp_path / "three") not in results


@pytest.mark.parametrize("name", ["fdr", "limit", "overfit", "profiler"])
def test_debug_runs_come_to_their_end(name, tmp_path):
    shorter = [] if name == "fdr" else ["trainer.max_steps=10", "trainer.val_check_interval=10"]
    assert run(tiny(f"debug={name}", *shorter), tmp_path) < 4


def test_training_ends_with_a_validation_whatever_the_interval(tmp_path):
    options = [
        "callbacks=default",
        "~callbacks.progress",
        "~callbacks.pictures",
        "trainer.max_steps=5",
    ]
    for interval in (3, 1000):
        folder = tmp_path / str(interval)
        run(tiny(*options, f"trainer.val_check_interval={interval}"), folder)
        last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        assert last["global_step"] == 5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "is at step 4 of trainer.max_steps=4: nothing is left to do"),
        (["model.dim=32", "trainer.max_steps=8"], "is of another model: .* has shape"),
    ],
)
def test_a_checkpoint_that_cannot_be_resumed_is_refused(run_dir, tmp_path, overrides, message):
    path = run_dir / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match=message):
        run(tiny(*text_data(tmp_path), f"ckpt_path={path}", *overrides), tmp_path / "again")


def test_a_truncated_checkpoint_is_named(run_dir):
    path = run_dir / "checkpoints" / "best.ckpt"
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=r"best.ckpt cannot be read: it is damaged"):
        prismatic.load(run_dir)


def test_a_damaged_manifest_is_named(run_dir):
    (run_dir / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.yaml or manifest.json is damaged"):
        prismatic.load(run_dir)


def test_a_users_own_root_keys_are_kept(tmp_path):
    run(tiny("+notes.why=curious", "+_group=7"), tmp_path)
    kept = OmegaConf.load(tmp_path / "config.yaml")
    assert kept.notes.why == "curious" and kept["_group"] == 7


def test_paths_are_absolute_and_begin_where_the_command_was_typed(tmp_path, monkeypatch):
    text_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    typed = ["data=text", "data.path=squares.txt", "ckpt_path='~/last.ckpt'"]
    config = pinned(tiny(*typed))
    assert config.data.path == str(tmp_path / "squares.txt")
    assert config.ckpt_path == str(tmp_path / "home" / "last.ckpt")
