"""What can be wrapped at which level, modules of torch and Hugging Face included."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prismatic.perturb import Perturbation
from prismatic.routers import PrismaticRouter, SmearRouter, register_rule
from prismatic.routers.rules import RULES

from .test_reference import assert_as_reference, prismatic
from .toys import STRONG, WIDE, WIDTH, Gain, inputs, scrambled

NUM_TOKENS = 5


class Functional(nn.Module):
    """Uses a submodule's weight without calling the submodule."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return F.linear(self.first(x), self.second.weight, self.second.bias)


class Flattening(nn.Module):
    """Merges rows and positions before a linear map."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.map(x.flatten(0, 1)).view_as(x)


WAYS_OUT = r"use router\.level=batch, or teach it with prismatic\.routers\.register_rule"


@pytest.mark.parametrize("router", [PrismaticRouter, SmearRouter])
def test_a_class_without_a_rule_is_named_with_the_ways_out(router):
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
    message = rf"TransformerEncoderLayer: self_attn \(MultiheadAttention\).*; {WAYS_OUT}"
    with pytest.raises(ValueError, match=message):
        router(layer, WIDTH, 2)
    with pytest.raises(ValueError, match=rf"cannot wrap Gain: the module itself .*; {WAYS_OUT}"):
        router(Gain(), WIDTH, 2)


BY_ROW = r"register_rule\(cls, None\) to run it row by row"


@pytest.mark.parametrize(("level", "begins"), [("token", r"\(3, 5\)"), ("sequence", r"\(3,\)")])
def test_an_input_without_rows_and_positions_is_named(level, begins):
    router = prismatic(Flattening().double(), level)
    with pytest.raises(ValueError, match=rf"map \(Linear\) .*\(15, 8\).*{begins}.*; {WAYS_OUT}"):
        router(inputs(3, 5))


@pytest.mark.parametrize(("level", "further"), [("token", ""), ("sequence", BY_ROW)])
def test_a_parameter_used_without_its_module_is_named(level, further):
    with pytest.raises(ValueError, match=rf"second was not called.*; {WAYS_OUT}.*{further}"):
        prismatic(Functional().double(), level)(inputs())


@pytest.mark.parametrize("make", [Functional, Flattening])
@pytest.mark.parametrize("level", ["sequence", "batch"])
def test_both_can_be_wrapped_at_the_other_levels(make, level):
    register_rule(make, None)
    assert_as_reference(prismatic(scrambled(make()).double(), level), inputs(3, 5))
    with pytest.raises(ValueError, match=rf"the module itself \({make.__name__}\) has no rule"):
        prismatic(make().double())
    del RULES[make]


@pytest.fixture
def gain_rule():
    register_rule(Gain, lambda module, params, x: x * params["gain"].elementwise())
    yield
    del RULES[Gain]


@pytest.mark.parametrize("level", ["token", "sequence", "batch"])
def test_a_registered_rule_makes_a_class_wrappable(gain_rule, level):
    expert = scrambled(nn.Sequential(Gain(), nn.Linear(WIDTH, WIDTH), Gain())).double()
    assert_as_reference(prismatic(expert, level), inputs(2, 3))
    smear = SmearRouter(copy.deepcopy(expert), WIDTH, 2, "token").double()
    with smear.forced(1):
        assert torch.allclose(smear(inputs()), smear.others[0](inputs()))


class Scale(nn.Module):
    """One number for everything: a parameter without dimensions."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return x * self.scale


@pytest.mark.parametrize("shape", [(3, 3), (8, 8), (2, 5)])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_rule_may_have_a_parameter_without_dimensions(level, shape):
    register_rule(Scale, lambda module, params, x: x * params["scale"].elementwise())
    assert_as_reference(prismatic(Scale().double(), level), inputs(*shape))
    del RULES[Scale]


class Maps(nn.Module):
    """A map of one's own in both orientations."""

    def __init__(self):
        super().__init__()
        self.out_in = nn.Parameter(torch.randn(12, WIDTH))
        self.in_out = nn.Parameter(torch.randn(12, WIDTH))

    def forward(self, x):
        return F.linear(x, self.out_in) @ self.in_out


