"""Continuing a sequence with a model's own predictions.

Shapes: B batch, T time, V vocabulary.
"""

import torch

from prismatic.errors import require

from .routed import RoutedModel


def nucleus(probs_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the fewest most likely tokens that hold `top_p` of the mass (arXiv 1904.09751)."""
    sorted_BV, order_BV = probs_BV.sort(-1, descending=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    kept_BV = torch.zeros_like(probs_BV).scatter(-1, order_BV, sorted_BV * (before_BV < top_p))
    return kept_BV / kept_BV.sum(-1, keepdim=True)


@torch.no_grad()
def generate(
    model: RoutedModel,
    tokens_BT: torch.Tensor,
    count: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Append `count` sampled tokens to each row: (B, T) -> (B, T + count).

    The model sees the last `seq_len` tokens. `temperature` 0 takes the most likely token. Raises
    `ValueError` for an empty prompt or options out of range.
    """
    require(tokens_BT.shape[1] > 0, "prompt", "", "give at least one token to continue")
    require(temperature >= 0, "temperature", temperature, "give a number >= 0")
    require(0 < top_p <= 1, "top_p", top_p, "give a share in (0, 1]")
    for _ in range(count):
        logits_BV = model(tokens_BT[:, -model.seq_len :])[:, -1].float()
        if temperature == 0:
            next_B1 = logits_BV.argmax(-1, keepdim=True)
        else:
            probs_BV = nucleus((logits_BV / temperature).softmax(-1), top_p)
            next_B1 = torch.multinomial(probs_BV, 1, generator=generator)
        tokens_BT = torch.cat([tokens_BT, next_B1], 1)
    return tokens_BT
