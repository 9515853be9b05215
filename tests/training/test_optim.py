import math

import pytest
import torch

from prismatic.experiment import build_model
from prismatic.training import Optimization
from prismatic.training.optim import clip_apart, split_parameters

from ..tiny import tiny

ROUTERS = ["prismatic", "constant", "smear", "dense"]


def model(*overrides):
    torch.manual_seed(0)
    return build_model(tiny(*overrides), vocab_size=16, seq_len=8)


@pytest.mark.parametrize("router", ROUTERS)
def test_every_trained_parameter_is_in_exactly_one_group(router):
    built = model(f"router={router}", "model.bias=true", "model.positions=learned")
    built.norm.weight.requires_grad_(False)
    groups = Optimization().optimizer(built).param_groups
    grouped = [id(p) for group in groups for p in group["params"]]
    trained = [id(p) for p in built.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trained)


def test_weight_decay_is_for_the_matrices_of_the_trunk():
    built = model()
    decayed = {
        id(p)
        for group in Optimization(weight_decay=0.1).optimizer(built).param_groups
        for p in group["params"]
        if group["weight_decay"]
    }
    matrices = {id(p) for n, p in built.named_parameters() if p.ndim > 1 and ".gate." not in n}
    assert decayed == matrices


def test_the_learning_rate_warms_up_and_falls_along_a_cosine():
    optim = Optimization(lr=0.5, warmup_steps=4, total_steps=24, final_share=0.2)
    shares = [optim.lr_share(step) for step in range(30)]
    assert shares[:5] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert shares[14] == pytest.approx(0.6), "half way down"
    assert shares[24:] == pytest.approx([0.2] * 6), "and it stays there"
    assert sorted(shares[4:], reverse=True) == shares[4:]
    assert Optimization(warmup_steps=0).lr_share(0) == 1


def test_the_schedule_drives_the_optimizer():
    optim = Optimization(lr=0.5, warmup_steps=2, total_steps=3)
    optimizer = optim.optimizer(model())
    schedule = optim.schedule(optimizer)
    seen = []
    for _ in range(3):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert seen == pytest.approx([0.25, 0.5, 0.5])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize("router", ["prismatic", "constant"])
def test_a_huge_router_gradient_does_not_shrink_the_step_of_the_trunk(router):
    built = model(f"router={router}")
    trunk, gates = split_parameters(built)
    for parameter in trunk:
        parameter.grad = torch.full_like(parameter, 1e-3)
    for parameter in gates:
        parameter.grad = torch.full_like(parameter, 1e6)
    before = [p.grad.clone() for p in trunk]
    norms = [math.sqrt(sum(float(p.grad.square().sum()) for p in g)) for g in (trunk, gates)]
    assert clip_apart(built, 1.0) == pytest.approx(math.hypot(*norms))
    assert norms[0] < 1
    assert all(torch.equal(p.grad, was) for p, was in zip(trunk, before, strict=True))
    assert sum(float(p.grad.square().sum()) for p in gates) == pytest.approx(1, rel=1e-4)


def test_a_large_trunk_gradient_is_clipped():
    built = model("router=dense")
    for parameter in built.parameters():
        parameter.grad = torch.ones_like(parameter)
    clip_apart(built, 0.5)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in built.parameters()))
    assert norm == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(
    "option",
    [
        {"lr": 0}, {"lr": math.inf}, {"lr": math.nan}, {"weight_decay": -1}, {"beta1": 1},
        {"beta2": -0.1}, {"warmup_steps": -1}, {"warmup_steps": 1.5}, {"total_steps": 0},
        {"batch_size": 0}, {"batch_size": 1.5}, {"batch_size": "many"}, {"final_share": 2},
    ],
    ids=str,
)  # fmt: skip
def test_nonsense_is_refused_by_name_and_value(option):
    [(name, value)] = option.items()
    with pytest.raises(ValueError, match=f"optim.{name}={value!r} is not valid: give"):
        Optimization(**option)
