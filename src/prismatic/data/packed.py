"""The task of predicting the next token, over domains that lie in one array."""

# Shapes: B rows of a batch, R rows to evaluate, T positions, D domains, N tokens, M documents.

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from .task import SPLITS, Batch, Task, next_tokens, require_count, require_held_out, stream


class Starts(Protocol):
    """Where training windows may begin."""

    def draw(self, rng: np.random.Generator, domain_B: np.ndarray) -> np.ndarray:
        """Return a position to begin at for each of these domains: (B,)."""
        ...


class Anywhere:
    """Windows begin at any position of a domain from which they stay inside it."""

    def __init__(self, bounds_D2: np.ndarray, seq_len: int) -> None:
        self.bounds_D2, self.seq_len = bounds_D2, seq_len

    def draw(self, rng: np.random.Generator, domain_B: np.ndarray) -> np.ndarray:
        begin_B, end_B = self.bounds_D2[domain_B].T
        return begin_B + rng.integers(end_B - begin_B - self.seq_len)


class AtDocuments(Anywhere):
    """Windows begin at documents, and every `seq_len` tokens inside one that is longer.

    A window is as likely as the tokens to its next one are many, and where its document is at its
    end, it goes on into the next. `first_M` are the positions at which documents begin, in order.
    """

    def __init__(self, bounds_D2: np.ndarray, seq_len: int, first_M: np.ndarray) -> None:
        super().__init__(bounds_D2, seq_len)
        self.first_M = first_M

    def draw(self, rng: np.random.Generator, domain_B: np.ndarray) -> np.ndarray:
        at_B = super().draw(rng, domain_B)
        first_B = self.first_M[np.searchsorted(self.first_M, at_B, side="right") - 1]
        return at_B - (at_B - first_B) % self.seq_len


class PackedTask(Task):
    """Predict the next token, over one or several domains.

    `bounds` says of each split where each domain begins and ends in `tokens_N`: (D, 2). Each row of
    a training batch draws a domain by `weight_D`, by default in proportion to its tokens, and a
    window of T + 1 tokens inside it. Held-out windows start every T tokens, domain by domain, so
    that every token but a domain's first is predicted once; what is left at a domain's end, too
    short for a window, is dropped. Of the "val" windows at most `held_out_tokens` tokens are taken,
    evenly from all; None takes all.
    """

    def __init__(
        self,
        tokens_N: np.ndarray,
        bounds: Mapping[str, np.ndarray],
        seq_len: int,
        *,
        weight_D: Sequence[float] | np.ndarray | None = None,
        starts: Starts | None = None,
        held_out_tokens: int | None = None,
    ) -> None:
        self.tokens_N, self.bounds, self.seq_len = tokens_N, bounds, seq_len
        self.starts = starts or Anywhere(bounds["train"], seq_len)
        size_D = np.diff(bounds["train"]).ravel() if weight_D is None else np.asarray(weight_D)
        self.share_D = size_D / size_D.sum()
        self.rows = {split: windows(bounds[split], seq_len) for split in SPLITS[1:]}
        if held_out_tokens is not None:
            self.rows["val"] = evenly(self.rows["val"], max(1, held_out_tokens // seq_len))

    def train_batch(self, index: int, size: int, seed: int) -> Batch:
        require_count("size", size, "optim.batch_size=32")
        rng = stream(seed, index)
        domain_B = rng.choice(len(self.share_D), size, p=self.share_D)
        return self.batch(self.starts.draw(rng, domain_B), domain_B)

    def num_rows(self, split: str) -> int:
        require_held_out(split)
        return len(self.rows[split][0])

    def held_out(self, split: str, row_B: torch.Tensor | None = None) -> Batch:
        require_held_out(split)
        first_R, domain_R = self.rows[split]
        chosen = slice(None) if row_B is None else row_B.numpy()
        return self.batch(first_R[chosen], domain_R[chosen])

    def batch(self, first_B: np.ndarray, domain_B: np.ndarray) -> Batch:
        """Return the windows that begin at these positions."""
        window_BW = self.tokens_N[first_B[:, None] + np.arange(self.seq_len + 1)]
        return next_tokens(torch.from_numpy(window_BW.astype(np.int64)), torch.from_numpy(domain_B))


def windows(bounds_D2: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where held-out windows begin, (R,), and their domains, (R,)."""
    first_D = [np.arange(begin, end - seq_len, seq_len) for begin, end in bounds_D2]
    return np.concatenate(first_D), np.repeat(np.arange(len(first_D)), [len(f) for f in first_D])


def evenly(rows: tuple[np.ndarray, np.ndarray], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return at most so many of the rows, evenly from all of them."""
    first_R, domain_R = rows
    chosen = np.linspace(0, len(first_R) - 1, min(most, len(first_R))).astype(np.int64)
    return first_R[chosen], domain_R[chosen]
