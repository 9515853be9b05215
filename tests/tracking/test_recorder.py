"""Runs in MLflow, read back through MLflow's own client."""

import math
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from prismatic.tracking import connect
from prismatic.tracking.logger import MLflowLogger


@pytest.fixture
def client_class(store):
    # mlflow is imported by connect, which switches its telemetry off before.
    return type(connect(store))


@pytest.fixture
def batches(client_class, monkeypatch):
    """The sizes of the metric batches that were sent."""
    sizes = []
    send = client_class.log_batch

    def count(self, run_id, metrics=(), **others):
        if metrics:
            sizes.append(len(metrics))
        return send(self, run_id, metrics=metrics, **others)

    monkeypatch.setattr(client_class, "log_batch", count)
    return sizes


def history(logger, key):
    """(step, value) of every stored value, by step."""
    logger.flush()
    found = logger.experiment.get_metric_history(logger.version, key)
    return sorted((metric.step, metric.value) for metric in found)


def run_of(logger):
    return logger.experiment.get_run(logger.version)


def test_values_are_read_back_as_they_were_when_logged(store):
    logger = MLflowLogger(store)
    value = torch.tensor(2.0)
    for step in range(5):
        logger.log_metrics({"train/loss": -1.0 / 3**step, "same": value}, step)
        value += 1
    odd = {"nan": math.nan, "up": math.inf, "down": -math.inf}
    logger.log_metrics(odd)
    assert history(logger, "train/loss") == [(step, -1.0 / 3**step) for step in range(5)]
    assert history(logger, "same") == [(step, 2.0 + step) for step in range(5)]
    assert math.isnan(history(logger, "nan")[0][1])
    assert history(logger, "up") == [(0, sys.float_info.max)]
    assert history(logger, "down") == [(0, -sys.float_info.max)]


def test_a_full_buffer_is_one_batch(store, batches):
    logger = MLflowLogger(store, buffer=10, flush_seconds=1e9)
    for step in range(7):
        logger.log_metrics({"a": step, "b": step, "c": step}, step)
        logger.save()  # as Lightning does after every call
    assert batches == [9, 9]
    logger.finalize("success")
    assert batches == [9, 9, 3]
    assert len(history(logger, "c")) == 7


def test_more_metrics_than_one_batch_may_hold(store):
    logger = MLflowLogger(store)
    logger.log_metrics({f"m/{number}": number for number in range(1100)})
    logger.flush()
    assert run_of(logger).data.metrics == {f"m/{number}": number for number in range(1100)}


