"""What a CUDA device computes is what the CPU does: run with `pytest -m gpu`."""

import copy
import math

import pytest
import torch

from prismatic.perturb import Focal, Perturbation
from prismatic.routers import PrismaticRouter

from .tiny import FEW, IID, MODEL, composed, fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LEVELS = {"batch": "mean", "sequence": "mean", "token": "causal_mean"}
RELATIVE = {"length": 0.1, "wavelength": 1.0, "units": "fraction"}
FOCALS = {
    "literal": Focal(),
    "none": Focal("none"),
    "helical": Focal("helical"),
    "relative": Focal("radial_helical", **RELATIVE),
    "gaussian": Focal("radial_helical", **RELATIVE, profile="gaussian"),
}


def gradients(router, x, device):
    """Output and gradients of a router on a device, in float64 on the CPU."""
    there = copy.deepcopy(router).to(device)
    y = there(x.to(device))
    y.square().mean().backward()
    found = {name: p.grad for name, p in there.named_parameters()} | {"y": y.detach()}
    return {name: value.double().cpu() for name, value in found.items()}


@pytest.mark.parametrize("mode", ["attractive", "noise"])
@pytest.mark.parametrize("focal", FOCALS)
@pytest.mark.parametrize("level", LEVELS)
def test_a_router_on_cuda_is_the_router_on_the_cpu(level, focal, mode):
    torch.manual_seed(0)
    expert = torch.nn.Sequential(torch.nn.LayerNorm(96), torch.nn.Linear(96, 64))
    router = PrismaticRouter(
        expert, 96, 4, Perturbation(mode), FOCALS[focal], level, LEVELS[level], name="r"
    )
    x = torch.randn(4, 16, 96)
    here, there = gradients(router, x, "cpu"), gradients(router, x, "cuda")
    for name, value in here.items():
        scale = float(value.abs().max())
        assert float((there[name] - value).abs().max()) <= 1e-4 * scale + 1e-7, name


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("router", ["prismatic", "smear", "dense"])
def test_training_on_cuda_goes_as_on_the_cpu(tmp_path, router, precision):
    options = [f"router={router}", "trainer.max_steps=20", "optim.lr=0.01"]
    _, on_cpu = fit(tmp_path / "cpu", *options)
    cuda = ["trainer.accelerator=cuda", f"trainer.precision={precision}"]
    _, on_cuda = fit(tmp_path / "cuda", *options, *cuda)
    worst = max(abs(a - b) for a, b in zip(on_cpu, on_cuda, strict=True))
    assert worst < (0.05 if precision == "bf16-mixed" else 1e-3), worst


def test_a_recorded_run_on_cuda(tmp_path):
    from prismatic.experiment import load, run

    folder = tmp_path / "run"
    config = composed(*MODEL, *IID, *FEW, "logger=none", "callbacks.progress=null")
    assert math.isfinite(run(config, folder))
    assert (folder / "report" / "report.html").stat().st_size > 10_000
    model, _ = load(folder)
    assert torch.isfinite(model(torch.zeros(1, 8, dtype=torch.long))).all()


def test_scale_0_is_the_dense_model_on_cuda(tmp_path):
    options = ["trainer.accelerator=cuda", "trainer.max_steps=20"]
    _, dense = fit(tmp_path / "dense", *options, "router=dense")
    _, zero = fit(tmp_path / "zero", *options, "perturbation.scale=0")
    assert dense == zero
