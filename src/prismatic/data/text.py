"""The task of predicting the next byte of text."""

# Shapes: B rows, T positions, N bytes, V byte values.

from collections.abc import Sequence

import numpy as np
import torch

from .corpora import Corpus, TextSource, UserFiles
from .packed import PackedTask
from .task import SPLITS, Batch, require_count


class Bytes:
    """Text as its UTF-8 bytes."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")


class TextTask(PackedTask):
    """Predict the next byte, over one or several domains of text.

    Each domain's first 90 % are for training, the next 5 % for validation, the last 5 % for test.
    `baselines` are the losses on the validation windows of the unigram and bigram tables counted on
    the training text with one added to every count. `max_bytes` limits each domain; None does not.

    Raises ValueError for a `seq_len` or `max_bytes` below 1, no source, two domains of one name,
    or a domain too short for a window in each split; sources raise what they raise.
    """

    vocab_size = 256
    tokenizer = Bytes()
    bytes_per_token = dict.fromkeys(SPLITS, 1.0)

    def __init__(
        self, sources: Sequence[TextSource], seq_len: int = 128, max_bytes: int | None = 2_000_000
    ) -> None:
        require_count("seq_len", seq_len, "data.seq_len=128")
        if max_bytes is not None:
            require_count("max_bytes", max_bytes, "data.max_bytes=2000000, or null for no limit")
        corpora = [corpus for source in sources for corpus in source.corpora(max_bytes)]
        self.domains = distinct([corpus.name for corpus in corpora])
        self.manifest = [corpus.manifest() for corpus in corpora]
        splits = [split_text(corpus, seq_len + 1) for corpus in corpora]
        parts = [split[name] for name in SPLITS for split in splits]
        size_K = np.array([len(part) for part in parts])
        bounds_SD2 = np.stack([size_K.cumsum() - size_K, size_K.cumsum()], 1)
        bounds = dict(zip(SPLITS, bounds_SD2.reshape(len(SPLITS), -1, 2), strict=True))
        super().__init__(torch.cat(parts).numpy(), bounds, seq_len)
        self.baselines = ngram_losses(parts[: len(corpora)], self.held_out("val"))


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


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Return the domains' names; ValueError if there is none, or one twice."""
    twice = {name for name in names if names.count(name) > 1}
    if not names or twice:
        raise ValueError(f"domains {list(names)}: give at least one source, and no name twice")
    return tuple(names)
