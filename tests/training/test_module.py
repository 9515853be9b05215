import math
from contextlib import ExitStack

import pytest
import torch
from pytorch_lightning import Callback

from prismatic.bench.counting import counting
from prismatic.data import IGNORE
from prismatic.experiment import build
from prismatic.training import DivergedError, Optimization

from ..tiny import fit, text_data, tiny

CAUSAL = [
    ["router.level=token", "router.pool=causal_mean"],
    ["router.level=token", "router.pool=first"],
    ["router.level=token", "router.pool=last"],
    ["router.level=sequence", "router.pool=first"],
    ["router=constant"],
]
LEAKY = [
    [f"router.level={level}", f"router.pool={pool}"]
    for level, pool in [
        ("sequence", "mean"), ("sequence", "last"),
        ("batch", "mean"), ("batch", "first"), ("batch", "last"),
    ]
]  # fmt: skip
STRONG = ["focal=none", "perturbation.scale=1", "perturbation.sparsity=1", "perturbation=noise"]


@pytest.mark.parametrize("router", ["prismatic", "constant", "smear", "dense"])
def test_the_loss_goes_down_on_a_repeated_batch(router, tmp_path):
    _, losses = fit(
        tmp_path, f"router={router}", "trainer.overfit_batches=1", "trainer.max_steps=30",
        "trainer.limit_val_batches=0", "objective=loss/train", "optim.lr=0.02",
    )  # fmt: skip
    assert losses[-1] < losses[0] - 0.5
    assert losses[0] == pytest.approx(math.log(16), abs=0.1)


@pytest.mark.parametrize("routing", LEAKY, ids=" ".join)
def test_a_language_model_refuses_a_router_that_sees_the_future(routing, tmp_path):
    with pytest.raises(ValueError, match=r"not a likelihood.*allow_leak=true"):
        build(tiny(*routing), tmp_path)
    assert build(tiny(*routing, "router.allow_leak=true"), tmp_path)

    assert build(tiny("data=mixed", *routing), tmp_path), "scored at the last position"


@pytest.mark.parametrize("routing", CAUSAL, ids=" ".join)
def test_what_is_trained_to_predict_noise_does_not_beat_chance(routing, tmp_path):
    parts, _ = fit(
        tmp_path, *routing, *STRONG, "data.vocab_size=2", "data.held_out_tokens=4096",
        "trainer.max_steps=30", "optim.lr=0.01", "optim.batch_size=16",
    )  # fmt: skip
    mean, error = held_out_loss(parts)
    assert mean > math.log(2) - 4 * error


@pytest.mark.slow
def test_a_leak_beats_chance(tmp_path):
    parts, _ = fit(
        tmp_path, "router.level=sequence", "router.pool=last", "router.allow_leak=true", *STRONG,
        "data.vocab_size=2", "data.seq_len=2", "data.held_out_tokens=8192",
        "trainer.max_steps=600", "optim.batch_size=64", "optim.lr=0.01",
    )  # fmt: skip
    mean, error = held_out_loss(parts)
    assert mean < math.log(2) - 4 * error


def held_out_loss(parts):
    """Mean and standard error in nats, computed apart from what training logs."""
    batch = parts.task.held_out("val")
    with torch.no_grad():
        log_probs = parts.model.eval()(batch.tokens_BT).log_softmax(-1)
    loss = -log_probs.gather(-1, batch.targets_BT[..., None]).flatten().double()
    assert float(parts.trainer.callback_metrics["loss/val"]) == pytest.approx(float(loss.mean()))
    return float(loss.mean()), float(loss.std() / math.sqrt(len(loss)))


def test_scale_zero_is_the_dense_run_bit_for_bit(tmp_path):
    steps = [
        "trainer.max_steps=20",
        "trainer.gradient_clip_val=0.1",
        "trainer.val_check_interval=10",
    ]
    dense, dense_losses = fit(tmp_path / "d", "router=dense", *steps, *text_data(tmp_path))
    views, view_losses = fit(tmp_path / "v", "perturbation.scale=0", *steps, *text_data(tmp_path))
    assert dense_losses == view_losses
    trunk = {n: p for n, p in views.model.state_dict().items() if ".gate." not in n}
    expected = dense.model.state_dict()
    assert trunk.keys() == expected.keys()
    for name in trunk:
        assert torch.equal(trunk[name], expected[name]), name
    assert float(dense.trainer.callback_metrics["edge/grad_norm"]) > 0.1, "nothing was clipped"


