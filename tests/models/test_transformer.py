"""The base transformer: recurrence, causality, parts by name, and routers as its blocks."""

import copy
from functools import cache, partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prismatic.models import INITS, MLPS, NORMS, POSITIONS, Attention, Transformer
from prismatic.perturb import Focal, Perturbation
from prismatic.routers import ConstantRouter, DenseRouter, PrismaticRouter, SmearRouter
from prismatic.studies.protocols.floor import Constant, FromKey, FromQuery, Uniform

VOCAB, SEQ_LEN = 11, 12
ATTENTIONS = {
    "full": Attention, "uniform": Uniform, "constant": Constant, "query": FromQuery, "key": FromKey,
}  # fmt: skip
WIDE = Focal(units="fraction", length=0.4, wavelength=1.1)
STRONG = Perturbation(sparsity=0.5, scale=0.9)
PAIRS = [
    ("token", "causal_mean"),
    ("token", "first"),
    ("token", "last"),
    ("sequence", "mean"),
    ("sequence", "first"),
    ("sequence", "last"),
    ("batch", "mean"),
    ("batch", "first"),
    ("batch", "last"),
]
CAUSAL = [*PAIRS[:3], ("sequence", "first")]


def model(seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCAB, "seq_len": SEQ_LEN, "dim": 16, "num_layers": 2, "num_heads": 2}
    return Transformer(**(sizes | options))


def prismatic(level="token", pool="causal_mean", perturbation=STRONG, num_experts=3):
    return partial(
        PrismaticRouter,
        num_experts=num_experts,
        perturbation=perturbation,
        focal=WIDE,
        level=level,
        pool=pool,
    )


def tokens(num_rows=3, num_tokens=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (num_rows, num_tokens), generator=generator)


def awake(model):
    """Moves every parameter, so that nothing that starts at 0 hides a mistake."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def parameters(model):
    """The trunk's parameters under the names they have without a router."""
    return {
        name.replace(".expert.", "."): parameter
        for name, parameter in model.named_parameters()
        if ".gate." not in name and ".others." not in name
    }


def step(model, optimiser, tokens_BT, clip=1.0):
    optimiser.zero_grad()
    logits_BTV = model(tokens_BT[:, :-1])
    loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten())
    (50 * loss).backward()
    gates = [p for name, p in model.named_parameters() if ".gate." in name]
    for group in (list(parameters(model).values()), gates):
        nn.utils.clip_grad_norm_(group, clip)
    optimiser.step()
    return loss.item()


def later_moved(model, num_early=5):
    """The logits of the first tokens, before and after all later tokens changed."""
    before = tokens()
    after = torch.cat([before[:, :num_early], (before[:, num_early:] + 1) % VOCAB], 1)
    return [model(x)[:, :num_early] for x in (before, after)]


@pytest.mark.parametrize("shape", [(1, 1), (2, SEQ_LEN), (3, 4)])
def test_tokens_become_logits(shape):
    assert model()(tokens(*shape)).shape == (*shape, VOCAB)


def test_the_head_is_the_embedding():
    net, x = awake(model()), tokens()
    features = []
    net.norm.register_forward_hook(lambda module, args, out: features.append(out))
    logits = net(x)
    assert torch.allclose(logits, features[0] @ net.embedding.weight.T)
    assert not any(p.shape == (VOCAB, 16) for n, p in net.named_parameters() if "embed" not in n)


@pytest.mark.parametrize("router", [DenseRouter, prismatic()])
def test_depth_8_of_2_layers_is_four_trips_through_two_blocks(router):
    net, x = awake(model(depth=8, router=router)), tokens()
    h = net.positions.embed(net.embedding(x))
    for t in range(8):
        h = net.blocks[t % 2](h, net.positions)
    assert torch.equal(net(x), net.norm(h) @ net.embedding.weight.T)
    assert not torch.allclose(net(x), awake(model(router=router))(x))


