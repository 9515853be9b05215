"""The base transformer and its interchangeable parts."""

from .init import INITS
from .parts import MLPS, NORMS, POSITIONS, Attention, Block, Residual, watched
from .sampling import generate
from .transformer import Transformer

__all__ = [
    "INITS", "MLPS", "NORMS", "POSITIONS", "Attention", "Block", "Residual", "Transformer",
    "generate", "watched",
]  # fmt: skip
