"""How a small change of the first layer's weights travels through a transformer.

Shapes: B batch, T time of the query, S of the key, D model width, H heads, L passes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call, vjp

from prismatic.errors import one_of
from prismatic.models import Transformer, watched

FIRST = "blocks.0.expert."
SITES = ("all", "qk", "vo_mlp")  # what of the first layer is changed


class Trace(NamedTuple):
    """A forward, layer by layer: hidden states (B, T, D) after each pass, and its attention's
    logits and probabilities (B, H, T, S).
    """

    hidden_L: list[torch.Tensor]
    logits_L: list[torch.Tensor]
    probs_L: list[torch.Tensor]


@torch.no_grad()
def trace(
    model: Transformer, tokens_BT: torch.Tensor, changed: Mapping[str, torch.Tensor] | None = None
) -> Trace:
    """Run a model and keep what its layers do, with other values for some of its parameters."""
    seen = Trace([], [], [])

    def see(logits: torch.Tensor, probs: torch.Tensor) -> None:
        seen.logits_L.append(logits)
        seen.probs_L.append(probs)

    with watched(model, see), hidden_states(model, seen.hidden_L):
        functional_call(model, dict(changed or {}), (tokens_BT,))
    return seen


@contextmanager
def hidden_states(model: Transformer, into: list[torch.Tensor]) -> Iterator[None]:
    """Within the context each pass appends what leaves its block."""
    hooks = [
        router.register_forward_hook(lambda module, args, out: into.append(out))
        for router in model.routers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def site_of(model: Transformer, site: str) -> dict[str, slice]:
    """The parameters of the first layer that belong to a site, and which rows of each."""
    one_of("site", site, SITES)
    names = [name for name, _ in model.named_parameters() if name.startswith(FIRST)]
    whole, width = slice(None), 2 * model.embedding.embedding_dim  # of queries and keys
    if site == "all":
        return dict.fromkeys(names, whole)
    joint = [name for name in names if ".qkv." in name]
    alone = [name for name in names if ".inner." in name and name not in joint]
    norms = [name for name in alone if "q_norm" in name or "k_norm" in name]
    if site == "qk":
        return dict.fromkeys(joint, slice(width)) | dict.fromkeys(norms, whole)
    rest = [name for name in alone if name not in norms]
    return dict.fromkeys(joint, slice(width, None)) | dict.fromkeys(rest, whole)


def changed_weights(
    model: Transformer, site: str, size: float, seed: int
) -> dict[str, torch.Tensor]:
    """The first layer's parameters after a random change, `size` times as large as they are.

    The relative size is in norm, of each parameter or of its rows that belong to the site. One
    direction for all sizes.
    """
    generator, weights = torch.Generator().manual_seed(seed), dict(model.named_parameters())
    changed = {}
    for name, rows in site_of(model, site).items():
        weight = weights[name].detach().clone()
        part = weight[rows]
        noise = torch.randn(part.shape, generator=generator, dtype=torch.float64).to(part)
        weight[rows] = part + size * part.norm() / noise.norm() * noise
        changed[name] = weight
    return changed


def apart(clean: Trace, moved: Trace) -> tuple[list[float], list[float]]:
    """By layer: the mean total variation between attention rows, those of one entry left out, and
    the relative change in norm of the hidden state.
    """
    variation_L = [
        float((after - before)[:, :, 1:].abs().sum(-1).mean() / 2)
        for before, after in zip(clean.probs_L, moved.probs_L, strict=True)
    ]
    change_L = [
        float((after - before).norm() / before.norm())
        for before, after in zip(clean.hidden_L, moved.hidden_L, strict=True)
    ]
    return variation_L, change_L


class Sharpness(NamedTuple):
    """Of one attention: the mean deviation of a row's logits, their largest magnitude, and the mean
    entropy of a row in units of ln(row length). Rows of one entry are left out.
    """

    spread: float
    largest: float
    entropy: float


def sharpness(logits: torch.Tensor, probs: torch.Tensor) -> Sharpness:
    """See `Sharpness`; logits (B, H, T, S) are -inf where masked."""
    seen = logits[:, :, 1:] > -torch.inf
    row, size = logits[:, :, 1:].masked_fill(~seen, 0.0), seen.sum(-1)
    mean = (row.sum(-1) / size)[..., None]
    variance = ((row - mean).square() * seen).sum(-1) / size
    entropy = torch.special.entr(probs[:, :, 1:]).sum(-1) / size.log()
    return Sharpness(float(variance.sqrt().mean()), float(row.abs().max()), float(entropy.mean()))


def exponent(
    steps: Sequence[Callable[[torch.Tensor], torch.Tensor]],
    x_BTD: torch.Tensor,
    seed: int,
    iterations: int = 4,
) -> float:
    """The finite-time Lyapunov exponent per step: ln of the largest singular value of the Jacobian
    of all steps, by power iteration, over their number. Mean over sequences, which are independent.

    Power iteration comes from below: after four rounds ln of the singular value is some 1 % low.
    """

    def through(x_BTD: torch.Tensor) -> torch.Tensor:
        for step in steps:
            x_BTD = step(x_BTD)
        return x_BTD

    def unit(v_BTD: torch.Tensor) -> torch.Tensor:
        return v_BTD / v_BTD.flatten(1).norm(dim=1)[:, None, None]

    noise = torch.randn(x_BTD.shape, generator=torch.Generator().manual_seed(seed))
    x_BTD, v_BTD = x_BTD.detach(), unit(noise.to(x_BTD))
    with torch.enable_grad():
        back = vjp(through, x_BTD)[1]
        # The transpose of the transpose: torch's forward mode loads a second for its own use.
        push = vjp(lambda u_BTD: vjp(through, x_BTD)[1](u_BTD)[0], torch.zeros_like(x_BTD))[1]
        for _ in range(iterations):
            v_BTD = unit(back(push(v_BTD)[0])[0])
        u_BTD = push(v_BTD)[0]
    return float(u_BTD.flatten(1).norm(dim=1).log().mean() / len(steps))


def exponent_of(model: Transformer, x_BTD: torch.Tensor, seed: int, iterations: int = 4) -> float:
    """`exponent` of the layers after the first, from the hidden state that it leaves."""
    steps = [lambda x, router=router: router(x, model.positions) for router in model.passes()[1:]]
    with watched(model, lambda logits, probs: None), without_gradients(model):
        return exponent(steps, x_BTD, seed, iterations)


@contextmanager
def without_gradients(model: nn.Module) -> Iterator[None]:
    """Within the context no parameter wants a gradient."""
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in wanting:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)