def test_a_rule_may_use_maps_of_both_orientations():
    def rule(module, params, x):
        return params["in_out"].matmul(params["out_in"].linear(x))

    register_rule(Maps, rule)
    assert_as_reference(prismatic(Maps().double()), inputs(2, 3))
    del RULES[Maps]


def test_a_rule_does_not_hold_for_subclasses():
    class Special(nn.Linear):
        pass

    with pytest.raises(ValueError, match="Special"):
        prismatic(Special(WIDTH, WIDTH))


class Shifted(nn.Module):
    """Takes one more argument, and belongs to a class without a rule."""

    def __init__(self):
        super().__init__()
        self.gain = Gain()

    def forward(self, x, shift):
        return self.gain(x + shift)


@pytest.mark.parametrize("shape", [(5,), (5, WIDTH), (5, 5)])
def test_an_argument_of_rows_or_positions_is_refused_where_it_cannot_be_told(shape):
    router = prismatic(Shifted().double(), "sequence")
    with pytest.raises(ValueError, match=r"rows or with positions: with 5 of each"):
        router(inputs(5, 5), torch.ones(shape))


def test_an_argument_of_positions_is_shared_and_one_of_rows_is_split():
    router, x = prismatic(Shifted().double(), "sequence"), inputs(3, 5)
    assert_as_reference(router, x, inputs(1, 5, seed=3)[0])
    per_row = inputs(3, 1, seed=3)
    rows = [router(x[i : i + 1], per_row[i : i + 1]) for i in range(3)]
    assert torch.allclose(router(x, per_row), torch.cat(rows), rtol=0, atol=1e-13)


def causal_mask(num_tokens):
    return torch.ones(num_tokens, num_tokens, dtype=torch.bool).triu(1)


def encoder_layer(dropout=0.0, **options):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout, batch_first=True, **options)
    return scrambled(layer).double()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("level", ["sequence", "batch"])
@pytest.mark.parametrize("options", [{}, {"norm_first": True, "activation": "gelu"}])
def test_torch_encoder_layer_is_as_the_reference(level, train, options):
    router = prismatic(encoder_layer(**options), level).train(train)
    assert_as_reference(router, inputs(3, NUM_TOKENS))
    assert_as_reference(router, inputs(3, NUM_TOKENS), src_mask=causal_mask(NUM_TOKENS))


@pytest.mark.parametrize("level", ["sequence", "batch"])
def test_torch_encoder_layer_in_evaluation_without_gradients(level):
    """Its fused path, which vmap does not know, must see the merged weights."""
    router, x = prismatic(encoder_layer(), level).eval(), inputs(3, NUM_TOKENS)
    y = router(x)
    with torch.no_grad():
        assert torch.allclose(router(x), y, rtol=0, atol=1e-12)
    frozen = router.requires_grad_(False)
    assert torch.allclose(frozen(x), y, rtol=0, atol=1e-12)


