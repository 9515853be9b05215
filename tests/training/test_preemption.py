"""A training that is ended from outside goes on as if it had not been."""

import os
import signal

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.utilities.exceptions import SIGTERMException

from prismatic import experiment
from prismatic.experiment import build, run, train
from prismatic.report import record

from ..tiny import fit, text_data, tiny

KEPT = [
    "callbacks=default", "~callbacks.progress", "~callbacks.pictures", "optim.total_steps=8",
    "trainer.max_steps=8", "trainer.val_check_interval=3",
]  # fmt: skip


class Kill(Callback):
    """Sends this process a signal before a training batch, or within a validation after it."""

    def __init__(self, batch, sent=signal.SIGTERM, validating=False):
        self.batch, self.sent, self.validating = batch, sent, validating

    def send(self, trainer, validating):
        done = trainer.fit_loop.epoch_loop.batch_progress.total.completed
        if done == self.batch and validating == self.validating:
            os.kill(os.getpid(), self.sent)

    def on_train_batch_start(self, trainer, *args):
        self.send(trainer, False)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, *args):
        if batch_idx == 1:
            self.send(trainer, True)


CASES = {
    "SIGTERM in training": ([], Kill(4), 5),
    "SIGUSR1 within an accumulation": (
        ["trainer.accumulate_grad_batches=2", "trainer.limit_train_batches=4"],
        Kill(6, signal.SIGUSR1), 3,
    ),
    "SIGTERM in validation": ([], Kill(6, validating=True), 6),
}  # fmt: skip


@pytest.mark.parametrize(("options", "kill", "step"), CASES.values(), ids=CASES)
def test_a_signal_leaves_a_checkpoint_from_which_nothing_differs(options, kill, step, tmp_path):
    options = [*KEPT, *options, *text_data(tmp_path)]
    whole, losses = fit(tmp_path / "whole", *options)
    parts = build(tiny(*options), tmp_path / "first")
    parts.trainer.callbacks.append(kill)
    with pytest.raises(SIGTERMException) as ended:
        parts.trainer.fit(parts.learner, parts.data)
    assert ended.value.code == 143, "which a sweep takes for a trial that was lost, not for failed"
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == step
    resumed, rest = fit(tmp_path / "second", *options, resume=last)
    assert losses[-len(rest) :] == rest
    for name, value in whole.model.state_dict().items():
        assert not torch.is_tensor(value) or torch.equal(value, resumed.model.state_dict()[name])
    later = record.read(tmp_path / "second" / record.FILE).series("loss/val")
    seen = dict(zip(*record.read(tmp_path / "whole" / record.FILE).series("loss/val"), strict=True))
    due = step if kill.validating else step + 1
    assert dict(zip(*later, strict=True)) == {at: x for at, x in seen.items() if at >= due}


def test_broken_weights_take_the_place_of_no_checkpoint(tmp_path):
    parts = build(tiny(*KEPT), tmp_path)

    class Break(Kill):
        def on_train_batch_start(self, trainer, *args):
            super().on_train_batch_start(trainer, *args)
            if trainer.global_step == self.batch:
                parts.learner.criterion = lambda logits, targets: logits.sum() * 0 + 1
                with torch.no_grad():
                    parts.model.norm.weight.fill_(torch.inf)

    parts.trainer.callbacks.append(Break(4))
    with pytest.raises((SIGTERMException, FloatingPointError)):
        parts.trainer.fit(parts.learner, parts.data)
    kept = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 3


def test_after_max_time_the_next_process_has_its_own_time(tmp_path):
    short = [*KEPT, "trainer.max_time={milliseconds: 1}", *text_data(tmp_path)]
    last = tmp_path / "checkpoints" / "last.ckpt"
    for step in (1, 2, 3):
        fit(tmp_path, *short, resume=last if step > 1 else None)
        assert torch.load(last, weights_only=True)["global_step"] == step


def ended_by_signal(config, folder, sent=signal.SIGTERM):
    with pytest.raises(SIGTERMException):
        train(config, folder, callbacks=[Kill(4, sent)])


