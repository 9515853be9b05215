"""The real commands, from another directory: train, look into MLflow, evaluate, load."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from torch.nn import functional as F

import prismatic
from prismatic.evaluation.single_run import evaluate

from .tiny import MODEL, ROOT, TEXT

STEPS = 6


def command(name, *arguments, folder):
    """Run a script as a user would, with everything it writes kept below `folder`."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "PRISMATIC"))}
    done = subprocess.run(
        [sys.executable, str(ROOT / "src" / f"{name}.py"), *arguments], cwd=folder,
        env=environment | {"PRISMATIC_OUTPUTS": str(folder / "outputs")},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The command of the README at its smallest, on two domains of text."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "text").mkdir()
    (folder / "text" / "squares.txt").write_text(TEXT)
    (folder / "text" / "letters.txt").write_text("abc äöü " * 1000)
    done = command(
        "train", "perturbation=attractive", "focal=radial_helical", *MODEL, "model.depth=3",
        "data=text", "data.path=text", "data.seq_len=16", f"trainer.max_steps={STEPS}",
        "trainer.val_check_interval=3", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu",
        "optim.batch_size=4", "optim.warmup_steps=2", "+tags.note=tiny", folder=folder,
    )  # fmt: skip
    [config] = folder.glob("outputs/runs/*/*/config.yaml")
    return folder, config.parent, done


@pytest.fixture(scope="module")
def evaluated(trained):
    folder, run_dir, _ = trained
    return command("eval", f"run={run_dir}", "prompt='7 squared is'", "count=20", folder=folder)


@pytest.fixture(scope="module")
def recorded(trained):
    """The run in MLflow: client and run."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{trained[0]}/outputs/mlflow.db")
    [experiment] = [e for e in client.search_experiments() if e.name == "prismatic"]
    [run] = client.search_runs([experiment.experiment_id])
    return client, run


def test_the_run_folder_is_complete(trained):
    folder, run_dir, done = trained
    assert run_dir.is_relative_to(folder / "outputs")
    kept = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "manifest.json",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
    } <= kept
    assert "the strongest view changes" in done.stdout
    assert "unigram (baseline)" in done.stdout and "bigram (baseline)" in done.stdout
    assert f"python src/eval.py run={run_dir}" in done.stdout
    assert "make ui" in done.stdout
    assert ", validation loss " in done.stdout, "a line at each validation"
    assert "Warning" not in done.stderr
    assert {path.name for path in folder.iterdir()} == {"text", "outputs"}, "nothing lies around"


def test_mlflow_has_the_metrics(recorded):
    client, run = recorded
    metrics = run.data.metrics
    passes = [f"routing/pass_{t}/expert_{i}_weight" for t in range(3) for i in range(4)]
    expected = {
        "loss/train", "loss/val", "loss/criterion", "loss/bits_per_byte", "optim/lr", "time/step",
        "loss/val/squares.txt", "loss/val/letters.txt", "time/tokens_per_second", "edge/grad_norm",
        "routing/entropy", "routing/concentration", "routing/variance", "routing/input_dependence",
        "routing/merged_relative_norm", "views/relative_norm", "views/share_moved",
        "views/disagreement", "baseline/unigram", "baseline/bigram", *passes,
        *(f"routing/expert_{i}_weight" for i in range(4)),
        *(f"views/{i}/relative_norm" for i in range(1, 4)),
    }  # fmt: skip
    assert expected <= metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values())
    assert sum(metrics[f"routing/expert_{i}_weight"] for i in range(4)) == pytest.approx(1)
    history = client.get_metric_history(run.info.run_id, "loss/train")
    assert [point.step for point in history] == list(range(STEPS))
    validated = client.get_metric_history(run.info.run_id, "loss/val")
    assert len(validated) == 2 and validated[-1].value == metrics["loss/val"]
    assert metrics["best/loss/val"] == min(point.value for point in validated)
    assert metrics["objective/loss/val"] == metrics["loss/val"]
    assert metrics["loss/bits_per_byte"] == pytest.approx(metrics["loss/val"] / math.log(2))


def test_mlflow_has_tags_parameters_and_artifacts(recorded, trained):
    client, run = recorded
    tags, params = run.data.tags, run.data.params
    assert run.info.status == "FINISHED"
    chosen = "perturbation focal strategy sparsity router data experiment".split()
    assert [tags[name] for name in chosen] == [
        "attractive", "radial_helical", "dual_sided", "0.1", "prismatic", "text", "-",
    ]  # fmt: skip
    assert tags["note"] == "tiny" and tags["run_dir"] == str(trained[1])
    assert {"git_commit", "dirty"} <= tags.keys() and "leaky" not in tags
    assert params["perturbation.scale"] == "0.8" and params["model.depth"] == "3"
    artifacts = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "manifest.json", "provenance.json", "dirty.diff"} <= artifacts
    kept = {
        name: Path(client.download_artifacts(run.info.run_id, name)).read_text()
        for name in ("config.yaml", "provenance.json")
    }
    assert kept["config.yaml"] == (trained[1] / "config.yaml").read_text()
    assert {"torch", "mlflow", "python"} <= json.loads(kept["provenance.json"])["versions"].keys()


def test_eval_reports_losses_and_a_continuation(trained, evaluated):
    table, _, text = evaluated.stdout.partition("--- continuation ---\n")
    found = dict(line.split(maxsplit=1) for line in table.strip().splitlines())
    written = json.loads((trained[1] / "eval.json").read_text())
    assert found["checkpoint"] == "best"
    names = ["loss/test", "loss/test_bits_per_byte", "loss/test/squares.txt"]
    names += ["loss/test/letters.txt", *(f"views/{i}/loss_test" for i in range(4))]
    for name in names:
        assert float(found[name]) == pytest.approx(written[name], abs=1e-4)
    assert len({written[f"views/{i}/loss_test"] for i in range(4)}) > 1
    assert text.startswith("7 squared is") and len(text.encode()) > len("7 squared is") + 15


def test_a_loaded_model_has_the_loss_that_eval_reports(trained, evaluated, monkeypatch):
    folder, run_dir, _ = trained
    monkeypatch.chdir(folder)  # where the run's data.path was said
    model, config = prismatic.load(run_dir)
    batch = instantiate(config.data).held_out("test")
    with torch.no_grad():
        logits_BTV = model(batch.tokens_BT)
    loss = F.cross_entropy(logits_BTV.flatten(0, 1), batch.targets_BT.flatten())
    written = json.loads((run_dir / "eval.json").read_text())
    assert float(loss) == pytest.approx(written["loss/test"], rel=1e-5)
    with model.forced(2), torch.no_grad():
        alone = F.cross_entropy(model(batch.tokens_BT).flatten(0, 1), batch.targets_BT.flatten())
    assert float(alone) == pytest.approx(written["views/2/loss_test"], rel=1e-5)


def test_eval_refuses_other_data_than_the_run_had(trained, monkeypatch):
    folder, run_dir, _ = trained
    monkeypatch.chdir(folder)
    text = folder / "text" / "squares.txt"
    before = text.read_text()
    try:
        text.write_text(before + "one line more\n")
        with pytest.raises(ValueError, match=r"data squares.txt are not what the run was trained"):
            evaluate(run_dir)
    finally:
        text.write_text(before)


def test_eval_refuses_a_damaged_checkpoint(trained, script, monkeypatch):
    folder, run_dir, _ = trained
    monkeypatch.chdir(folder)
    last = run_dir / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    try:
        last.write_bytes(whole[:1000])
        outcome = script("eval", f"run={run_dir}", "checkpoint=last")
    finally:
        last.write_bytes(whole)
    assert outcome.status == 1 and "Traceback" not in outcome.err
    assert f"{last} cannot be read: it is damaged" in outcome.err
    outcome = script("eval", f"run={run_dir}", "temperature=-1")
    assert outcome.status == 1 and "temperature=-1 is not valid" in outcome.err
