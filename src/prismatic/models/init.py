"""Initialisations of a transformer: each sets every weight, from the global random state.

Gains are 1 and biases 0 in all of them.
"""

from collections.abc import Callable

from torch import nn


def _initialise(
    model: nn.Module,
    linear: Callable[[nn.Module], object],
    embedding: Callable[[nn.Module], object],
) -> None:
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            embedding(module)
        if isinstance(module, nn.Linear):
            linear(module)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _normal_02(module: nn.Module) -> object:
    return nn.init.normal_(module.get_parameter("weight"), std=0.02)


def _unit(module: nn.Module) -> object:
    return nn.init.normal_(module.get_parameter("weight"), std=1.0)


def _xavier(module: nn.Module) -> object:
    return nn.init.xavier_uniform_(module.get_parameter("weight"))


def normal_02(model: nn.Module) -> None:
    """N(0, 0.02) everywhere, as GPT-2."""
    _initialise(model, _normal_02, _normal_02)


def xavier(model: nn.Module) -> None:
    """Xavier-uniform matrices and unit-variance embeddings."""
    _initialise(model, _xavier, _unit)


def xavier_embed_02(model: nn.Module) -> None:
    """Xavier-uniform matrices and N(0, 0.02) embeddings."""
    _initialise(model, _xavier, _normal_02)


def zero_residual(model: nn.Module) -> None:
    """As `normal_02`, but every sublayer's output matrix is 0, so that a block is the identity."""
    normal_02(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(".out"):
            nn.init.zeros_(module.weight)


INITS: dict[str, Callable[[nn.Module], None]] = {
    "normal_02": normal_02,
    "xavier": xavier,
    "xavier_embed_02": xavier_embed_02,
    "zero_residual": zero_residual,
}