@pytest.mark.parametrize(("num_layers", "depth"), [(1, 3), (3, 3), (3, 5)])
def test_pass_t_uses_block_t_mod_num_layers(num_layers, depth):
    net, order = model(num_layers=num_layers, depth=depth), []
    for i, block in enumerate(net.blocks):
        block.register_forward_hook(lambda module, args, out, i=i: order.append(i))
    net(tokens())
    assert order == [t % num_layers for t in range(depth)]
    assert len(net.routing) == depth


def test_depth_adds_no_parameters():
    assert sum(p.numel() for p in model().parameters()) == sum(
        p.numel() for p in model(depth=8).parameters()
    )


VARIANTS = [
    *({"norm": name} for name in NORMS),
    *({"mlp": name} for name in MLPS),
    *({"positions": name} for name in POSITIONS),
    *({"init": name} for name in INITS),
    {"bias": True},
    {"mlp_ratio": 1.5},
    {"norm": nn.Identity, "mlp": None},
    *({"attention": kind} for kind in ATTENTIONS.values()),
    {"norm_placement": "post"},
    {"norm_placement": "post", "residual": False, "init": "xavier"},
    {"residual": False, "init": "xavier"},
    {"final_norm": False, "init": "xavier"},
    {"qk_norm": "layernorm", "qk_gain": 4.0},
    {"qk_norm": "rmsnorm", "positions": "alibi"},
]


@pytest.mark.parametrize("router", [DenseRouter, prismatic()], ids=["dense", "prismatic"])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_part_builds_trains_and_is_causal(options, router):
    net = model(router=router, **options)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = [step(net, optimiser, tokens()) for _ in range(8)]
    assert losses[-1] < losses[0]
    before, after = later_moved(net)
    assert torch.allclose(before, after, rtol=0, atol=1e-6)


@pytest.mark.parametrize("positions", ["rope", "learned", "alibi"])
def test_positions_tell_the_order_of_tokens(positions):
    """Without a mask to count by, the last logits of two orders differ by positions alone."""
    x = torch.tensor([[1, 2, 3, 4], [2, 1, 3, 4]])
    one, two = awake(model(num_layers=1, positions=positions))(x)[:, -1]
    assert not torch.allclose(one, two, atol=1e-4)
    one, two = awake(model(num_layers=1, positions="none"))(x)[:, -1]
    assert torch.allclose(one, two, atol=1e-5)


def test_rotary_logits_depend_on_the_distance_alone():
    rope = POSITIONS["rope"](SEQ_LEN, 16, 2)
    q, k = torch.randn(8), torch.randn(8)
    rows = rope.rotate(q.expand(1, 2, SEQ_LEN, 8)), rope.rotate(k.expand(1, 2, SEQ_LEN, 8))
    logits_TT = (rows[0] @ rows[1].mT)[0, 0]
    for offset in (-3, 0, 5):
        diagonal = logits_TT.diagonal(offset)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4)


def test_alibi_is_linear_in_the_distance_and_causal():
    bias_HTT = POSITIONS["alibi"](SEQ_LEN, 16, 2).bias(torch.zeros(1, 2, 4, 8))
    assert bias_HTT.shape == (2, 4, 4)
    assert bias_HTT[0, 3].tolist() == pytest.approx([-3 / 16, -2 / 16, -1 / 16, 0])
    assert bias_HTT[1, 3].tolist() == pytest.approx([-3 / 256, -2 / 256, -1 / 256, 0])
    assert bias_HTT.isinf().sum() == 2 * 6


@pytest.mark.parametrize("init", INITS)
def test_gains_start_at_1_and_biases_at_0(init):
    for name, parameter in model(init=init, bias=True).named_parameters():
        if name.endswith(".bias"):
            assert not parameter.any()
        elif "norm" in name:
            assert (parameter == 1).all()


def matrices(net):
    return {n: p for n, p in net.named_parameters() if p.ndim == 2 and "embedding" not in n}


