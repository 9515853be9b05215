"""A forward layer by layer: hidden states and attention of every pass.

Shapes: B batch, T time of the query, S of the key, D model width, H heads, L passes.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch.func import functional_call

from prismatic.models import Transformer, watched


class Trace(NamedTuple):
    """Hidden states (B, T, D) after each pass, and its attention's logits and probabilities
    (B, H, T, S).
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

    with watched(model, see), ExitStack() as stack:
        for router in model.routers:
            hook = router.register_forward_hook(lambda module, args, out: seen.hidden_L.append(out))
            stack.callback(hook.remove)
        functional_call(model, dict(changed or {}), (tokens_BT,))
    return seen


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
