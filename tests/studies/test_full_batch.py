from math import log

import numpy as np
import pytest
import torch

from prismatic.data import IGNORE, Batch, MixedTask, sum_mod, uneven
from prismatic.experiment import build
from prismatic.stats import loss_ladder
from prismatic.studies import full_batch as together

from ..tiny import composed

SMALL = ["data=mixed", "data.joint.n=3", "data.joint.noise=0", "data.held_out_size=9"]
SMALL += ["model.dim=8", "model.num_layers=1", "model.num_heads=2", "model.positions=learned"]
SMALL += ["model.mlp=none", "model.final_norm=false", "router=dense", "focal=none"]
SMALL += ["callbacks=none", "logger=none", "trainer.accelerator=cpu", "optim.warmup_steps=3"]
SMALL += ["trainer.max_steps=12", "trainer.val_check_interval=12", "trainer.gradient_clip_val=0.05"]
UNIFORM, CONSTANT = (
    f"model.attention={{_target_: prismatic.studies.protocols.floor.{kind}, _partial_: true}}"
    for kind in ("Uniform", "Constant")
)
BY_SEQUENCE = ["router.level=sequence", "router.pool=mean", UNIFORM]
ROUTED = ["router=prismatic", *BY_SEQUENCE]


def small(*overrides):
    return composed(*SMALL, *overrides)


def weights(config, seeds, monkeypatch):
    """The weights of every seed after `train`."""
    kept = []
    whole = together.measures

    def measures(model, *args):
        kept.append({k: v.clone() for k, v in model.state_dict().items() if "extra" not in k})
        return whole(model, *args)

    monkeypatch.setattr(together, "measures", measures)
    metrics = together.train(config, seeds)
    monkeypatch.setattr(together, "measures", whole)
    return metrics, kept


def assert_close(a, b):
    """To rounding: AdamW divides small gradients by their own size, which makes errors larger."""
    assert a.keys() == b.keys()
    assert {k: v for k, v in a.items() if not torch.allclose(v, b[k], atol=1e-4)} == {}


@pytest.mark.parametrize(
    "variant",
    [[], ["model.positions=rope", "model.final_norm=true"], [CONSTANT],
     ["model.num_layers=2", "model.mlp=gelu", "optim.weight_decay=0.5"]],
    ids=str,
)  # fmt: skip
def test_stacked_seeds_learn_what_each_learns_alone(variant, monkeypatch):
    metrics, stacked = weights(small(*variant), [0, 5, 7], monkeypatch)
    monkeypatch.setattr(together, "stackable", lambda router: False)
    for seed, own in zip((0, 5, 7), stacked, strict=True):
        alone, (model,) = weights(small(*variant), [seed], monkeypatch)
        assert_close(own, model)
        assert metrics[seed] == pytest.approx(alone[seed], abs=1e-4)
    assert metrics[0]["loss/val"] != metrics[5]["loss/val"]


class EveryPair(MixedTask):
    """Hands out every pair of tokens once: a full batch, for tables of a function."""

    def draw(self, rng, size):
        tokens_BT = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        z_B = torch.from_numpy(self.joint_XYZ.argmax(2).ravel())
        targets_BT = torch.stack([torch.full_like(z_B, IGNORE), z_B], 1)
        return Batch(tokens_BT, targets_BT, torch.zeros_like(z_B))


@pytest.mark.parametrize("router", [[], ROUTED, ["router=smear", *BY_SEQUENCE]], ids=str)
def test_a_seed_learns_what_a_run_learns_from_full_batches(router, tmp_path, monkeypatch):
    metrics, (_, own) = weights(small(*router), [4, 5], monkeypatch)
    config = small(*router, "seed=5")
    monkeypatch.setattr("prismatic.experiment.instantiate", everything(config))
    parts = build(config, tmp_path)
    parts.trainer.fit(parts.learner, parts.data)
    theirs = {k: v for k, v in parts.model.state_dict().items() if "extra" not in k}
    assert_close(own, theirs)
    losses = parts.trainer.callback_metrics
    assert metrics[5]["loss/val"] == pytest.approx(float(losses["loss/val"]), abs=1e-5)


def everything(config):
    """Hydra's `instantiate`, with the task of full batches instead of the drawn one."""
    from hydra.utils import instantiate

    task = EveryPair(sum_mod(3, 0), 9)
    return lambda node, **kwargs: task if node is config.data else instantiate(node, **kwargs)


