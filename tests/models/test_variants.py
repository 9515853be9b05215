"""The variants that studies compare: each is its formula, and the default is what it was."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch.nn import functional as F

from prismatic.models import POSITIONS, watched
from prismatic.perturb import change
from prismatic.routers import PrismaticRouter

from .test_transformer import (
    ATTENTIONS,
    CAUSAL,
    PAIRS,
    STRONG,
    STUDIED,
    WIDE,
    awake,
    model,
    prismatic,
    tokens,
)

DIM, HEADS, WIDTH, SEQ_LEN, SHORTER = 16, 2, 8, 12, 7
X_BTD = torch.randn(3, SHORTER, DIM, generator=torch.Generator().manual_seed(0)).double()


def attention(kind, bias=False, **options):
    torch.manual_seed(0)
    return awake(ATTENTIONS[kind](DIM, HEADS, SEQ_LEN, bias=bias, **options)).double()


def features(module, x_D):
    """What the projection makes of one token: what is for logits, and the value by head."""
    out = x_D @ module.qkv.weight.detach().numpy().T
    if module.qkv.bias is not None:
        out = out + module.qkv.bias.detach().numpy()
    return out[:-DIM], out[-DIM:].reshape(HEADS, WIDTH)


def logit(kind, module, x_TD, head, t, s):
    """One logit by the definition of its kind."""
    own, other = features(module, x_TD[t])[0], features(module, x_TD[s])[0]
    if kind == "full":
        query, key = own[:DIM].reshape(HEADS, WIDTH), other[DIM:].reshape(HEADS, WIDTH)
        return query[head] @ key[head] / WIDTH**0.5
    if kind == "constant":
        table = module.by_position.weight.detach().numpy()
        return table.reshape(HEADS, SEQ_LEN, SEQ_LEN)[head, s, t]
    if kind == "query":
        return own.reshape(HEADS, SEQ_LEN)[head, s]
    return 0.0 if kind == "uniform" or s == t else other[head]


def by_loops(kind, module, x_TD, penalty=0.0):
    """Attention of one sequence, an entry at a time."""
    mixed = np.zeros((len(x_TD), HEADS, WIDTH))
    for t in range(len(x_TD)):
        for head in range(HEADS):
            row = [logit(kind, module, x_TD, head, t, s) for s in range(t + 1)]
            row -= penalty * 2.0 ** (-4 * (head + 1)) * (t - np.arange(t + 1))
            weights = softmax(row)
            mixed[t, head] = sum(
                w * features(module, x_TD[s])[1][head] for s, w in enumerate(weights)
            )
    out = mixed.reshape(len(x_TD), DIM) @ module.out.weight.detach().numpy().T
    return out if module.out.bias is None else out + module.out.bias.detach().numpy()


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(("positions", "penalty"), [("none", 0.0), ("alibi", 1.0)])
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_attention_is_its_definition(kind, positions, penalty, bias):
    module = attention(kind, bias)
    found = module(X_BTD, POSITIONS[positions](SEQ_LEN, DIM, HEADS).double())
    expected = [by_loops(kind, module, x_TD, penalty) for x_TD in X_BTD.numpy()]
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-10, atol=1e-12)


# Whether the weights of a query depend on its own token, and on the others that it sees.
DEPENDS = {
    "full": (True, True), "uniform": (False, False), "constant": (False, False),
    "query": (True, False), "key": (False, True),
}  # fmt: skip


def weights(module, x_BTD, positions="none"):
    seen = []
    with watched(module, lambda logits, probs: seen.append(probs)):
        module(x_BTD, POSITIONS[positions](SEQ_LEN, DIM, HEADS).double())
    return seen[0]


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_weights_depend_on_the_tokens_that_their_kind_names(kind):
    module, t = attention(kind), 4
    before = weights(module, X_BTD)[:, :, t]
    for place, depends in zip((t, t - 1), DEPENDS[kind], strict=True):
        changed = X_BTD.clone()
        changed[:, place] += 1
        assert torch.equal(weights(module, changed)[:, :, t], before) != depends
    assert torch.equal(before[..., t + 1 :], torch.zeros_like(before[..., t + 1 :]))


def test_uniform_weights_are_equal_over_what_is_visible():
    for t, row_BHS in enumerate(weights(attention("uniform"), X_BTD, "rope").unbind(2)):
        torch.testing.assert_close(
            row_BHS[..., : t + 1], torch.full_like(row_BHS, 1 / (t + 1))[..., : t + 1]
        )


def test_of_two_tokens_the_weights_are_a_function_of_the_first_or_of_the_last():
    x_BTD = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    x_BTD = F.one_hot(x_BTD, DIM).double()
    for kind, same in (("key", 1), ("query", 0)):
        on_first_XYH = weights(attention(kind), x_BTD)[:, :, 1, 0].unflatten(0, (3, 3))
        assert torch.allclose(on_first_XYH.diff(dim=same), torch.zeros(()).double())
        assert on_first_XYH.diff(dim=1 - same).abs().min() > 1e-3


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_every_parameter_of_attention_has_a_gradient(kind):
    module = attention(kind, bias=True)
    module(X_BTD, POSITIONS["none"](SEQ_LEN, DIM, HEADS)).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_what_needs_no_queries_and_keys_has_none():
    sizes = {kind: sum(p.numel() for p in attention(kind).parameters()) for kind in ATTENTIONS}
    values = 2 * DIM * DIM
    assert sizes == {
        "full": values + 2 * DIM * DIM, "uniform": values,
        "constant": values + HEADS * SEQ_LEN * SEQ_LEN, "query": values + DIM * HEADS * SEQ_LEN,
        "key": values + DIM * HEADS,
    }  # fmt: skip


NORMALISED = {
    "layernorm": lambda x, weight, bias: (x - x.mean(-1, keepdim=True))
    / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt() * weight + bias,
    "rmsnorm": lambda x, weight, bias: x
    / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt() * weight,
}  # fmt: skip


@pytest.mark.parametrize("positions", ["none", "rope"])
@pytest.mark.parametrize("norm", NORMALISED)
def test_queries_and_keys_are_normalised_by_head_before_they_are_rotated(norm, positions):
    net = awake(model(qk_norm=norm, positions=positions, num_layers=1)).double()
    block = net.routers[0].expert.attention
    seen = []
    with watched(net, lambda *shown: seen.append(shown[0])):
        net(tokens())
    x_BTD = block.norm(net.embedding(tokens()))
    q, k, _ = block.inner.qkv(x_BTD).unflatten(-1, (3, HEADS, WIDTH)).unbind(2)
    pair = []
    for x, module in ((q, block.inner.q_norm), (k, block.inner.k_norm)):
        unit = NORMALISED[norm](x, module.weight, getattr(module, "bias", None))
        pair.append(net.positions.rotate(unit.transpose(1, 2)))
    expected = (pair[0] @ pair[1].mT / WIDTH**0.5).tril()
    torch.testing.assert_close(seen[0].tril().nan_to_num(neginf=0), expected)


def test_the_gain_multiplies_the_query_key_product_alone():
    seen = {}
    for gain in (1.0, 3.0):
        net = awake(model(qk_gain=gain, positions="alibi", num_layers=1)).double()
        with watched(net, lambda logits, probs, gain=gain: seen.update({gain: logits})):
            net(tokens())
    bias = net.positions.bias(torch.zeros(1, HEADS, 9, WIDTH))
    visible = (bias > -torch.inf).expand_as(seen[1.0])
    product = (seen[1.0] - bias)[visible]
    torch.testing.assert_close(seen[3.0][visible], (3 * product + bias.expand_as(visible)[visible]))


@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_sublayers_are_their_formula(placement, residual, final_norm):
    options = {"norm_placement": placement, "residual": residual, "final_norm": final_norm}
    net = awake(model(**options))
    x = net.embedding(tokens())
    for router in net.routers:
        for part, args in ((router.expert.attention, (net.positions,)), (router.expert.mlp, ())):
            skipped = x if residual else torch.zeros_like(x)
            if placement == "pre":
                x = skipped + part.inner(part.norm(x), *args)
            else:
                x = part.norm(skipped + part.inner(x, *args))
    if final_norm:
        x = F.layer_norm(x, (DIM,), net.norm.weight, net.norm.bias)
    assert torch.allclose(net(tokens()), x @ net.embedding.weight.T, atol=1e-6)


def test_the_default_model_has_the_weights_it_always_had():
    block = ["norm.weight", "norm.bias"]
    attention = [*block, "inner.qkv.weight", "inner.out.weight"]
    mlp = [*block, "inner.up.weight", "inner.out.weight"]
    assert [name for name, _ in model(num_layers=1).named_parameters()] == [
        "embedding.weight", "norm.weight", "norm.bias",
        *(f"blocks.0.expert.attention.{name}" for name in attention),
        *(f"blocks.0.expert.mlp.{name}" for name in mlp),
    ]  # fmt: skip


def test_parts_may_be_objects_instead_of_names():
    named = awake(model(attention="full", norm_placement="post"))
    from_objects = {
        "attention": ATTENTIONS["full"],
        "norm_placement": type(named.blocks[0].expert.mlp),
    }
    assert torch.equal(named(tokens()), awake(model(**from_objects))(tokens()))


@pytest.mark.parametrize(("level", "pool"), PAIRS)
@pytest.mark.parametrize("options", STUDIED, ids=str)
def test_every_level_forces_the_same_views(options, level, pool):
    """What the rules of one merge per position compute, and what merged weights do."""
    reference = awake(model(router=prismatic("batch", "mean"), **options)).double()
    routed = awake(model(router=prismatic(level, pool), **options)).double()
    routed.load_state_dict(reference.state_dict(), strict=False)
    for view in (0, 2):
        with reference.forced(view), routed.forced(view):
            torch.testing.assert_close(routed(tokens()), reference(tokens()))


@pytest.mark.parametrize("options", STUDIED, ids=str)
@pytest.mark.parametrize(("level", "pool"), CAUSAL)
def test_causal_routing_stays_causal(level, pool, options):
    net = awake(model(router=prismatic(level, pool), **options)).double()
    later = tokens().clone()
    later[:, 5:] = (later[:, 5:] + 1) % 11
    before, after = net(tokens())[:, :5], net(later)[:, :5]
    assert torch.allclose(before, after, rtol=0, atol=1e-12)


def test_a_table_of_logits_is_merged_by_the_routing_of_the_query_position():
    net = awake(model(router=prismatic(), attention=ATTENTIONS["constant"], num_layers=1)).double()
    seen = []
    with watched(net, lambda logits, probs: seen.append(logits)):
        net(tokens())
    name, router = "attention.inner.by_position.weight", net.routers[0]
    table, path = router.expert.get_parameter(name), f"blocks.0.{name}"
    f_E = [torch.zeros_like(table), *(change(table, i, 3, STRONG, WIDE, path) for i in (1, 2))]
    probs_BTE = net.routing[0].probs.double()
    merged_BTOI = table * (1 + torch.einsum("bte,eoi->btoi", probs_BTE, torch.stack(f_E)))
    assert merged_BTOI[0, 3].sub(merged_BTOI[0, 4]).abs().max() > 1e-3
    own_BTO = merged_BTOI[..., torch.arange(9)].diagonal(dim1=1, dim2=3).mT
    expected_BHTS = own_BTO.unflatten(-1, (HEADS, SEQ_LEN)).transpose(1, 2)[..., :9]
    torch.testing.assert_close(seen[0].tril().nan_to_num(neginf=0), expected_BHTS.tril())


def test_the_routed_table_learns_and_moves_the_gate():
    router = partial(PrismaticRouter, num_experts=3, perturbation=STRONG, focal=WIDE)
    net = awake(model(router=router, attention=ATTENTIONS["constant"]))
    net(tokens()).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
