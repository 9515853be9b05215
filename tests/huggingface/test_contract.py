"""What holds of a wrapped model of every family: it computes what it would without shortcuts."""

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

import prismatic

from .families import CAUSAL, FAMILIES, VIEWS, plain, routed, tokens

FEW = "llama", "gpt2", "mistral"
every_family = pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[] if f in FEW else pytest.mark.slow) for f in FAMILIES]
)
CLOSE = dict(rtol=1e-5, atol=1e-5)


def logits(model, ids, **arguments):
    return model(ids, use_cache=False, **arguments).logits


def in_parts(model, ids, cache, sizes):
    """Logits of a sequence that is given part by part."""
    return torch.cat([model(p, past_key_values=cache).logits for p in ids.split(sizes, 1)], 1)


def padded(ids, left=0, right=0):
    """The arguments for the same rows with padding around them."""
    ids = F.pad(ids, (left, right))
    mask = (ids > 0).long()
    return {"input_ids": ids, "attention_mask": mask,
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}  # fmt: skip


@every_family
@torch.no_grad()
def test_scale_zero_is_the_plain_model_bit_for_bit(family):
    ids = tokens()
    expected = logits(plain(family), ids)
    assert torch.equal(logits(routed(family, scale=0.0), ids), expected)
    assert (logits(routed(family), ids) - expected).abs().max() > 0.1, "routing does not matter"


@every_family
@torch.no_grad()
def test_a_view_alone_is_the_plain_model_with_its_weights(family):
    ids, model = tokens(), routed(family)
    for view in range(VIEWS):
        with_view = routed(family)
        for router in prismatic.routers_of(with_view):
            router._forced = view
        alone = prismatic.unwrap(routed(family), view)
        assert type(alone) is type(plain(family)) and not prismatic.routers_of(alone)
        torch.testing.assert_close(logits(with_view, ids), logits(alone, ids), **CLOSE)
    assert torch.equal(logits(prismatic.unwrap(model), ids), logits(plain(family), ids))


@every_family
@torch.no_grad()
def test_later_tokens_do_not_change_earlier_logits(family):
    ids = tokens()
    changed = torch.cat([ids[:, :7], tokens(seed=4)[:, 7:]], 1)
    for level, pool in CAUSAL:
        model = routed(family, level=level, pool=pool)
        one, other = logits(model, ids), logits(model, changed)
        torch.testing.assert_close(one[:, :7], other[:, :7], **CLOSE)
        assert (one[:, 7:] - other[:, 7:]).abs().max() > 0.1


@every_family
@torch.no_grad()
def test_a_cache_changes_nothing(family):
    ids = tokens()
    for level, pool in CAUSAL:
        model = routed(family, level=level, pool=pool)
        expected = logits(model, ids)
        for cache in (
            DynamicCache(), DynamicCache(config=model.config),
            StaticCache(config=model.config, max_cache_len=16),
        ):  # fmt: skip
            found = in_parts(model, ids, cache, [5, 1, 4, 1, 1])
            torch.testing.assert_close(found, expected, **CLOSE)


@every_family
@torch.no_grad()
def test_a_cache_may_be_copied_reordered_and_cut_short(family):
    model, ids = routed(family), tokens()
    cache = DynamicCache(config=model.config)
    for layer in cache.layers:
        if hasattr(layer, "activate_past_recording"):
            layer.activate_past_recording()  # a window keeps no more than it needs otherwise
    model(ids[:, :9], past_key_values=cache)
    cache.crop(-3)
    rows = torch.tensor([2, 0, 0])
    cache.reorder_cache(rows)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 3, 5]))
    expected = logits(model, torch.cat([ids[[2, 0, 0], :6], ids[:, 6:]], 1))[:, 6:]
    found = model(ids[:, 6:], past_key_values=cache).logits
    torch.testing.assert_close(found, expected, **CLOSE)


@every_family
@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_changes_nothing(family, attention):
    ids = tokens()
    for level, pool in CAUSAL:
        model = routed(family, attention, level=level, pool=pool)
        expected = logits(model, ids)
        for left, right in ((4, 0), (0, 4)):
            found = model(**padded(ids, left, right), use_cache=False).logits
            torch.testing.assert_close(found[:, left : left + 12], expected, **CLOSE)


