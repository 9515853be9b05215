"""The base transformer: a small decoder whose blocks are wrapped by routers and may be iterated.

Shapes: B batch, T time, D model width, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from prismatic.errors import one_of, require
from prismatic.routers import DenseRouter, Router, Routing, recomputed, select_together

from .attention import ATTENTIONS, Attention
from .init import INITS
from .parts import MLPS, NORMS, PLACEMENTS, POSITIONS, SKIPS, Block
from .routed import RoutedModel

RouterOf = Callable[..., Router]
V = TypeVar("V")
CHECKPOINT = partial(checkpoint, use_reentrant=False)


def pick(table: Mapping[str, V], name: str, choice: Any) -> V:
    """An entry of a table by name; anything that is no name is the object itself."""
    if not isinstance(choice, str):
        return choice
    one_of(f"model.{name}", choice, tuple(table))
    return table[choice]


class Transformer(RoutedModel):
    """Decoder with tied embeddings: tokens (B, T) -> logits (B, T, V).

    `num_layers` physical blocks are iterated to `depth` passes (default: once each); pass t uses
    block t mod num_layers. `router(expert, hidden_size=..., name=...)` wraps each block. `norm`,
    `norm_placement`, `mlp`, `attention`, `qk_norm`, `positions` and `init` are names of the tables
    NORMS, PLACEMENTS, MLPS, ATTENTIONS, NORMS, POSITIONS and INITS, or objects that do the same.
    `gradient_checkpointing` keeps a block's input alone and computes the rest again in the
    backward (arXiv 1604.06174). `residual=False` leaves out what goes around the sublayers,
    `final_norm=False` the norm before the head, and `qk_gain` multiplies the scaled query-key
    product. Raises `ValueError` for values that do not fit one another. After a forward, `routing`
    holds one `Routing` per pass.
    """

    def __init__(
        self,
        vocab_size: int,
        seq_len: int,
        dim: int = 128,
        num_layers: int = 4,
        depth: int | None = None,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        bias: bool = False,
        norm: str | Callable[[int], nn.Module] = "layernorm",
        norm_placement: str | Callable[..., nn.Module] = "pre",
        final_norm: bool = True,
        residual: bool = True,
        attention: str | Callable[..., Attention] = "full",
        qk_norm: str | Callable[[int], nn.Module] = "none",
        qk_gain: float = 1.0,
        mlp: str | Callable[[int, int, bool], nn.Module] | None = "gelu",
        positions: str | Callable[[int, int, int], nn.Module] = "rope",
        init: str | Callable[[nn.Module], None] = "normal_02",
        gradient_checkpointing: bool = False,
        router: RouterOf = DenseRouter,
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("num_layers", num_layers), ("num_heads", num_heads)):
            require(value >= 1, f"model.{name}", value, "give a whole number >= 1")
        for name, number in (("mlp_ratio", mlp_ratio), ("qk_gain", qk_gain)):
            require(0 < number < math.inf, f"model.{name}", number, "give a number > 0")
        switches = {"final_norm": final_norm, "residual": residual}
        switches["gradient_checkpointing"] = gradient_checkpointing
        for name, switch in switches.items():
            require(isinstance(switch, bool), f"model.{name}", switch, "give true or false")
        fitting = f"it must be divisible by model.num_heads={num_heads}"
        require(dim % num_heads == 0, "model.dim", dim, fitting)
        self.vocab_size, self.seq_len = vocab_size, seq_len
        self.gradient_checkpointing = gradient_checkpointing
        self.depth = num_layers if depth is None else depth
        least = f"give null or a whole number >= model.num_layers={num_layers}"
        require(self.depth >= num_layers, "model.depth", depth, least)
        make_norm, make_mlp = pick(NORMS, "norm", norm), pick(MLPS, "mlp", mlp)

        sublayer = partial(pick(PLACEMENTS, "norm_placement", norm_placement), skip=SKIPS[residual])
        make_attention = partial(
            pick(ATTENTIONS, "attention", attention), dim, num_heads, seq_len, bias=bias,
            qk_norm=pick(NORMS, "qk_norm", qk_norm), qk_gain=qk_gain,
        )  # fmt: skip

        def block() -> Block:
            attending = sublayer(make_norm(dim), make_attention())
            if make_mlp is None:
                return Block(attending, nn.Identity())
            inner = make_mlp(dim, int(mlp_ratio * dim), bias)
            return Block(attending, sublayer(make_norm(dim), inner))

        self.embedding = nn.Embedding(vocab_size, dim)
        self.positions = pick(POSITIONS, "positions", positions)(seq_len, dim, num_heads)
        self.norm = (make_norm if final_norm else NORMS["none"])(dim)
        self.blocks = nn.ModuleList(block() for _ in range(num_layers))
        pick(INITS, "init", init)(self)
        # Wrapped after they are initialised: routers leave the random state and the weights alone.
        named = [(f"blocks.{i}", block) for i, block in enumerate(self.blocks)]
        self.blocks = nn.ModuleList(router(b, hidden_size=dim, name=name) for name, b in named)
        self.decided: list[Routing] = []

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        num_tokens, most = tokens_BT.shape[1], self.seq_len
        require(num_tokens <= most, "number of tokens", num_tokens, f"at most seq_len={most}")
        x_BTD = self.positions.embed(self.embedding(tokens_BT))
        self.decided = []
        selected = select_together(self.routers, x_BTD)
        for t, router in enumerate(self.passes()):
            run = partial(router, selected=selected[t % len(selected)])
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x_BTD = recomputed(router, CHECKPOINT, run, x_BTD, self.positions)
            else:
                x_BTD = run(x_BTD, self.positions)
            if router.record is not None:
                self.decided.append(router.record)
        return F.linear(self.norm(x_BTD), self.embedding.weight)

    @property
    def routers(self) -> list[Router]:
        """The router of each physical block."""
        return [block for block in self.blocks if isinstance(block, Router)]

    @property
    def routing(self) -> Sequence[Routing]:
        return self.decided

    def passes(self) -> list[Router]:
        """The router of each pass, in order."""
        routers = self.routers
        return [routers[t % len(routers)] for t in range(self.depth)]

    def __getstate__(self) -> dict[str, Any]:
        # Routing belongs to the graph of the last forward, which cannot be copied.
        return {**self.__dict__, "decided": []}