def test_old_metrics_are_written_by_time(store, batches, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    logger = MLflowLogger(store, flush_seconds=10)
    for pause, written in ((0, []), (10, [2]), (9, [2])):
        clock.now += pause
        logger.log_metrics({"a": 1.0})
        assert batches == written


def test_metrics_outlive_a_failed_write(store, client_class, monkeypatch):
    logger = MLflowLogger(store)
    logger.log_metrics({"a": 1.0}, 3)
    with monkeypatch.context() as patch:
        patch.setattr(client_class, "log_batch", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            logger.finalize("success")
    assert run_of(logger).info.status == "FINISHED"
    assert history(logger, "a") == [(3, 1.0)]


def test_hyperparameters_are_dotted_and_kept_whole(store, tmp_path):
    logger = MLflowLogger(store)
    text = "".join(str(number) for number in range(3000))
    nested = {"perturbation": {"scale": 0.1, "none": {}}, "betas": [0.9, 0.95], "text": "x" * 5999}
    many = {f"key{number}": number for number in range(230)}
    logger.log_hyperparams(nested | many | {"data": {"path": text}})
    params = run_of(logger).data.params
    cut = params.pop("data.path")
    assert len(cut) == 6000 and cut.endswith("... [whole value: params/data.path.txt]")
    assert params == {
        "perturbation.scale": "0.1", "perturbation.none": "{}", "betas": "[0.9, 0.95]",
        "text": "x" * 5999, **{key: str(value) for key, value in many.items()},
    }  # fmt: skip
    whole = logger.experiment.download_artifacts(
        logger.version, "params/data.path.txt", str(tmp_path)
    )
    assert Path(whole).read_text() == text


@pytest.mark.parametrize(
    "said, error, stored",
    [
        ("success", None, "FINISHED"), ("finished", None, "FINISHED"), ("failed", None, "FAILED"),
        ("failed", KeyboardInterrupt, "KILLED"), ("failed", SystemExit, "KILLED"),
    ],
)  # fmt: skip
def test_how_a_run_ends(store, said, error, stored):
    logger, ends = MLflowLogger(store), []
    logger.log_metrics({"a": 1.0})
    for _ in range(2):
        try:
            if error is not None:
                raise error
            logger.finalize(said)
        except (KeyboardInterrupt, SystemExit):
            logger.finalize(said)
        ends.append(run_of(logger).info)
    assert ends[0].status == ends[1].status == stored
    assert ends[0].end_time == ends[1].end_time
    assert history(logger, "a") == [(0, 1.0)]


def test_the_last_status_wins_and_a_wrong_one_is_refused(store):
    logger = MLflowLogger(store)
    logger.log_metrics({"a": 1.0})
    logger.finalize("success")
    logger.end("FAILED")
    assert run_of(logger).info.status == "FAILED"
    with pytest.raises(ValueError, match="'PRUNED' is not valid: choose one of FINISHED"):
        logger.end("PRUNED")


def test_a_run_that_goes_on_after_its_end_ends_later(store):
    logger = MLflowLogger(store)
    logger.log_metrics({"a": 1.0})
    logger.finalize("success")  # Lightning after fit
    first = run_of(logger).info
    time.sleep(0.002)
    logger.log_metrics({"test/loss": 1.0})
    logger.finalize("success")  # and after test
    assert run_of(logger).info.end_time > first.end_time


def test_an_unused_logger_leaves_no_run(store):
    MLflowLogger(store, experiment_name="unused").finalize("success")
    assert connect(store).get_experiment_by_name("unused") is None


def test_resume_appends(store):
    first = MLflowLogger(store, tags={"kept": "yes"})
    first.log_hyperparams({"steps": 20, "seed": 1})
    for step in range(4):  # killed after a checkpoint at step 2
        first.log_metrics({"a": float(step)}, step)
    first.finalize("failed")
    again = MLflowLogger(store, run_id=first.version, tags={"more": "yes"})
    again.log_hyperparams({"steps": 40, "seed": 1, "new": 2})
    for step in range(2, 6):
        again.log_metrics({"a": float(step), "new": 1.0}, step)
        again.flush()
    again.log_metrics({"a": 9.0}, 0)
    assert run_of(again).info.status == "RUNNING"
    again.finalize("success")
    run = run_of(first)
    assert again.version == first.version
    assert run.info.status == "FINISHED"
    steps = [(float(step), float(step)) for step in range(6)]
    assert history(first, "a") == [steps[0], (0, 9.0), *steps[1:]]
    assert [step for step, _ in history(first, "new")] == [2, 3, 4, 5]
    assert run.data.params == {"steps": "20", "seed": "1", "new": "2"}
    assert run.data.tags["changed.steps"] == "40"
    assert "changed.seed" not in run.data.tags
    assert (run.data.tags["kept"], run.data.tags["more"]) == ("yes", "yes")


def test_names_tags_and_parent(store):
    parent = MLflowLogger(store, "sweeps", run_name="the sweep")
    child = MLflowLogger(store, "sweeps", tags={"focal": "radial"}, parent_run_id=parent.version)
    child.set_tags({"number": 3})
    run = run_of(child)
    assert run.data.tags["mlflow.parentRunId"] == parent.version
    assert (run.data.tags["focal"], run.data.tags["number"]) == ("radial", "3")
    assert "mlflow.user" in run.data.tags
    assert run_of(parent).info.run_name == "the sweep"
    assert run.info.experiment_id == run_of(parent).info.experiment_id


def test_a_description_shows_pictures_among_the_artifacts(store):
    logger = MLflowLogger(store)
    logger.describe("**good**", ["report/a.png", "b.png"])
    logger.prefix = "seed_1/"
    logger.describe("one of several")
    source = f"get-artifact?run_uuid={logger.version}&path="
    assert run_of(logger).data.tags["mlflow.note.content"].split("\n\n") == [
        "**good**", f"![report/a.png]({source}report/a.png)", f"![b.png]({source}b.png)",
    ]  # fmt: skip


def test_artifacts_are_texts_json_and_files(store, tmp_path):
    (tmp_path / "plot.png").write_bytes(bytes(range(256)))
    logger = MLflowLogger(store)
    logger.log_artifact_text("config/resolved.yaml", "größe: 1\n")
    logger.log_artifact_json("manifest.json", {"bytes": 3, "path": Path("a")})
    logger.log_file(tmp_path / "plot.png", "plots")
    logger.prefix = "seed_1/"
    logger.log_file(tmp_path / "plot.png")
    folder = Path(logger.experiment.download_artifacts(logger.version, "", str(tmp_path)))
    assert (folder / "config/resolved.yaml").read_text(encoding="utf-8") == "größe: 1\n"
    assert (folder / "manifest.json").read_text() == '{\n  "bytes": 3,\n  "path": "a"\n}\n'
    for name in ("plots/plot.png", "seed_1/plot.png"):
        assert (folder / name).read_bytes() == bytes(range(256))


def test_nothing_is_written_above_rank_zero(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = MLflowLogger(f"sqlite:///{tmp_path}/deep/mlflow.db", buffer=1, flush_seconds=0)
    logger.log_metrics({"a": 1.0, "b": 2.0}, 0)
    logger.log_hyperparams({"long": "x" * 7000})
    logger.log_artifact_json("a.json", {})
    logger.log_file(__file__)
    logger.set_tags({"a": 1})
    logger.save()
    logger.flush()
    logger.finalize("success")
    assert logger.version == ""
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    logger.finalize("success")  # nothing waits either
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("wrong", [{"buffer": 0}, {"flush_seconds": -1.0}])
def test_nonsense_is_refused(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        MLflowLogger("sqlite:///never.db", **wrong)


class Interrupted(LightningModule):
    """Logs each step and raises `error` in the third."""

    def __init__(self, error):
        super().__init__()
        self.error = error
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(5))

    def training_step(self, batch, index):
        if index == 2 and self.error is not None:
            raise self.error
        self.log("train/loss", float(index))
        return (self.weight * batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize(
    "error, status, steps",
    [(None, "FINISHED", 5), (KeyboardInterrupt(), "KILLED", 2), (ValueError(), "FAILED", 2)],
)
def test_lightning_ends_the_run(store, tmp_path, batches, error, status, steps):
    logger = MLflowLogger(store, flush_seconds=1e9)
    trainer = Trainer(
        max_epochs=1, logger=logger, log_every_n_steps=1, accelerator="cpu",
        default_root_dir=tmp_path, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(Interrupted(error))
    except (SystemExit, ValueError) as raised:
        assert error is not None, raised
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores Ctrl-C after the first
    assert run_of(logger).info.status == status
    assert history(logger, "train/loss") == [(step, float(step)) for step in range(steps)]
    assert len(batches) == 1