RESUMED = {
    "plain": ["router=prismatic"],
    "dropout and drawn noise": ["router.expert_dropout=0.4", "perturbation=noise"],
    "smear": ["router=smear", "router.expert_dropout=0.4"],
    "accumulated": ["trainer.accumulate_grad_batches=2"],
    "recurrent": ["model.depth=3", "loss=eml"],
    "from between": ["trainer.val_check_interval=8"],
    "limited": ["trainer.limit_train_batches=3", "trainer.val_check_interval=8"],
    "reloaded": [
        "trainer.limit_train_batches=3", "+trainer.reload_dataloaders_every_n_epochs=1",
    ],
    "limited and accumulated": [
        "trainer.limit_train_batches=4", "trainer.accumulate_grad_batches=2",
        "trainer.val_check_interval=7",
    ],
    "overfitted": ["trainer.overfit_batches=3"],
}  # fmt: skip


RESUMED_QUICKLY = ("dropout and drawn noise", "from between", "limited and accumulated")
CASES = [
    pytest.param(options, id=name, marks=[] if name in RESUMED_QUICKLY else pytest.mark.slow)
    for name, options in RESUMED.items()
]


@pytest.mark.parametrize("options", CASES)
def test_resuming_continues_bit_for_bit(options, tmp_path):
    common = [
        "callbacks=default",
        "~callbacks.progress",
        "~callbacks.pictures",
        "optim.total_steps=40",
    ]
    common += ["trainer.val_check_interval=20", "trainer.limit_val_batches=2"]
    common += [*options, *text_data(tmp_path)]
    whole, expected = fit(tmp_path / "whole", *common, "trainer.max_steps=40")
    _, first = fit(tmp_path / "first", *common, "trainer.max_steps=20")
    kept = tmp_path / "first" / "checkpoints" / "last.ckpt"
    step = torch.load(kept, weights_only=True)["global_step"]
    resumed, second = fit(tmp_path / "second", *common, "trainer.max_steps=40", resume=kept)
    before = step * whole.trainer.accumulate_grad_batches
    assert first[:before] + second == expected
    assert resumed.trainer.global_step == 40
    logged = [p.trainer.callback_metrics for p in (whole, resumed)]
    timed = {name for name in logged[0] if name.startswith("time/")}
    assert {n: float(v) for n, v in logged[0].items() if n not in timed} == {
        n: float(v) for n, v in logged[1].items() if n not in timed
    }
    assert_equal(whole.model.state_dict(), resumed.model.state_dict())
    states = [p.trainer.optimizers[0].state_dict() for p in (whole, resumed)]
    assert_equal(*states)


