"""Wrapped models with what people use beside them: adapters, the Trainer; and what is refused."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional as F
from transformers import (
    DynamicCache,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    set_seed,
)

import prismatic
from prismatic.perturb import Perturbation
from prismatic.routers import PrismaticRouter

from .families import VIEWS, enliven, plain, routed, tokens

CLOSE = dict(rtol=1e-5, atol=1e-5)
LORA = dict(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)


def logits(model, ids=None):
    return model(tokens() if ids is None else ids, use_cache=False).logits


@torch.no_grad()
@pytest.mark.parametrize("level", ["token", "sequence", "batch"])
def test_adapters_are_weights_like_others_wherever_they_came_from(level):
    """Adapters first and routers around them, or the other way round: the same model."""
    views = dict(perturbation=Perturbation(scale=0.9, sparsity=0.5), level=level)
    torch.manual_seed(1)
    inside = enliven(prismatic.wrap(get_peft_model(plain("llama"), LoraConfig(**LORA)), 3, **views))
    around = enliven(prismatic.wrap(plain("llama"), 3, **views))
    logits(around)
    torch.manual_seed(1)
    around = get_peft_model(around, LoraConfig(**LORA)).eval()
    adapters = [
        [p for n, p in model.named_parameters() if "lora_" in n] for model in (inside, around)
    ]
    for one, other in zip(*adapters, strict=True):
        other.copy_(one)
    assert len(prismatic.routers_of(around)) == len(prismatic.routers_of(inside)) == 2
    torch.testing.assert_close(logits(around), logits(inside), **CLOSE)
    # Merged, they are the base again, and the routers find their way back, too.
    merged = inside.merge_and_unload()
    assert isinstance(merged, LlamaForCausalLM) and logits(merged).isfinite().all()


@torch.no_grad()
def test_adapters_and_gates_are_saved_and_loaded(tmp_path):
    routed("llama").save_pretrained(tmp_path / "base")
    base = prismatic.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(**LORA, modules_to_save=["gate"])).eval()
    for router in prismatic.routers_of(model):
        for parameter in router.gate.parameters():
            parameter.mul_(1.5)
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = prismatic.from_pretrained(tmp_path / "adapter")
    assert isinstance(loaded, PeftModel) and torch.equal(logits(loaded), expected)
    ids = F.pad(tokens(2, 5), (3, 0))
    found = [loaded.generate(input_ids=ids, attention_mask=(ids > 0).long(), max_new_tokens=5,
                             use_cache=use) for use in (True, False)]  # fmt: skip
    assert torch.equal(*found)


def trained(folder, resume=False, **options):
    """The weights after two epochs of the library's own trainer, the second one resumed or not."""
    set_seed(0)
    model = routed("llama", **options).train()
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=2, num_train_epochs=2, save_strategy="epoch",
        report_to=[], disable_tqdm=True, use_cpu=True, learning_rate=1e-2,
        dataloader_pin_memory=False, gradient_checkpointing=True,
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in tokens(8, 8)]
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4") if resume else None)
    return model.state_dict()


@pytest.mark.filterwarnings("ignore")
def test_the_librarys_trainer_trains_and_resumes(tmp_path):
    before = routed("llama").state_dict()
    once = trained(tmp_path, expert_dropout=0.3)
    changed = [name for name in once if not torch.equal(once[name], before[name])]
    assert any(name.endswith("routed.gate.linear.weight") for name in changed)
    again = trained(tmp_path, resume=True, expert_dropout=0.3)
    for name in once:
        torch.testing.assert_close(again[name], once[name], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 3}, {"assistant": True}])
def test_generation_that_takes_tokens_back_is_greedy_generation(options):
    model, ids = routed("llama"), tokens(1, 8)
    if options.pop("assistant", False):
        options["assistant_model"] = prismatic.unwrap(routed("llama"))
    expected = model.generate(ids, max_new_tokens=10, use_cache=False)
    assert torch.equal(model.generate(ids, max_new_tokens=10, **options), expected)


@torch.no_grad()
def test_two_caches_of_one_model_do_not_meet():
    model, ids, others = routed("llama"), tokens(), tokens(seed=4)
    caches = DynamicCache(), DynamicCache()
    found = [
        [model(rows[:, t : t + 1], past_key_values=cache).logits
         for rows, cache in zip((ids, others), caches, strict=True)]
        for t in range(6)
    ]  # fmt: skip
    for rows, parts in zip((ids, others), zip(*found, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(parts, 1), logits(model, rows[:, :6]), **CLOSE)


@torch.no_grad()
def test_a_cache_that_was_filled_without_the_router_is_refused():
    cache = DynamicCache()
    plain("llama")(tokens(), past_key_values=cache)
    with pytest.raises(ValueError, match="filled without this router"):
        routed("llama")(tokens(), past_key_values=cache)


@torch.no_grad()
@pytest.mark.parametrize("level", ["batch", "sequence"])
def test_a_pool_over_the_whole_sequence_cannot_generate_from_a_cache(level):
    model = routed("llama", level=level, pool="mean")
    with pytest.raises(ValueError, match="use_cache=False"):
        model.generate(tokens(), max_new_tokens=3)
    # A padded row is averaged over its tokens, and the last one is a token.
    for pool in ("mean", "last"):
        model, ids = routed("llama", level="sequence", pool=pool), F.pad(tokens(), (0, 3))
        found = model(ids, attention_mask=(ids > 0).long(), use_cache=False).logits[:, :12]
        torch.testing.assert_close(found, logits(model), **CLOSE)


REFUSED = {
    "twice": (lambda: prismatic.wrap(routed("llama")), "unwrap it first"),
    "layers": (lambda: routed("llama", layers=[0, 2]), r"layers=\[0, 2\].*from 0 to 1"),
    "a word": (lambda: routed("llama", layers="attention"), "layers='attention'.*mlp"),
    "level": (lambda: routed("llama", level="word"), "level='word'"),
    "no decoder": (
        lambda: prismatic.wrap(T5ForConditionalGeneration(T5Config(
            vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))),
        "a decoder alone",
    ),
    "view": (lambda: prismatic.unwrap(routed("llama"), VIEWS), "view=3.*from 0 to 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused(case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_a_refusal_leaves_the_model_as_it_was():
    model = plain("llama")
    with pytest.raises(ValueError, match="temperature"):
        prismatic.wrap(model, temperature=-1.0)
    assert not prismatic.routers_of(model)
    assert torch.equal(logits(model), logits(plain("llama")))


def test_masks_that_cannot_be_read_are_refused():
    model = plain("llama")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match=r"attn_implementation='flex_attention'.*sdpa"):
        prismatic.wrap(model)
    model = routed("llama")
    mask = torch.ones(3, 12)
    with pytest.raises(ValueError, match=r"attention mask='Tensor \[3, 12\]'"):
        model.model.layers[0](torch.randn(3, 12, 32), attention_mask=mask)


def test_a_folder_that_is_not_whole_is_refused(tmp_path):
    plain("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no routers"):
        prismatic.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="weights are not those of LlamaForCausalLM"):
        prismatic.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(plain("llama").state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        prismatic.from_pretrained(tmp_path)


def test_a_copy_is_a_model_of_its_own():
    import copy

    model = routed("llama")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for router in prismatic.routers_of(other):
            assert isinstance(router, PrismaticRouter)
            router.gate.linear.weight.zero_()
        assert not torch.equal(logits(model), logits(other))
