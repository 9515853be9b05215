"""Tokenizers of a corpus: bytes, one that is given, or one trained on the corpus itself."""

import json
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from prismatic.errors import optional, require

from .task import Tokenizer
from .text import Bytes

FILE = "tokenizer.json"
TRAIN = "train:"
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


class PackingTokenizer(Tokenizer, Protocol):
    """A tokenizer that documents are packed with."""

    vocab_size: int
    end: int
    """The token that ends a document."""

    def encode_all(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        """Return the tokens of each text, without an end."""
        ...

    def save(self, folder: Path) -> None:
        """Write what `saved` needs."""
        ...


class EndedBytes(Bytes):
    """UTF-8 bytes. A document ends with the byte 0, which no text holds."""

    vocab_size, end = 256, 0

    def encode_all(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        return (np.frombuffer(text.encode(), dtype=np.uint8) for text in texts)

    def save(self, folder: Path) -> None:
        """Bytes need no file."""


class Subwords:
    """A tokenizer of Hugging Face's `tokenizers`; a special token's name in a text is just text.

    `end` is the name of the token that ends a document.
    """

    def __init__(self, inner: Any, end: str) -> None:
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = True
        self.inner, self.end = inner, inner.token_to_id(end)
        self.vocab_size = max(inner.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        return self.inner.decode(list(tokens), skip_special_tokens=False)

    def encode_all(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        encoded = self.inner.encode_batch_fast(texts, add_special_tokens=False)
        return (np.array(one.ids, dtype=np.uint32) for one in encoded)

    def save(self, folder: Path) -> None:
        self.inner.save(str(folder / FILE))


def trained_size(choice: str) -> int | None:
    """Return N of `train:N`, None for another choice; ValueError where N is no vocabulary."""
    if not choice.startswith(TRAIN):
        return None
    size = choice.removeprefix(TRAIN)
    wanted = "give train:N with N >= 257, which is all bytes and an end, as in train:8192"
    require(size.isdecimal() and int(size) > 256, "data.tokenizer", choice, wanted)
    return int(size)


def trained(size: int, texts: Iterable[Sequence[str]]) -> Subwords:
    """Return a byte-level BPE (Radford et al. 2019) of at most `size` tokens, trained on these."""
    library = optional("tokenizers")
    inner = library.Tokenizer(library.models.BPE())
    inner.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size, special_tokens=[ENDS[0]], show_progress=False,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    inner.train_from_iterator(texts, trainer)
    return Subwords(inner, ENDS[0])


def given(path: Path) -> Subwords:
    """Return the tokenizer of a file or folder as `transformers` saves it.

    It must say how documents end. Raises FileNotFoundError or ValueError.
    """
    file, end = tokenizer_file(path), end_name(path)
    try:
        inner = optional("tokenizers").Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises this very class
        if type(error) is not Exception:
            raise
        raise ValueError(f"{file} is no tokenizer: {error}; save it anew") from error
    names = [end] if end else ENDS
    known = [name for name in names if inner.token_to_id(name) is not None]
    require(
        bool(known), "data.tokenizer", str(path), f"it has no end token ({', '.join(names)}): "
        "give the folder that holds tokenizer_config.json, with an eos_token that it knows",
    )  # fmt: skip
    return Subwords(inner, known[0])


def saved(folder: Path, end: int) -> PackingTokenizer:
    """Return the tokenizer that was kept with packed tokens, and that ends documents so."""
    file = folder / FILE
    if not file.exists():
        return EndedBytes()
    inner = optional("tokenizers").Tokenizer.from_file(str(file))
    return Subwords(inner, inner.id_to_token(end))


def identity(choice: str) -> list[str]:
    """Return what distinguishes a choice of tokenizer: its name, or what its files hold."""
    if choice == "bytes" or trained_size(choice):
        return [choice]
    path = Path(choice)
    return [sha256(tokenizer_file(path).read_bytes()).hexdigest(), end_name(path) or ""]


def tokenizer_file(path: Path) -> Path:
    """Return the `tokenizer.json` of a choice; FileNotFoundError if there is none."""
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"data.tokenizer={path} names no tokenizer: {file} does not exist. Give bytes, "
            "train:8192, model, a tokenizer.json or the folder of one"
        )
    return file


def end_name(path: Path) -> str | None:
    """Return the end token that the folder's `tokenizer_config.json` names, if any."""
    config = (path if path.is_dir() else path.parent) / "tokenizer_config.json"
    named = json.loads(config.read_text()).get("eos_token") if config.is_file() else None
    return named["content"] if isinstance(named, dict) else named
