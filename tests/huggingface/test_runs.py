"""`model=hf` in a run: what it trains, what it leaves, and what it refuses."""

import re
from functools import partial

import pytest
import torch
from hydra.errors import InstantiationException

import prismatic
from prismatic.evaluation.single_run import evaluate, sample_continuation
from prismatic.experiment import build, train
from prismatic.huggingface import CausalLM
from prismatic.models import generate
from prismatic.perturb import Focal, Perturbation
from prismatic.routers import DenseRouter, PrismaticRouter

from .. import ranks
from ..tiny import FEW, IID, QUIET, ROOT, composed, text_data
from .families import plain

LLAMA = [
    "model.config.model_type=llama", "model.config.hidden_size=16",
    "model.config.intermediate_size=16", "model.config.num_hidden_layers=2",
    "model.config.num_attention_heads=2", "model.config.num_key_value_heads=2",
]  # fmt: skip
KEPT = ["callbacks=default", "~callbacks.progress", "~callbacks.pictures", "~callbacks.clock"]
VIEWS = ["focal=relative", "perturbation.scale=0.5", "router.num_experts=2"]


def configured(*overrides, model=LLAMA, data=IID):
    """A new Llama on independent tokens, or another model on other data."""
    return composed("model=hf", *model, *VIEWS, *QUIET, *FEW, *data, *overrides)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A folder as `save_pretrained` leaves it, of a model that knows bytes."""
    folder = tmp_path_factory.mktemp("pretrained")
    plain("llama", vocab=256).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pretrained):
    """A run that fine-tuned the folder."""
    folder = tmp_path_factory.mktemp("run")
    config = configured(*KEPT, model=[f"model.path={pretrained}"], data=text_data(folder))
    train(config, folder / "run")
    return folder / "run"


def test_a_run_is_whole(trained, pretrained):
    """Loaded, evaluated and sampled as a run of our own model is."""
    model, config = prismatic.load(trained, "last")
    assert config.model.path == str(pretrained)
    found = evaluate(trained, "last")
    assert found["loss/test"] > 0 and {"views/0/loss_test", "views/1/loss_test"} <= found.keys()
    options = dict(temperature=0.5, top_p=0.9, seed=0, checkpoint="last")
    sampled = sample_continuation(trained, "7 squared", 8, **options)
    assert sampled.startswith("7 squared")
    assert "routing/weight_LE" in (trained / "diagnostics.jsonl").read_text()
    # What it learned is used without us: greedy, with the library's cache, it is what eval says.
    tokens = torch.randint(0, 256, (1, 4))
    ours = generate(model, tokens, 8, temperature=0)
    model.model.generation_config.eos_token_id = None
    theirs = model.model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=8)
    assert torch.equal(ours, theirs)
    without = prismatic.unwrap(model.model)
    assert type(without) is type(plain("llama"))


def test_what_is_not_given_follows_from_what_is():
    few = dict(model_type="llama", hidden_size=16, num_attention_heads=2, num_hidden_layers=1)
    model = CausalLM(61, 8, DenseRouter, config=few)
    assert model.model.config.num_key_value_heads == 2 and model.model.config.head_dim == 8
    assert model(torch.randint(0, 61, (2, 8))).shape == (2, 8, 61)


def test_a_run_begins_with_the_weights_of_the_folder(pretrained, tmp_path):
    config = configured("perturbation.scale=0", model=[f"model.path={pretrained}"])
    model = build(config, tmp_path).model
    assert all(module.training for module in model.modules())
    tokens = torch.randint(0, 256, (2, 8))
    expected = plain("llama", vocab=256)(tokens).logits
    torch.testing.assert_close(model.eval()(tokens), expected, rtol=0, atol=0)


TRAINED = {
    "all": lambda name: True,
    "router": lambda name: ".gate." in name,
    "lora": lambda name: ".gate." in name or "lora_" in name,
}


@pytest.mark.parametrize("what", TRAINED)
def test_only_what_is_asked_for_learns(what, pretrained, tmp_path):
    config = configured(f"model.train={what}", model=[f"model.path={pretrained}"])
    parts = build(config, tmp_path)
    before = {name: p.detach().clone() for name, p in parts.model.named_parameters()}
    parts.trainer.fit(parts.learner, parts.data)
    changed = {
        name for name, p in parts.model.named_parameters() if not torch.equal(p, before[name])
    }
    assert changed == {name for name in before if TRAINED[what](name)}


def test_activations_computed_again_change_no_loss(tmp_path):
    options = ["router.expert_dropout=0.3", "router.balance_loss=0.1"]
    again = [*options, "model.gradient_checkpointing=true"]
    one, two = (
        train(configured(*chosen), tmp_path / name)["loss/val"]
        for name, chosen in (("one", options), ("two", again))
    )
    assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_a_resumed_run_goes_on_bit_for_bit(pretrained, tmp_path):
    options = [*KEPT, "~callbacks.diagnostics", "router.expert_dropout=0.3", "model.train=lora",
               "optim.total_steps=4"]  # fmt: skip
    at = [f"model.path={pretrained}"]
    once = train(configured(*options, model=at), tmp_path / "once")
    train(configured(*options, "trainer.max_steps=2", model=at), tmp_path / "half")
    checkpoint = f"ckpt_path={tmp_path}/half/checkpoints/last.ckpt"
    again = train(configured(*options, checkpoint, model=at), tmp_path / "again")
    assert again["loss/val"] == once["loss/val"]


REFUSED = {
    "model.path=null": ([], "model.path=None.*model.config.model_type=llama"),
    "a kind": (["model.config.model_type=lama"], "model_type='lama'"),
    "a key": ([*LLAMA, "+model.config.hidden_sise=8"], "'hidden_sise'.*hidden_size"),
    "positions": ([*LLAMA, "model.config.max_position_embeddings=8"], "seq_len=16.*8 positions"),
    "vocabulary": ([*LLAMA, "+model.config.vocab_size=10"], "knows 10 tokens"),
    "what": ([*LLAMA, "model.train=gates"], "train='gates'.*all, router, lora"),
    "attention": ([*LLAMA, "model.attn_implementation=flash_attention_2"], "sdpa, eager"),
    "nothing": ([*LLAMA, "router=dense", "router.num_experts=1", "model.train=router"],
                "adds nothing that could learn"),
    "leak": ([*LLAMA, "router.level=batch"], "not a likelihood"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused(case, tmp_path):
    overrides, message = REFUSED[case]
    with pytest.raises((ValueError, InstantiationException), match=message):
        build(configured(*overrides, model=[]), tmp_path)


def test_weights_that_would_run_code_are_refused(pretrained, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text((pretrained / "config.json").read_text())
    torch.save(plain("llama", vocab=256).state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InstantiationException, match=r"OSError.*safetensors"):
        build(configured(model=[f"model.path={folder}"]), tmp_path)


def test_the_readmes_model_trains_from_a_folder_of_ones_own(script, tmp_path, monkeypatch):
    page = (ROOT / "src" / "prismatic" / "README.md").read_text()
    own = page[page.index("## A model of your own") :]
    (tmp_path / "model").mkdir()
    for kind, name in (("python", "recurrent.py"), ("yaml", "model/recurrent.yaml")):
        (block,) = re.findall(rf"```{kind}\n(.*?)```", own, re.DOTALL)
        assert len(block.splitlines()) <= 30
        (tmp_path / name).write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    asked = ["--config-dir", str(tmp_path), "model=recurrent", *QUIET, *FEW, *IID]
    ended = script("train", *asked, *KEPT, f"hydra.run.dir={tmp_path}/run")
    assert ended.status == 0, ended.err
    assert "attention is not looked at" in ended.out
    model, _ = prismatic.load(tmp_path / "run", "last")
    assert [router.name for router in model.routers] == ["mlp"]


@pytest.mark.slow
def test_fine_tuning_ends_beside_the_dense_model(script, pretrained, tmp_path):
    (path,) = [word for word in text_data(tmp_path) if word.startswith("data.path")]
    data = [path, "data.tokenizer=bytes", "data.sample_by=line", "data.seq_len=16"]
    asked = ["experiment=finetune", f"model.path={pretrained}", *data, *QUIET, *FEW, *KEPT]
    ended = script("train", *asked)
    assert ended.status == 0, ended.err
    assert "routed - dense" in ended.out and "view 1 alone" in ended.out
    ended = script("train", *asked, "model.train=router")
    assert ended.status == 1 and "baseline=none" in ended.err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_model_is_compiled_to_one_graph():
    views = partial(PrismaticRouter, num_experts=2, focal=Focal(), perturbation=Perturbation())
    settings = dict(
        model_type="llama", hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    model, ids = CausalLM(61, 8, views, config=settings), torch.randint(0, 61, (2, 8))
    whole = torch.compile(model.forward, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(whole(ids), model(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path):
    """With a share of each batch, and with a share of the weights."""
    options = ["trainer.max_steps=3", "router.z_loss=0.1"]
    one = ranks.train(configured(*options), tmp_path / "one")
    two = {
        strategy: configured(*options, f"trainer={strategy}", "trainer.devices=2")
        for strategy in ("ddp", "fsdp")
    }
    for found in ranks.on_two(two, tmp_path).values():
        for name, expected in one["gradient"].items():
            torch.testing.assert_close(found["gradient"][name], expected, rtol=1e-4, atol=1e-5)
        assert found["metrics"]["loss/val"] == pytest.approx(one["metrics"]["loss/val"], rel=1e-4)
