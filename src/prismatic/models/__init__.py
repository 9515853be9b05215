"""The base transformer and its interchangeable parts."""

from .init import INITS
from .parts import MLPS, NORMS, POSITIONS, Attention, Block, Residual
from .sampling import generate
from .transformer import Transformer

__all__ = [
    "INITS", "MLPS", "NORMS", "POSITIONS", "Attention", "Block", "Residual", "Transformer",
    "generate",
]  # fmt: skip
