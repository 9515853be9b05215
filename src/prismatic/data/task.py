"""What training and evaluation need of data, and what every task is made with."""

# Shapes: B rows, T positions, W = T + 1 tokens of a window.

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
import torch

from prismatic.errors import one_of, require

IGNORE = -100
SPLITS = ("train", "val", "test")


class Batch(NamedTuple):
    """Inputs, targets (IGNORE where nothing is predicted) and each row's index into `domains`."""

    tokens_BT: torch.Tensor
    targets_BT: torch.Tensor
    domain_B: torch.Tensor


class Tokenizer(Protocol):
    """Between text and tokens."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without an end."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; bytes that are no UTF-8 are shown as U+FFFD."""
        ...


class Task(Protocol):
    """What training and evaluation need of data; all three tensors of a batch are int64.

    A class that names this one as its base need not say what has a value here.
    """

    vocab_size: int
    seq_len: int
    domains: tuple[str, ...]
    predicts: str = "next"
    """"next": every position predicts the token after it; "last": only the last one is scored."""
    tokenizer: Tokenizer | None = None
    """What the tokens are as text; None where they are none."""
    bytes_per_token: Mapping[str, float] = MappingProxyType({})
    """Of each split, the bytes of text to one token, for bits per byte; empty where none."""
    bayes_loss: float | None = None
    """The least expected loss any model can have, in nats per scored token; None where unknown."""
    baselines: dict[str, float]
    """Losses to compare with, in nats per scored token."""
    manifest: list[dict]
    """Where the data came from: rows of at least source, version, sha256 and bytes."""

    def train_batch(self, index: int, size: int, seed: int) -> Batch:
        """Return training batch number `index`: a pure function of the arguments."""
        ...

    def num_rows(self, split: str) -> int:
        """Return how many rows of "val", or of "test", there are to evaluate."""
        ...

    def held_out(self, split: str, row_B: torch.Tensor | None = None) -> Batch:
        """Return the rows of "val" or "test" of these numbers, by default all in their order."""
        ...


def next_tokens(window_BW: torch.Tensor, domain_B: torch.Tensor) -> Batch:
    """Return the batch in which each token of a window but the last predicts the one after it."""
    window_BW = window_BW.long()
    return Batch(window_BW[:, :-1].contiguous(), window_BW[:, 1:].contiguous(), domain_B)


def stream(seed: int, index: int, split: str = "train") -> np.random.Generator:
    """Return a random generator that depends on the arguments alone.

    Philox-4x64 (Salmon et al., SC 2011) is a block cipher on a counter: seed and index are its key,
    and each split counts from its own number, so that no two streams share a block.
    """
    for name, value in (("seed", seed), ("index", index)):
        whole = isinstance(value, int) and 0 <= value < 2**64
        require(whole, name, value, "give a whole number from 0 to 2**64 - 1")
    counter = np.array([0, 0, 0, SPLITS.index(split)], dtype=np.uint64)
    key = np.array([seed, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def require_count(name: str, value: int, example: str) -> None:
    """Raise ValueError unless `value` is a whole number of at least 1."""
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    require(whole, name, value, f"give a whole number of at least 1, as in {example}")


def require_held_out(split: str) -> None:
    """Raise ValueError unless `split` names held-out data."""
    one_of("split", split, SPLITS[1:])