def test_the_same_configuration_goes_on_in_its_folder(tmp_path):
    config = tiny(*KEPT, "resume=auto", *text_data(tmp_path))
    expected = run(tiny(*KEPT, *text_data(tmp_path)), tmp_path / "whole")
    ended_by_signal(config, tmp_path / "auto")
    assert run(config, tmp_path / "auto") == expected
    steps = record.read(tmp_path / "auto" / record.FILE).series("loss/train")[0].tolist()
    assert steps == list(range(1, 9))
    (tmp_path / "auto" / "checkpoints" / "last.ckpt").rename(tmp_path / "kept.ckpt")
    assert run(config, tmp_path / "auto") == expected, "it is finished"
    assert not (tmp_path / "auto" / "checkpoints" / "last.ckpt").exists()


def test_after_a_time_limit_the_cluster_is_asked_once_to_run_it_again(tmp_path, monkeypatch):
    command, asked = tmp_path / "bin" / "scontrol", tmp_path / "asked"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    data = text_data(tmp_path)
    ended_by_signal(tiny(*KEPT, "resume=auto", *data), tmp_path / "ended", sent=signal.SIGTERM)
    ended_by_signal(tiny(*KEPT, *data), tmp_path / "unasked", sent=signal.SIGUSR1)
    assert not asked.exists()
    ended_by_signal(tiny(*KEPT, "resume=auto", *data), tmp_path / "again", sent=signal.SIGUSR1)
    assert asked.read_text() == "requeue 17\n"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_run_that_was_moved_knows_its_best(elsewhere, tmp_path):
    data = text_data(tmp_path)
    first = fit(tmp_path / "first", *KEPT, *data, "trainer.max_steps=4")[0]
    moved = (tmp_path / "first").rename(tmp_path / "moved")
    folder = tmp_path / "other" if elsewhere else moved
    resumed = build(tiny(*KEPT, *data), folder)
    known = []

    class Look(Callback):
        def on_train_start(self, trainer, *args):
            best = trainer.checkpoint_callback
            known.extend([best.best_model_path, best.best_model_score])

    resumed.trainer.callbacks.append(Look())
    last = moved / "checkpoints" / "last.ckpt"
    resumed.trainer.fit(resumed.learner, resumed.data, ckpt_path=last, weights_only=True)
    before = first.trainer.checkpoint_callback.best_model_score
    here = str(moved / "checkpoints" / "best.ckpt")
    assert known == (["", None] if elsewhere else [here, before])


@pytest.mark.parametrize("changed", [False, True])
def test_a_trial_that_a_sweep_runs_again_goes_on_where_it_was(changed, tmp_path, monkeypatch):
    config = tiny(*KEPT, *text_data(tmp_path))
    ended_by_signal(config, tmp_path / "trial")
    monkeypatch.setattr(experiment, "in_sweep", lambda: True)
    begun = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, *args):
            begun.append(trainer.global_step)

    if changed:
        config.optim.lr = 0.01
    train(config, tmp_path / "trial", callbacks=[Look()])
    assert begun[0] == (0 if changed else 5)


def test_a_script_finds_its_folder_again(script, tmp_path):
    options = ["model=tiny", "data=iid", "data.seq_len=8", "data.held_out_tokens=64"]
    options += ["trainer.max_steps=2", "optim.batch_size=2", "logger=none", "~callbacks.pictures"]
    first = script("train", *options, "resume=auto", "trainer.max_time={milliseconds: 1}")
    assert first.status == 0, first.err
    [folder] = (tmp_path / "outputs" / "runs" / "auto").iterdir()
    last = folder / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 1
    again = script("train", *options, "resume=auto", "trainer.max_time={milliseconds: 1}")
    assert again.status == 0 and torch.load(last, weights_only=True)["global_step"] == 2
    assert [folder] == list((tmp_path / "outputs" / "runs" / "auto").iterdir())
    refused = script("train", *options, "resume=auto", f"ckpt_path={last}")
    assert refused.status == 1 and "no ckpt_path beside auto" in refused.err