def test_a_loss_is_the_expectation_over_the_table():
    joint = uneven(sum_mod(3, 0.3), seed=1)
    joint[0, 1] = 0  # a pair that does not occur
    joint /= joint.sum()
    cells = together.cells_of(MixedTask(joint))
    logits_XYZ = np.random.default_rng(0).standard_normal((3, 3, 3))
    expected = sum(
        joint[x, y, z] * (np.log(np.exp(logits_XYZ[x, y]).sum()) - logits_XYZ[x, y, z])
        for x, y, z in np.ndindex(3, 3, 3)
    )

    def model(tokens_CT):
        assert len(tokens_CT) == 8
        last_CV = torch.from_numpy(logits_XYZ)[tuple(tokens_CT.T)]
        return torch.stack([torch.full_like(last_CV, torch.nan), last_CV], 1)

    assert float(cells.loss(model)) == pytest.approx(expected, abs=1e-12)


def test_tokens_that_are_never_predicted_have_no_share_of_the_target():
    cells = together.cells_of(MixedTask(np.full((4, 4, 2), 1 / 32)))
    assert cells.target_CV.shape == (16, 4)
    assert cells.target_CV[0].tolist() == [0.5, 0.5, 0, 0]


def test_a_course_knows_the_least_loss_and_the_first_below_the_floor():
    course = together.Course(3, steps=4, floor=1.0)
    for step, losses in enumerate(
        [[2, 2, 2], [0.995, 0.9, float("nan")], [3, 1.5, 1], [3, 0.5, 1]]
    ):
        course.update(step, torch.tensor(losses, dtype=torch.float32))
    found = [course.metrics(s) for s in range(3)]
    assert [m["loss/least"] for m in found] == pytest.approx([0.995, 0.5, 1])
    assert [m["escape/step"] for m in found] == [4, 1, 4]
    assert [m["escape/passed"] for m in found] == [0, 1, 0]


def test_metrics_hold_the_ladder_of_the_table_and_the_distance_to_it():
    found = together.train(small("data.joint.noise=0.2"), [0])[0]
    ladder = loss_ladder(sum_mod(3, 0.2))
    assert {rung: found[name] for rung, name in together.LADDER.items()} == pytest.approx(ladder)
    assert found["floor/passed_by"] == pytest.approx(log(3) - found["loss/val"])
    assert found["loss/excess"] == pytest.approx(found["loss/val"] - ladder["H(Z|X,Y)"])


def test_attention_and_routing_are_told_for_every_pair():
    found = together.train(small(*ROUTED, "router.num_experts=3"), [0])[0]
    pairs = [f"x_{x}/y_{y}" for x in range(3) for y in range(3)]
    assert [found[f"attention/head_{h}/{pair}"] for h in (0, 1) for pair in pairs] == [0.5] * 18
    for pair in pairs:
        assert sum(found[f"routing/view_{e}/{pair}"] for e in range(3)) == pytest.approx(1)
    full = together.train(small(), [0])[0]
    assert not any(name.startswith("routing/") for name in full)
    assert len({full[f"attention/head_0/{pair}"] for pair in pairs}) > 5


def test_scale_0_is_the_dense_model_and_one_merge_for_all_stays_above_the_floor():
    dense, zero, batch, sequence = (
        together.train(small("trainer.max_steps=60", *router), [1])[1]
        for router in (
            [UNIFORM], [*ROUTED, "perturbation.scale=0"],
            [*ROUTED, "router.level=batch"], ROUTED,
        )
    )  # fmt: skip
    assert zero["loss/least"] == pytest.approx(dense["loss/least"], abs=1e-6)
    for found in (dense, zero, batch):
        assert found["loss/val"] > log(3) - 1e-9
    assert sequence["loss/val"] < log(3) - 1e-5


def test_a_seed_that_diverges_counts_as_the_uniform_predictor():
    found = together.train(small("optim.lr=1e30"), [0, 1])
    assert found[0] | {"diverged": 1.0, "loss/val": log(3)} == found[0]
    assert "loss/excess" not in found[0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss=eml", "loss=cross_entropy alone"),
        ("trainer.precision=bf16-mixed", r"trainer\.precision=.*give 32-true"),
    ],
)
def test_what_it_cannot_train_is_refused(override, message):
    with pytest.raises(ValueError, match=message):
        together.train(small(override), [0])


def test_another_task_is_refused():
    config = small()
    config.data = composed("data=iid", "data.seq_len=2").data
    with pytest.raises(ValueError, match=r"data=.*IIDTask.*with data=mixed"):
        together.train(config, [0])
