"""A compiled run is an ordinary one but for its speed."""

from functools import partial

import pytest
import torch

from prismatic.experiment import build

from ..tiny import fit, text_data, tiny

RECORDED = ["callbacks=default", "~callbacks.progress", "~callbacks.pictures"]
KINDS = {"dropped": ["router.expert_dropout=0.3"], "constant": ["router=constant"]}
KINDS |= {"recurrent": ["model.depth=2", "perturbation=noise"], "smear": ["router=smear"]}


@pytest.fixture(params=["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def compiling(request, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=request.param))
    monkeypatch.setattr(torch._dynamo.config, "optimize_ddp", True)  # put back afterwards


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", [k if k == "dropped" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_a_compiled_run_is_recorded_as_an_ordinary_one(kind, compiling, tmp_path):
    options = [*RECORDED, *text_data(tmp_path), "model.num_layers=1", *KINDS[kind]]
    ordinary, losses = fit(tmp_path / "ordinary", *options)
    compiled, again = fit(tmp_path / "compiled", *options, "trainer.compile=true")
    assert compiled.learner.compiled is not None
    assert again == pytest.approx(losses, rel=1e-4)
    names = {name: parts.trainer.callback_metrics.keys() for name, parts in
             (("ordinary", ordinary), ("compiled", compiled))}  # fmt: skip
    assert names["ordinary"] == names["compiled"], "forced views and diagnostics, too"
    kept = {
        name: torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in names
    }
    assert kept["ordinary"]["state_dict"].keys() == kept["compiled"]["state_dict"].keys()


def test_what_cannot_be_compiled_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"trainer.compile=True .* use trainer=ddp"):
        build(tiny("trainer=fsdp", "trainer.devices=1", "trainer.compile=true"), tmp_path)
    with pytest.raises(ValueError, match=r"gradient_checkpointing=True .* trainer.compile=false"):
        build(tiny("model.gradient_checkpointing=true", "trainer.compile=true"), tmp_path)
    with pytest.raises(ValueError, match=r"trainer.compile='fast' .* true or false"):
        build(tiny("trainer.compile=fast"), tmp_path)