def assert_equal(left, right):
    """Nested containers of tensors and numbers, equal to the bit."""
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_equal(left[key], right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for pair in zip(left, right, strict=True):
            assert_equal(*pair)
    else:
        assert left == right


def test_divergence_stops_the_run_and_says_what_to_do(tmp_path):
    with pytest.raises(DivergedError, match=r"step 1: the loss is nan.*Lower optim.lr") as stopped:
        fit(tmp_path, "optim.lr=1e30", "optim.warmup_steps=0")
    assert "warmup_steps" in str(stopped.value)


UNLOGGED = "trainer.log_every_n_steps=1000"


@pytest.mark.parametrize("options", [["trainer.log_every_n_steps=1"], [UNLOGGED]], ids=str)
@pytest.mark.parametrize("last", [4, 5])
def test_divergence_keeps_the_last_checkpoint(options, last, tmp_path):
    """In the step before a validation, which finds sound weights, or in the one after it."""
    config = tiny(
        "callbacks=default", "~callbacks.progress", "~callbacks.pictures", "trainer.max_steps=10",
        "trainer.val_check_interval=2", *options,
    )  # fmt: skip
    parts = build(config, tmp_path)
    right = parts.learner.criterion

    def breaks(logits, targets):
        loss = right(logits, targets)
        return loss + math.inf if parts.trainer.global_step == last else loss

    parts.learner.criterion = breaks
    with pytest.raises(DivergedError, match=f"step {last}: the loss is inf"):
        parts.trainer.fit(parts.learner, parts.data)
    kept = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 4
    assert all(t.isfinite().all() for t in kept["state_dict"].values() if torch.is_tensor(t))


def test_a_divergence_in_the_last_step_is_no_result(tmp_path):
    """The weights break in the very step after which the run would be measured."""
    checkpoints = ["callbacks=default", "~callbacks.progress", "~callbacks.pictures"]
    with pytest.raises(DivergedError, match="step 1: the loss is nan"):
        fit(tmp_path, "optim.lr=1e30", "optim.warmup_steps=0", "trainer.max_steps=1", *checkpoints)
    assert not list(tmp_path.glob("checkpoints/*.ckpt")), "no broken weights are kept"


class Waits(Callback):
    """Counts what the third step waits for."""

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == 2:
            self.stack = ExitStack()
            self.counts = self.stack.enter_context(counting())

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 3:
            self.stack.close()


SOLVED = ["perturbation.strength=0.01", "focal=none"]
LAST_LOSS = {"_local_scalar_dense": 1}


@pytest.mark.parametrize(
    ("router", "waits"),
    [
        (["router=dense"], LAST_LOSS),
        (["router.level=token"], LAST_LOSS),
        (SOLVED, LAST_LOSS | {"tolist": 1}),  # whether the scales of all tensors are allowed
    ],
    ids=str,
)
def test_an_unlogged_step_waits_for_the_last_loss_alone(router, waits, tmp_path, monkeypatch):
    # AdamW counts its steps in tensors that lie on the host, which are no waits.
    monkeypatch.setattr(
        Optimization, "optimizer", lambda self, model: torch.optim.SGD(model.parameters())
    )
    recorded = ["callbacks=default", "~callbacks.progress", "~callbacks.pictures"]
    parts = build(tiny(*router, *recorded, UNLOGGED), tmp_path)
    seen = Waits()
    parts.trainer.callbacks.append(seen)
    parts.trainer.fit(parts.learner, parts.data)
    assert dict(seen.counts.syncs) == waits
    assert len(parts.learner.log_norms) == 2, "of the steps after warm-up"


def test_validation_counts_every_scored_token_once(tmp_path):

    parts = build(tiny("data=mixed", "data.held_out_size=10"), tmp_path)
    parts.trainer.fit(parts.learner, parts.data)
    batch = parts.task.held_out("val")
    with torch.no_grad():
        log_probs = parts.model(batch.tokens_BT).log_softmax(-1)
    scored = batch.targets_BT != IGNORE
    expected = -log_probs[scored].gather(-1, batch.targets_BT[scored][:, None]).mean()
    assert float(parts.trainer.callback_metrics["loss/val"]) == pytest.approx(float(expected))


def test_what_is_logged(tmp_path):
    parts, losses = fit(tmp_path, *text_data(tmp_path), "router.num_experts=2", "loss=eml")
    logged = {name: float(value) for name, value in parts.trainer.callback_metrics.items()}
    assert logged["loss/criterion"] == pytest.approx(losses[-1])
    assert logged["loss/train"] < logged["loss/criterion"], "eml adds p to -ln p"
    assert logged["loss/bits_per_byte"] == pytest.approx(logged["loss/val"] / math.log(2))
    names = "optim/lr edge/grad_norm routing/entropy routing/concentration routing/variance"
    names += " routing/input_dependence routing/expert_1_weight routing/pass_1/expert_0_weight"
    names += " routing/merged_relative_norm views/1/relative_norm views/relative_norm"
    assert {*names.split(), "views/disagreement"} <= logged.keys()
    assert parts.learner.live.keys() == {"loss", "bits/byte", "routing entropy"}


def test_domains_are_measured_apart_where_they_are_seen(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.txt").write_text(f"{name} " * 2000)
    data = ["data=text", f"data.path={folder}", "data.seq_len=16"]
    few = fit(tmp_path / "few", *data, "trainer.limit_val_batches=1", "optim.batch_size=2")[0]
    all_ = fit(tmp_path / "all", *data)[0]
    by_domain = [
        {n: float(v) for n, v in p.trainer.callback_metrics.items() if n.startswith("loss/val/")}
        for p in (few, all_)
    ]
    assert len(by_domain[0]) < 3, "nothing of what was not seen"
    assert len(by_domain[1]) == 3
    assert all(math.isfinite(value) for values in by_domain for value in values.values())
    mean = sum(by_domain[1].values()) / 3  # the domains are of one size
    assert mean == pytest.approx(float(all_.trainer.callback_metrics["loss/val"]), rel=1e-5)


def test_penalties_are_optimised_and_told_apart(tmp_path):
    _, plain = fit(tmp_path, "trainer.max_steps=1")
    parts, penalised = fit(tmp_path, "trainer.max_steps=1", "router.z_loss=1")
    logged = parts.trainer.callback_metrics
    assert float(logged["loss/train"]) == plain[0]
    # Routing starts near uniform logits 0, where the log-partition of 4 views is ln 4.
    assert penalised[0] - plain[0] == pytest.approx(math.log(4) ** 2, rel=0.05)


def test_a_clip_value_that_would_turn_or_stop_training_is_refused(tmp_path):
    for value in (0, -1):
        with pytest.raises(ValueError, match=f"trainer.gradient_clip_val={value} is not valid"):
            fit(tmp_path, f"trainer.gradient_clip_val={value}")
    fit(tmp_path, "trainer.gradient_clip_val=null")


def test_the_last_checkpoint_is_the_last_even_where_it_is_not_the_best(tmp_path):
    """On noise the held-out loss soon rises."""
    fit(
        tmp_path, "callbacks=default", "~callbacks.progress", "~callbacks.pictures",
        "optim.lr=0.05", "trainer.max_steps=8", "trainer.val_check_interval=2",
    )  # fmt: skip
    steps = {
        name: torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)[
            "global_step"
        ]
        for name in ("best", "last")
    }
    assert steps["best"] < steps["last"] == 8