def test_torch_encoder_layer_takes_a_mask_per_row():
    router, x = prismatic(encoder_layer(), "sequence"), inputs(3, NUM_TOKENS)
    padding = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 3 + [True] * 2])
    y = router(x, src_key_padding_mask=padding)
    for b in range(3):
        lone = router(x[b : b + 1], src_key_padding_mask=padding[b : b + 1])
        assert torch.allclose(y[b : b + 1], lone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("level", ["sequence", "batch"])
def test_torch_encoder_layer_trains_with_its_own_dropout(level):
    router = prismatic(encoder_layer(0.2), level).train()
    router(inputs(3, NUM_TOKENS)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in router.parameters())


@pytest.mark.parametrize("level", ["sequence", "batch"])
@pytest.mark.parametrize("options", [{"num_experts": 1}, {"perturbation": Perturbation(scale=0.0)}])
def test_torch_encoder_layer_at_scale_0_is_the_bare_layer(level, options):
    layer, x = encoder_layer(), inputs(3, NUM_TOKENS)
    router = PrismaticRouter(layer, WIDTH, level=level, pool="mean", **options).double()
    exact = level == "batch"
    assert torch.allclose(router(x), layer(x), rtol=0, atol=0 if exact else 1e-13)


class Convolution(nn.Module):
    """A class that no rule knows, with a batch norm and its buffers."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm1d(WIDTH)

    def forward(self, x_BTD):
        return self.norm(self.conv(x_BTD.transpose(1, 2))).transpose(1, 2)


def test_any_module_can_be_wrapped_at_level_batch():
    expert = scrambled(Convolution()).double()
    assert_as_reference(prismatic(expert, "batch").eval(), inputs())
    bare = copy.deepcopy(expert).train()
    router = PrismaticRouter(expert, WIDTH, 1, STRONG, WIDE, "batch", "mean").double().train()
    assert torch.equal(router(inputs()), bare(inputs()))
    assert torch.equal(expert.norm.running_mean, bare.norm.running_mean)


LEVELS = ["token", "sequence", "batch"]


def hugging_face(name):
    """A decoder layer from a small config, the arguments of its call and its width."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if name == "gpt2":
        from transformers.models.gpt2.modeling_gpt2 import GPT2Block

        config = transformers.GPT2Config(
            n_embd=WIDTH, n_head=2, n_layer=1, attn_pdrop=0.0, resid_pdrop=0.0
        )
        config._attn_implementation = "sdpa"
        return scrambled(GPT2Block(config, layer_idx=0)).double(), {}
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    config = transformers.LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=12,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_hidden_layers=1,
    )
    config._attn_implementation = "sdpa"
    positions = torch.arange(NUM_TOKENS)[None]
    rotary = LlamaRotaryEmbedding(config)(inputs(1, NUM_TOKENS), positions)
    return scrambled(LlamaDecoderLayer(config, 0)).double(), {"position_embeddings": rotary}


def additive_mask(num_tokens):
    allowed = torch.zeros(1, 1, num_tokens, num_tokens, dtype=torch.float64)
    return allowed.masked_fill(causal_mask(num_tokens), torch.finfo(torch.float64).min)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_hugging_face_layers_are_as_the_reference(name, level, masked):
    layer, kwargs = hugging_face(name)
    if masked:
        kwargs["attention_mask"] = additive_mask(NUM_TOKENS)
    rel = 1e-6 if name == "llama" else 1e-12  # its norm computes in float32
    assert_as_reference(prismatic(layer, level), inputs(2, NUM_TOKENS), rel=rel, **kwargs)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_hugging_face_layers_agree_over_levels_when_a_view_is_forced(name):
    layer, kwargs = hugging_face(name)
    outputs = []
    for level in LEVELS:
        router = prismatic(layer, level)
        with router.forced(1):
            outputs.append(router(inputs(3, NUM_TOKENS), **kwargs))
    assert torch.allclose(outputs[0], outputs[1], rtol=0, atol=1e-12)
    assert torch.allclose(outputs[0], outputs[2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_hugging_face_layers_at_scale_0_are_the_bare_layers(name, level, dtype):
    layer, kwargs = hugging_face(name)
    layer, x = layer.to(dtype), inputs(3, NUM_TOKENS).to(dtype)
    kwargs = {key: tuple(part.to(dtype) for part in value) for key, value in kwargs.items()}
    nothing = Perturbation(scale=0.0)
    router = prismatic(layer, level, options=(nothing, WIDE)).to(dtype)
    assert torch.equal(router(x, **kwargs), layer(x, **kwargs))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_hugging_face_layers_stay_causal(name):
    layer, kwargs = hugging_face(name)
    kwargs["attention_mask"] = additive_mask(NUM_TOKENS)
    router, x = prismatic(layer), inputs(2, NUM_TOKENS)
    later = torch.cat([x[:, :3], inputs(2, NUM_TOKENS, seed=2)[:, 3:]], 1)
    early = [router(value, **kwargs)[:, :3] for value in (x, later)]
    assert torch.allclose(*early, rtol=0, atol=1e-13)