def test_normal_02_has_a_standard_deviation_of_002():
    net = model(dim=64, positions="learned", init="normal_02")
    for name, parameter in net.named_parameters():
        if parameter.ndim == 2:
            sigma = 0.02 / (2 * parameter.numel()) ** 0.5
            assert parameter.std().item() == pytest.approx(0.02, abs=5 * sigma), name


@pytest.mark.parametrize(("init", "std"), [("xavier", 1.0), ("xavier_embed_02", 0.02)])
def test_xavier_fills_its_bounds(init, std):
    net = model(dim=64, positions="learned", init=init)
    for name, parameter in matrices(net).items():
        bound = (6 / sum(parameter.shape)) ** 0.5
        assert 0.99 * bound < parameter.abs().max().item() <= bound, name
    for embedding in (net.embedding.weight, net.positions.embedding.weight):
        assert embedding.std().item() == pytest.approx(std, rel=0.15)


@pytest.mark.parametrize("mlp", MLPS)
@pytest.mark.parametrize("router", [DenseRouter, prismatic()], ids=["dense", "prismatic"])
def test_zero_residual_starts_as_the_identity(router, mlp):
    net, x = model(init="zero_residual", mlp=mlp, router=router, depth=4), tokens()
    embedded = net.embedding(x)
    assert torch.equal(net(x), net.norm(embedded) @ net.embedding.weight.T)
    assert matrices(net)["blocks.0.expert.attention.inner.qkv.weight"].any()


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("router", [prismatic(), SmearRouter, ConstantRouter])
def test_a_router_leaves_the_weights_of_a_seed_alone(router, init):
    dense, routed = (parameters(model(router=r, init=init)) for r in (DenseRouter, router))
    assert dense.keys() == routed.keys()
    assert all(torch.equal(dense[name], routed[name]) for name in dense)


def trained(router, num_steps=20, **options):
    net = model(router=router, depth=4, **options)
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.01)
    losses = [step(net, optimiser, tokens(seed=i)) for i in range(num_steps)]
    return losses, parameters(net)


@cache
def trained_dense(**options):
    return trained(DenseRouter, **options)


OTHER_PARTS = {"bias": True, "mlp": "swiglu", "norm": "rmsnorm"}
STUDIED = [
    {"norm_placement": "post", "qk_norm": "rmsnorm", "qk_gain": 2.0},
    {"residual": False, "final_norm": False, "qk_norm": "layernorm", "init": "xavier"},
    *({"attention": kind, "mlp": "none"} for name, kind in ATTENTIONS.items() if name != "full"),
]


@pytest.mark.parametrize(
    ("level", "pool", "options"),
    [
        *((*pair, {}) for pair in PAIRS),
        *((*pair, options) for pair in PAIRS[::4] for options in (OTHER_PARTS, *STUDIED)),
    ],
    ids=str,
)
def test_scale_0_is_the_dense_model_bit_for_bit_after_20_clipped_steps(level, pool, options):
    losses, dense = trained_dense(**options)
    losses_2, routed = trained(prismatic(level, pool, Perturbation(scale=0.0)), **options)
    assert losses == losses_2
    assert all(torch.equal(dense[name], routed[name]) for name in dense)


@pytest.mark.parametrize("router", [prismatic(num_experts=1), partial(SmearRouter, num_experts=1)])
def test_one_view_is_the_dense_model_bit_for_bit_after_20_clipped_steps(router):
    assert all(map(torch.equal, trained_dense()[1].values(), trained(router)[1].values()))


@pytest.mark.parametrize("router", [PrismaticRouter, SmearRouter])
@pytest.mark.parametrize(("level", "pool"), PAIRS)
def test_later_tokens_move_earlier_logits_only_of_routers_that_say_so(level, pool, router):
    net = awake(model(router=partial(router, num_experts=3, level=level, pool=pool)))
    before, after = later_moved(net.double())
    same = torch.allclose(before, after, rtol=0, atol=1e-12)
    assert same == ((level, pool) in CAUSAL or pool == "first")
    assert all(r.causal == ((level, pool) in CAUSAL) for r in net.routers)


