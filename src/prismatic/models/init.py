"""Initialisations of a transformer: each sets every weight, from the global random state.

Gains are 1 and biases 0 in all of them.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

Fill = Callable[[torch.Tensor], object]


def initialise(model: nn.Module, linear: Fill, embedding: Fill) -> None:
    """Fill the weights of every linear map and embedding; biases are 0."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            embedding(module.weight)
        elif isinstance(module, nn.Linear):
            linear(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


small, unit = partial(nn.init.normal_, std=0.02), partial(nn.init.normal_, std=1.0)
normal_02 = partial(initialise, linear=small, embedding=small)


def zero_residual(model: nn.Module) -> None:
    """As `normal_02`, but every sublayer's output matrix is 0, so that a block is the identity."""
    normal_02(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(".out"):
            nn.init.zeros_(module.weight)


INITS: dict[str, Callable[[nn.Module], None]] = {
    "normal_02": normal_02,  # N(0, 0.02) everywhere, as GPT-2
    "xavier": partial(initialise, linear=nn.init.xavier_uniform_, embedding=unit),
    "xavier_embed_02": partial(initialise, linear=nn.init.xavier_uniform_, embedding=small),
    "zero_residual": zero_residual,
}
