"""Training criteria: logits (..., V) and targets (...) -> a scalar, IGNORE left out."""

import torch
from torch.nn import functional as F

from prismatic.data import IGNORE


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean -ln p of the target, in nats per scored token."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORE)


def eml(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean eml(ln p, p) = p - ln p of the target: exp(x) - ln(y) read as a loss.

    Its gradient in the logits is (1 - p)(softmax - onehot): a token is given up on as it is
    learned. Source: 001 and 003, "eml(x, y)".
    """
    surprise = F.cross_entropy(
        logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORE, reduction="none"
    )
    scored = targets.flatten() != IGNORE
    return (torch.exp(-surprise) + surprise)[scored].mean()
