"""What one layer of attention without an MLP can represent, by weights written down and by proof.

With logits R + alpha V, where R_z = -t_z^2 and V_z = 2 t_z, the likeliest z is the one whose t_z is
nearest alpha: one number, free at every pair of tokens, is enough. Attention's weight on x is such
a number. Its logit q(y).k(x) is any table of (x, y), once the head is as wide as there are tokens.

Shapes: X, Y tokens, Z what is predicted, D model width, H heads, K head width, A directions.
"""

from itertools import product
from math import log

import numpy as np
import pytest
import torch
from torch.func import functional_call

from prismatic.data import MixedTask, latin_square, random_function, sum_mod
from prismatic.models import Transformer
from prismatic.stats import loss_ladder
from prismatic.studies.full_batch import cells_of
from prismatic.studies.protocols.floor import Constant, Uniform

DIM = 64
TASKS = {
    "exclusive or": sum_mod(2, noise=0),
    "mod 10": sum_mod(10, noise=0),
    "latin square": latin_square(10, noise=0),
    "random function": random_function(10, noise=0),
    "another": random_function(10, seed=1, noise=0),
}


def transformer(vocab_size, **options):
    """One layer of attention, in float64."""
    torch.manual_seed(0)
    options = {"final_norm": False, "positions": "learned", "num_heads": 1} | options
    return Transformer(vocab_size, 2, DIM, num_layers=1, mlp="none", **options).double()


@torch.no_grad()
def made_orthonormal(model):
    """Let tokens and positions be orthonormal, so that norms do nothing but scale; the directions.

    They are orthogonal to the mean, too, which a norm takes out.
    """
    n = model.vocab_size
    start_DD = torch.randn(DIM, DIM, dtype=torch.float64)
    start_DD[:, 0] = 1
    directions_AD = torch.linalg.qr(start_DD).Q.T[1 : n + 3]
    model.embedding.weight.copy_(directions_AD[:n])
    if hasattr(model.positions, "embedding"):
        model.positions.embedding.weight.copy_(directions_AD[n:])
    return directions_AD


@torch.no_grad()
def set_linear(linear, inputs_AD, outputs_AO):
    """Make a linear map take orthogonal inputs of one length to these outputs, and others to 0."""
    linear.weight.copy_(outputs_AO.T @ inputs_AD / inputs_AD[0].square().sum())


def readout(model, t_Z):
    """The directions of the residual stream whose logits are -t^2 and 2 t."""
    return torch.stack([-t_Z.square(), 2 * t_Z]) @ model.embedding.weight


def scores(alpha_XY, width):
    """What q.k has to be for an attention weight on x."""
    return torch.logit(alpha_XY) * width**0.5


@torch.no_grad()
def one_head(model, z_XY, sharpness):
    """Set the weights of a head that tells x from y by learned positions.

    Query y is the unit vector y, key x the column of wanted scores. A token's score for itself is
    mended by what the first position adds to keys. The value is R + V at the first position and R
    at the second, large enough that what the residual connection adds is nothing beside it.
    """
    n, directions_AD = len(z_XY), made_orthonormal(model)
    t_Z = torch.linspace(0.1, 0.9, n, dtype=torch.float64)
    score_XY = scores(t_Z[z_XY], DIM)
    features_A3K = torch.zeros(n + 2, 3, DIM, dtype=torch.float64)
    features_A3K[:n, 0, :n] = torch.eye(n)
    features_A3K[:n, 1, :n] = score_XY
    features_A3K[n, 1, :n] = score_XY.diagonal()
    features_A3K[n, 2, 0] = features_A3K[n + 1, 2, 1] = 1
    attention = model.routers[0].expert.attention
    scale = (attention.norm(directions_AD[0] + directions_AD[n]) @ directions_AD[0]).item()
    set_linear(attention.inner.qkv, scale * directions_AD, features_A3K.flatten(1))
    r_D, v_D = readout(model, t_Z)
    normed = isinstance(model.norm, torch.nn.LayerNorm)
    values_2D = torch.stack([r_D + v_D, r_D]) * (1e9 if normed else sharpness)
    set_linear(attention.inner.out, torch.eye(2, DIM, dtype=torch.float64), values_2D)
    if normed:
        model.norm.weight.fill_(sharpness)