@every_family
@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [{}, {"do_sample": True, "top_k": 20}, {"num_beams": 3}],
    ids=["greedy", "sampled", "beams"],
)
def test_rows_of_unequal_length_generate_alike_with_and_without_cache(family, options):
    model, ids = routed(family), tokens(2, 6)
    ids[0] = F.pad(ids[0, 3:], (3, 0))
    found = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        found.append(
            model.generate(
                ids, attention_mask=(ids > 0).long(), max_new_tokens=8, use_cache=use_cache,
                **options,
            )
        )  # fmt: skip
    assert torch.equal(*found)
    if not options:
        alone = model.generate(ids[:1, 3:], max_new_tokens=8)
        assert torch.equal(found[0][:1, 6:], alone[:, 3:])


@every_family
@torch.no_grad()
def test_both_kinds_of_attention_agree(family):
    one, other = (logits(routed(family, attention), tokens()) for attention in ("sdpa", "eager"))
    torch.testing.assert_close(one, other, **CLOSE)


@every_family
@torch.no_grad()
def test_in_bfloat16_it_is_near_what_it_is_in_float32(family):
    exact, plainly = logits(routed(family), tokens()), logits(plain(family), tokens())
    matters = (exact - plainly).square().mean().sqrt()
    for model in (routed(family).bfloat16(), routed(family)):
        with torch.autocast("cpu", torch.bfloat16, enabled=model.dtype == torch.float32):
            cache = DynamicCache(config=model.config)
            for found in (logits(model, tokens()), in_parts(model, tokens(), cache, [5, 6, 1])):
                assert (found.float() - exact).square().mean().sqrt() < 0.3 * matters


def gradients(model, reentrant=None):
    """Of two forwards with different padding, penalties included; and how often blocks ran."""
    model.zero_grad()
    model.config.use_cache = False
    if reentrant is not None:
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
    routers = prismatic.routers_of(model)
    runs = [0]
    handles = [
        r.register_forward_pre_hook(lambda *_: runs.__setitem__(0, runs[0] + 1)) for r in routers
    ]
    loss = 0
    for ids, left in ((tokens(), 3), (tokens(seed=4), 0)):
        given = padded(ids, left)
        loss = loss + model(**given, labels=given["input_ids"]).loss
        loss = loss + sum(router.penalty(router.record) for router in routers)
    loss.backward()
    for handle in handles:
        handle.remove()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, runs[0]


@every_family
@pytest.mark.parametrize("layers", [None, "mlp"])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_activations_that_are_computed_again_give_the_same_gradients(family, layers):
    options = dict(balance_loss=0.1, z_loss=0.01, expert_dropout=0.4, layers=layers)
    model = routed(family, **options).double().train()
    expected, once = gradients(model)
    for router in prismatic.routers_of(model):
        assert router.gate.linear.weight.grad.abs().max() > 1e-3
    for reentrant in (False, True):
        found, twice = gradients(routed(family, **options).double().train(), reentrant)
        assert found.keys() == expected.keys() and twice == 2 * once
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)


@every_family
@torch.no_grad()
@pytest.mark.parametrize("layers", [None, [1], "mlp"], ids=["all", "some", "mlp"])
def test_a_saved_model_is_loaded_bit_for_bit(family, layers, tmp_path):
    model = routed(family, layers=layers, seed=3)
    expected = logits(model, tokens())
    model.save_pretrained(tmp_path)
    loaded = prismatic.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, tokens()), expected)
    assert loaded.config.prismatic == model.config.prismatic
    bare = AutoModelForCausalLM.from_pretrained(tmp_path)  # the plain library reads the base
    assert torch.equal(logits(bare, tokens()), logits(plain(family), tokens()))


@every_family
@torch.no_grad()
def test_routed_mlps_heed_padding_and_cache(family):
    model, ids = routed(family, layers="mlp"), tokens()
    expected = logits(model, ids)
    found = in_parts(model, ids, DynamicCache(config=model.config), [5, 6, 1])
    torch.testing.assert_close(found, expected, **CLOSE)
    found = model(**padded(ids, 4), use_cache=False).logits[:, 4:]
    torch.testing.assert_close(found, expected, **CLOSE)
    outside = {n for n, _ in prismatic.routers_of(model)[0].expert.named_parameters()}
    assert not any("attn" in name or "attention" in name for name in outside)
