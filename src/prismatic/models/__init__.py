"""The base transformer and its interchangeable parts."""

from .attention import ATTENTIONS, Attention, QueryKey, watched
from .init import INITS
from .parts import MLPS, NORMS, PLACEMENTS, POSITIONS, Block, PreNorm, full_tensor
from .sampling import generate
from .transformer import Transformer

__all__ = [
    "ATTENTIONS", "INITS", "MLPS", "NORMS", "PLACEMENTS", "POSITIONS", "Attention", "Block",
    "PreNorm", "QueryKey", "Transformer", "full_tensor", "generate", "watched",
]  # fmt: skip