@torch.no_grad()
def two_heads(model, z_XY, sharpness):
    """Set the weights of two heads without any positions.

    Where x = y attention has nothing to choose from, so the values alone give the diagonal. Else
    the first head's weight moves the sum to where it must be: the values of the two heads differ
    by +4 (x - y) and -4 (x - y), and the second weighs both tokens alike.
    """
    n, width, directions_AD = len(z_XY), DIM // 2, made_orthonormal(model)
    t_Z = torch.linspace(0.1, 0.9, n, dtype=torch.float64)
    own_X, number_X = t_Z[z_XY.diagonal()] / 2, 4 * torch.arange(n, dtype=torch.float64)
    value_HX = torch.stack([own_X + number_X, own_X - number_X])
    step_HXY = value_HX[:, :, None] - value_HX[:, None]
    missing_XY = t_Z[z_XY] - 2 * own_X - step_HXY[1] / 2
    alpha_XY = torch.where(step_HXY[0] == 0, 0.5, missing_XY / step_HXY[0])
    features_A3HK = torch.zeros(n, 3, 2, width, dtype=torch.float64)
    features_A3HK[:, 0, 0, :n] = torch.eye(n)
    features_A3HK[:, 1, 0, :n] = scores(alpha_XY, width)  # of x as y sees it; 0 for y itself
    features_A3HK[:, 2, :, 0] = value_HX.T
    features_A3HK[:, 2, :, 1] = 0.5
    attention = model.routers[0].expert.attention
    tokens_AD = attention.norm(directions_AD[:n])
    set_linear(attention.inner.qkv, tokens_AD, features_A3HK.flatten(1))
    r_D, v_D = readout(model, t_Z) * sharpness
    heads_AD = torch.eye(DIM, dtype=torch.float64)[[0, 1, width, width + 1]]
    set_linear(attention.inner.out, heads_AD, torch.stack([v_D, r_D, v_D, r_D]))


def exact_loss(model, joint):
    with torch.no_grad():
        return float(cells_of(MixedTask(joint)).loss(model))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "options",
    [
        {}, {"residual": False}, {"final_norm": True}, {"norm": "none"},
        {"residual": False, "final_norm": True},
    ],
    ids=str,
)  # fmt: skip
def test_one_head_with_positions_represents_any_function(task, options):
    joint = TASKS[task]
    model = transformer(len(joint), **options)
    losses = []
    for sharpness in (1e3, 1e4, 1e5):
        one_head(model, torch.from_numpy(joint.argmax(2)), sharpness)
        losses.append(exact_loss(model, joint))
    ladder = loss_ladder(joint)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-9 < ladder["additive floor"] - 0.5


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("residual", [True, False])
def test_two_heads_without_positions_represent_any_function(task, residual):
    joint = TASKS[task]
    model = transformer(len(joint), positions="none", num_heads=2, residual=residual)
    two_heads(model, torch.from_numpy(joint.argmax(2)), 1e5)
    assert exact_loss(model, joint) < 1e-9


def test_the_built_head_attends_as_it_should_and_nothing_else_does_the_work():
    joint = TASKS["random function"]
    model = transformer(10)
    one_head(model, torch.from_numpy(joint.argmax(2)), 1e5)
    uniform = transformer(10, attention=Uniform)
    theirs = {k: v[-DIM:] if k.endswith("qkv.weight") else v for k, v in model.state_dict().items()}
    uniform.load_state_dict(theirs)
    assert exact_loss(uniform, joint) > loss_ladder(joint)["additive floor"]


def random_weights(model, seed, scale):
    """All parameters drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scale * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("positions", ["none", "rope"])
@pytest.mark.parametrize("residual", [True, False])
def test_one_head_without_learned_positions_cannot_have_less_than_half_ln_2(positions, residual):
    """A token has one value, wherever it stands: logits are D(y) + alpha (v(x) - v(y)).

    So from (1, 1) to (0, 1) they move against the way from (0, 0) to (1, 0). The exclusive or wants
    z = 0 at the first of each and z = 1 at the second, so for one of the ways the move is wrong or
    none, and its two pairs have 2 ln 2 nats at least: 1/2 ln 2 on the average of four.
    """
    model = transformer(2, positions=positions, residual=residual)
    pairs = torch.tensor(list(product(range(2), repeat=2)))
    for seed, scale in product(range(50), (0.1, 1.0, 10.0)):
        with torch.no_grad():
            weights = random_weights(model, seed, scale)
            logits_CZ = functional_call(model, weights, pairs)[:, -1]
        odds_00, odds_01, odds_10, odds_11 = (logits_CZ[:, 1] - logits_CZ[:, 0]).tolist()
        size = max(map(abs, (odds_00, odds_01, odds_10, odds_11)))
        assert (odds_01 - odds_11) * (odds_10 - odds_00) <= 1e-12 * size**2
        loss = np.logaddexp(0, [odds_00, -odds_01, -odds_10, odds_11]).mean()
        assert loss >= log(2) / 2 - 1e-12


@pytest.mark.parametrize("attention", [Uniform, Constant])
@pytest.mark.parametrize("residual", [True, False])
def test_no_weights_of_constant_attention_are_below_the_floor(attention, residual):
    joint = random_function(4, 3, noise=0.1)
    floor = loss_ladder(joint)["additive floor"]
    for seed, scale in product(range(20), (0.1, 1.0, 10.0)):
        model = transformer(4, attention=attention, residual=residual, num_heads=2)
        weights = random_weights(model, seed, scale)
        model.load_state_dict(weights, strict=False)
        assert exact_loss(model, joint) > floor
