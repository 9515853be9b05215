"""Tasks whose best possible loss is known exactly."""

# Shapes: B rows, T positions, W = T + 1 tokens of a window; X, Y, Z values of the three tokens.

from abc import ABC, abstractmethod
from hashlib import sha256
from math import log

import numpy as np
import torch

from prismatic.stats.tables import conditional_entropy, joint_table

from .task import IGNORE, Batch, Task, next_tokens, require_count, require_held_out, stream


class DrawnTask(Task, ABC):
    """A task of fresh draws from a known distribution, in one domain; held-out draws are fixed."""

    held_out_size: int

    @abstractmethod
    def draw(self, rng: np.random.Generator, size: int) -> Batch:
        """Return `size` rows drawn with `rng`."""

    def train_batch(self, index: int, size: int, seed: int) -> Batch:
        """Return `size` fresh rows; a pure function of the arguments."""
        require_count("size", size, "optim.batch_size=32")
        return self.draw(stream(seed, index), size)

    def num_rows(self, split: str) -> int:
        require_held_out(split)
        return self.held_out_size

    def held_out(self, split: str, row_B: torch.Tensor | None = None) -> Batch:
        """Return rows of the `held_out_size` of "val" or "test", drawn apart from all training."""
        require_held_out(split)
        drawn = self.draw(stream(0, 0, split), self.held_out_size)
        return drawn if row_B is None else Batch(*(part[row_B] for part in drawn))


class MixedTask(DrawnTask):
    """Predict z from the two tokens x, y (source 004): only the last position is scored.

    `joint` is the table P(x, y, z): three axes, no entry below 0, sum 1; a token is its index. In
    nats, `bayes_loss` is H(Z|X,Y), and `baselines` hold the log of the vocabulary and the entropy
    of Z knowing nothing, x alone, y alone. Held-out splits have `held_out_size` rows each. Raises
    ValueError for another table or size.
    """

    seq_len = 2
    domains = ("mixed",)
    predicts = "last"

    def __init__(self, joint: np.ndarray, held_out_size: int = 4096) -> None:
        require_count("held_out_size", held_out_size, "data.held_out_size=4096")
        self.joint_XYZ = joint_table(joint)
        self.held_out_size = held_out_size
        self.vocab_size = max(self.joint_XYZ.shape)
        self.bayes_loss = conditional_entropy(self.joint_XYZ, "xy")
        self.baselines = {
            "uniform": log(self.vocab_size),
            "entropy_z": conditional_entropy(self.joint_XYZ),
            "entropy_z_given_x": conditional_entropy(self.joint_XYZ, "x"),
            "entropy_z_given_y": conditional_entropy(self.joint_XYZ, "y"),
        }
        self.manifest = drawn_manifest(self)

    def draw(self, rng: np.random.Generator, size: int) -> Batch:
        """Return rows of x, y with z as the second position's target."""
        cell_B = rng.choice(self.joint_XYZ.size, size, p=self.joint_XYZ.ravel())
        x_B, y_B, z_B = map(torch.from_numpy, np.unravel_index(cell_B, self.joint_XYZ.shape))
        targets_BT = torch.stack([torch.full_like(z_B, IGNORE), z_B], 1)
        return Batch(torch.stack([x_B, y_B], 1), targets_BT, torch.zeros_like(z_B))


class IIDTask(DrawnTask):
    """Predict the next of independent uniform tokens: an honest loss is not below ln(vocabulary).

    It guards against leaks. Each held-out split scores at least `held_out_tokens` tokens, in whole
    windows. Raises ValueError for a count below 1.
    """

    domains = ("iid",)

    def __init__(
        self, vocab_size: int = 32, seq_len: int = 128, held_out_tokens: int = 131_072
    ) -> None:
        require_count("vocab_size", vocab_size, "data.vocab_size=32")
        require_count("seq_len", seq_len, "data.seq_len=128")
        require_count("held_out_tokens", held_out_tokens, "data.held_out_tokens=131072")
        self.vocab_size = vocab_size
        self.seq_len = seq_len
        self.held_out_size = -(-held_out_tokens // seq_len)
        self.bayes_loss = log(vocab_size)
        self.baselines = {"uniform": log(vocab_size)}
        self.manifest = drawn_manifest(self)

    def draw(self, rng: np.random.Generator, size: int) -> Batch:
        """Return windows of independent tokens."""
        window_BW = torch.from_numpy(rng.integers(self.vocab_size, size=(size, self.seq_len + 1)))
        return next_tokens(window_BW, torch.zeros(size, dtype=torch.int64))


def drawn_manifest(task: Task) -> list[dict]:
    """Return the manifest row of a drawn task: its held-out tokens stand for the whole.

    The version is numpy's, because its generators may draw differently in another one.
    """
    held_out = [task.held_out(split) for split in ("val", "test")]
    drawn = b"".join(part.numpy().tobytes() for batch in held_out for part in batch[:2])
    row = {"source": task.domains[0], "version": f"numpy {np.__version__}"}
    return [row | {"sha256": sha256(drawn).hexdigest(), "bytes": len(drawn)}]