def test_forcing_a_view_forces_it_in_every_block():
    net, x = awake(model(router=prismatic())), tokens()
    free = net(x)
    with net.forced(2):
        forced = net(x)
        with net.routers[0].forced(0):
            assert not torch.allclose(net(x), forced)
    assert torch.equal(net(x), free) and not torch.allclose(free, forced)
    with net.forced(0):
        dense = awake(model())
        dense.load_state_dict(
            {n: v for n, v in net.state_dict().items() if ".gate." not in n}, strict=False
        )
        assert torch.allclose(net(x), dense(x), atol=1e-6)


def test_blocks_are_named_by_their_path():
    assert [r.name for r in model(router=prismatic()).routers] == ["blocks.0", "blocks.1"]


def test_the_penalty_is_the_mean_over_passes():
    router = partial(prismatic(), balance_loss=1.0, z_loss=0.5)
    net = awake(model(router=router, depth=4))
    net(tokens())
    each = [r.penalty(record) for r, record in zip(net.passes(), net.routing, strict=True)]
    assert torch.allclose(net.penalty(), sum(each) / 4)
    assert net.penalty() > 0


def test_a_model_survives_a_copy_after_a_forward_and_a_state_dict_round_trip():
    net, x = awake(model(router=prismatic())), tokens()
    logits = net(x)
    assert torch.equal(copy.deepcopy(net)(x), logits)
    again = model(seed=1, router=prismatic())
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x), logits)


@pytest.mark.parametrize("router", [DenseRouter, prismatic(), SmearRouter, ConstantRouter])
def test_half_precision_is_close(router):
    net, x = awake(model(router=router)), tokens()
    logits, half = net(x), net.bfloat16()(x)
    assert half.dtype == torch.bfloat16
    assert (half.float() - logits).norm() < 0.05 * logits.norm()


REFUSED = [
    ({"dim": 18, "num_heads": 4}, r"dim=18 .*divisible by model\.num_heads=4"),
    ({"dim": 0}, r"dim=0 .*>= 1"),
    ({"num_layers": 0}, r"num_layers=0 .*>= 1"),
    ({"num_heads": 0}, r"num_heads=0 .*>= 1"),
    ({"mlp_ratio": 0}, r"mlp_ratio=0 .*> 0"),
    ({"num_layers": 3, "depth": 2}, r"depth=2 .*>= model\.num_layers=3"),
    ({"dim": 6, "num_heads": 2}, r"rope.*even head width"),
    ({"norm": "batch"}, "norm='batch' .*layernorm, rmsnorm, none"),
    ({"mlp": "relu"}, "mlp='relu' .*gelu, swiglu, none"),
    ({"positions": "sinus"}, "positions='sinus' .*rope, learned, alibi, none"),
    ({"norm_placement": "middle"}, "norm_placement='middle' .*pre, post"),
    ({"attention": "linear"}, "attention='linear' .*full"),
    ({"qk_norm": "l2"}, "qk_norm='l2' .*layernorm, rmsnorm, none"),
    ({"qk_gain": 0}, r"qk_gain=0 .*> 0"),
    ({"attention": Uniform, "qk_norm": "rmsnorm"}, r"qk_norm=.*RMSNorm.*model\.attention=full"),
    ({"attention": Constant, "qk_gain": 2}, r"qk_gain=2 .*model\.attention=full"),
    ({"residual": "off"}, "residual='off' .*true or false"),
    ({"final_norm": 0}, "final_norm=0 .*true or false"),
    ({"init": "ones"}, "init='ones' .*normal_02, xavier, xavier_embed_02, zero_residual"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda value: str(value)[:30])
def test_nonsense_is_refused_with_its_value_and_what_is_valid(options, message):
    with pytest.raises(ValueError, match=message):
        model(**options)


def test_more_tokens_than_the_model_has_positions_are_refused():
    with pytest.raises(ValueError, match=r"tokens=13 .*seq_len=12"):
        model()(tokens(1, SEQ_LEN + 1))
