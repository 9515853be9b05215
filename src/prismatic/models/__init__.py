"""The base transformer and its interchangeable parts."""

from .attention import ATTENTIONS, Attention, attentions, hide_future, watched
from .init import INITS
from .parts import MLPS, NORMS, PLACEMENTS, POSITIONS, Block, PreNorm, full_tensor
from .routed import RoutedModel
from .sampling import generate
from .transformer import Transformer

__all__ = [
    "ATTENTIONS", "INITS", "MLPS", "NORMS", "PLACEMENTS", "POSITIONS", "Attention", "Block",
    "PreNorm", "RoutedModel", "Transformer", "attentions", "full_tensor", "generate", "hide_future",
    "watched",
]  # fmt: skip
