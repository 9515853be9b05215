"""What a task is, and the task of predicting the next byte of text."""

# Shapes: B rows, T positions, D domains, N bytes, V byte values, W = T + 1 bytes of a window.

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch

from prismatic.errors import one_of, require

from .corpora import Corpus, TextSource, UserFiles

IGNORE = -100
SPLITS = ("train", "val", "test")


class Batch(NamedTuple):
    """Inputs, targets (IGNORE where nothing is predicted) and each row's index into `domains`."""

    tokens_BT: torch.Tensor
    targets_BT: torch.Tensor
    domain_B: torch.Tensor


class Task(Protocol):
    """What training and evaluation need of data; all three tensors of a batch are int64."""

    vocab_size: int
    seq_len: int
    domains: tuple[str, ...]
    predicts: str
    """"next": every position predicts the token after it; "last": only the last one is scored."""
    is_text: bool
    """Tokens are bytes of text, so bits per byte have a meaning."""
    bayes_loss: float | None
    """The least expected loss any model can have, in nats per scored token; None where unknown."""
    baselines: dict[str, float]
    """Losses to compare with, in nats per scored token."""
    manifest: list[dict]
    """Where the data came from: rows of source, version, sha256 and bytes."""

    def train_batch(self, index: int, size: int, seed: int) -> Batch:
        """Return training batch number `index`: a pure function of the arguments."""
        ...

    def held_out(self, split: str) -> Batch:
        """Return all of "val" or "test", in a fixed order."""
        ...


class TextTask:
    """Predict the next byte, over one or several domains of text.

    Each domain's first 90 % are for training, the next 5 % for validation, the last 5 % for test.
    `baselines` are the losses on the validation windows of the unigram and bigram tables counted on
    the training text with one added to every count. `max_bytes` limits each domain; None does not.

    Raises ValueError for a `seq_len` or `max_bytes` below 1, no source, two domains of one name,
    or a domain too short for a window in each split; sources raise what they raise.
    """

    vocab_size = 256
    predicts = "next"
    is_text = True
    bayes_loss: float | None = None

    def __init__(
        self, sources: Sequence[TextSource], seq_len: int = 128, max_bytes: int | None = 2_000_000
    ) -> None:
        require_count("seq_len", seq_len, "data.seq_len=128")
        if max_bytes is not None:
            require_count("max_bytes", max_bytes, "data.max_bytes=2000000, or null for no limit")
        corpora = [corpus for source in sources for corpus in source.corpora(max_bytes)]
        self.seq_len = seq_len
        self.domains = distinct([corpus.name for corpus in corpora])
        self.manifest = [corpus.manifest() for corpus in corpora]
        splits = [split_text(corpus, seq_len + 1) for corpus in corpora]
        self.text = {name: [split[name] for split in splits] for name in SPLITS}
        self._train_N = torch.cat(self.text["train"])
        self._size_D = np.array([len(text_N) for text_N in self.text["train"]])
        self._start_D = self._size_D.cumsum() - self._size_D
        self.baselines = ngram_losses(self.text["train"], self.held_out("val"))

    def train_batch(self, index: int, size: int, seed: int) -> Batch:
        """Return `size` windows of the training text.

        Each row draws a domain in proportion to its training bytes, then any window inside it.
        """
        require_count("size", size, "optim.batch_size=32")
        rng = stream(seed, index)
        share_D = self._size_D / self._size_D.sum()
        domain_B = rng.choice(len(self.domains), size, p=share_D)
        first_B = self._start_D[domain_B] + rng.integers(self._size_D[domain_B] - self.seq_len)
        index_BW = torch.from_numpy(first_B[:, None] + np.arange(self.seq_len + 1))
        return next_tokens(self._train_N[index_BW], torch.from_numpy(domain_B))

    def held_out(self, split: str) -> Batch:
        """Return the windows of T + 1 bytes that start every T bytes, domain by domain.

        So every byte but a domain's first is predicted once; what is left at a domain's end, too
        short for a window, is dropped.
        """
        require_held_out(split)
        windows = [text_N.unfold(0, self.seq_len + 1, self.seq_len) for text_N in self.text[split]]
        rows_D = torch.tensor([len(window_BW) for window_BW in windows])
        domain_B = torch.arange(len(windows)).repeat_interleave(rows_D)
        return next_tokens(torch.cat(windows), domain_B)


def user_text(
    path: str | None = None, seq_len: int = 128, max_bytes: int | None = 2_000_000
) -> TextTask:
    """Return the text task of the user's own file or folder (see `UserFiles`)."""
    return TextTask([UserFiles(path)], seq_len, max_bytes)


def split_text(corpus: Corpus, window: int) -> dict[str, torch.Tensor]:
    """Cut a corpus into contiguous 90/5/5 % of uint8; ValueError if a window does not fit."""
    size = len(corpus.text)
    held_out = size // 20
    if held_out < window:
        raise ValueError(
            f"domain {corpus.name!r} has {size:,} bytes: with data.seq_len={window - 1}, a window "
            f"in each of the 90/5/5 % splits needs at least {20 * window:,}; give more text (or a "
            "larger data.max_bytes) or a smaller data.seq_len"
        )
    text_N = torch.frombuffer(bytearray(corpus.text), dtype=torch.uint8)
    parts = text_N.split([size - 2 * held_out, held_out, held_out])
    return dict(zip(SPLITS, parts, strict=True))


def next_tokens(window_BW: torch.Tensor, domain_B: torch.Tensor) -> Batch:
    """Return the batch in which each token of a window but the last predicts the one after it."""
    window_BW = window_BW.long()
    return Batch(window_BW[:, :-1].contiguous(), window_BW[:, 1:].contiguous(), domain_B)


def ngram_losses(train: Sequence[torch.Tensor], held_out: Batch) -> dict[str, float]:
    """Return the held-out nats per byte of add-one-smoothed unigram and bigram training counts."""
    byte_V = np.ones(256)
    pair_VV = np.ones(256 * 256)
    for text_N in (text_N.numpy().astype(np.uint16) for text_N in train):
        byte_V += np.bincount(text_N, minlength=256)
        pair_VV += np.bincount(256 * text_N[:-1] + text_N[1:], minlength=256 * 256)
    next_VV = pair_VV.reshape(256, 256)
    given_BT, byte_BT = held_out.tokens_BT.numpy(), held_out.targets_BT.numpy()
    unigram = np.log(byte_V / byte_V.sum())[byte_BT]
    bigram = np.log(next_VV / next_VV.sum(1, keepdims=True))[given_BT, byte_BT]
    return {"unigram": -float(unigram.mean()), "bigram": -float(bigram.mean())}


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


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Return the domains' names; ValueError if there is none, or one twice."""
    twice = {name for name in names if names.count(name) > 1}
    if not names or twice:
        raise ValueError(f"domains {list(names)}: give at least one source, and no name twice")
    return tuple(names)


def require_count(name: str, value: int, example: str) -> None:
    """Raise ValueError unless `value` is a whole number of at least 1."""
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    require(whole, name, value, f"give a whole number of at least 1, as in {example}")


def require_held_out(split: str) -> None:
    """Raise ValueError unless `split` names held-out data."""
    one_of("split", split, SPLITS[1:])
