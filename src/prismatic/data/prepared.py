"""A corpus as one array of tokens in a folder: written once, mapped by every run that asks for it.

The folder is named by what it was made of: the files' identity, the tokenizer, what is a document.
It holds `tokens.bin` (uint16 or uint32: split by split, and in each domain by domain),
`documents.bin` (int64: where each document begins), the tokenizer and `manifest.json`.
"""

# Shapes: N tokens, M documents, D domains, V vocabulary.

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b, file_digest, sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from prismatic.files import replacing_folder
from prismatic.progress import progress_bar

from . import documents, tokenizer
from .documents import Documents, read_documents
from .task import SPLITS
from .tokenizer import EndedBytes, PackingTokenizer

FORM = 1  # of the folder; another one is prepared anew
MANIFEST, TOKENS, DOCUMENTS = "manifest.json", "tokens.bin", "documents.bin"
HELD_OUT = 0.05  # of a domain's bytes, for "val" and for "test"
LEAST_TRAINED = 0.5  # of a domain's bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """What a prepared corpus is made of: the path of each domain, and how it is read."""

    paths: Mapping[str, str]
    tokenizer: str
    text_key: str
    sample_by: str

    def identity(self) -> dict[str, Any]:
        """Return all that decides which tokens come out; raises what reading the files raises."""
        return {
            "form": FORM,
            "files": {name: documents.identity(path) for name, path in self.paths.items()},
            "tokenizer": tokenizer.identity(self.tokenizer),
            "text_key": self.text_key,
            "sample_by": self.sample_by,
            "held_out": HELD_OUT,
        }


def prepare(recipe: Recipe, folder: Path) -> Path:
    """Return the folder of a corpus inside this one, which is filled if it is not there.

    Of processes that ask at once one fills it, and the others wait. Raises ValueError or OSError
    for what cannot be read, and leaves nothing then.
    """
    identity = recipe.identity()
    key = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    prepared = folder / key
    if not prepared.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{key}.lock"):
            if not prepared.exists():
                log.info(f"data: preparing {', '.join(recipe.paths.values())} once, in {prepared}")
                with replacing_folder(prepared) as draft:
                    fill(draft, recipe)
                    if recipe.identity() != identity:
                        raise ValueError(
                            f"files of data.path={list(recipe.paths.values())} changed while they "
                            "were read: run the command again when they are complete"
                        )
    return prepared


def fill(draft: Path, recipe: Recipe) -> None:
    """Write the tokens of a corpus and all that is known of them."""
    tables = draft / "tables"
    domains = [
        read_documents(name, path, recipe.text_key, sample_by=recipe.sample_by, cache=tables)
        for name, path in recipe.paths.items()
    ]
    splits = [split_documents(domain) for domain in domains]
    pairs = list(zip(domains, splits, strict=True))
    chosen = chosen_tokenizer(recipe.tokenizer, pairs)
    rows: list[dict[str, Any]] = [{"name": domain.domain} for domain in domains]
    digests = [sha256() for _ in domains]
    num_documents = sum(len(split_M) for split_M in splits)
    with (
        Packing(draft, chosen) as packing,
        progress_bar("tokenising", num_documents, "document") as bar,
    ):
        for split in SPLITS:
            for (domain, split_M), row, digest in zip(pairs, rows, digests, strict=True):
                chosen_M, begin = split_M == SPLITS.index(split), packing.size
                for texts in domain.batches(chosen_M):
                    digest.update(packing.append(texts, split))
                    bar.update(len(texts))
                counted = {
                    "documents": int(chosen_M.sum()),
                    "bytes": int(domain.size_M[chosen_M].sum()),
                }
                row[split] = {"begin": begin, "end": packing.size} | counted
    for row, digest in zip(rows, digests, strict=True):
        row["sha256"] = digest.hexdigest()
    manifest = {
        "made_of": recipe.identity(),
        "vocab_size": chosen.vocab_size,
        "end": chosen.end,
        "dtype": packing.dtype.name,
        "unigram": unigram_loss(packing.counts["train"], packing.counts["val"]),
        "domains": rows,
        "sha256": {name: checksum(draft / name) for name in (TOKENS, DOCUMENTS)},
    }
    (draft / MANIFEST).write_text(json.dumps(manifest, indent=2))
    chosen.save(draft)
    shutil.rmtree(tables, ignore_errors=True)  # none of a folder of `datasets`


class Packing:
    """Documents as tokens, one after another in a file, each with an end."""

    def __init__(self, folder: Path, tokenizer: PackingTokenizer) -> None:
        self.tokenizer, self.size = tokenizer, 0
        self.dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        self.counts = {split: np.zeros(tokenizer.vocab_size, np.int64) for split in SPLITS}
        self.tokens, self.firsts = (folder / TOKENS).open("wb"), (folder / DOCUMENTS).open("wb")

    def __enter__(self) -> "Packing":
        return self

    def __exit__(self, *error: object) -> None:
        self.tokens.close()
        self.firsts.close()

    def append(self, texts: Sequence[str], split: str) -> bytes:
        """Write the tokens of these documents, and return them as they were written."""
        end_1 = np.array([self.tokenizer.end])
        encoded = list(self.tokenizer.encode_all(texts))
        token_N = np.concatenate([piece for one in encoded for piece in (one, end_1)])
        written = token_N.astype(self.dtype).tobytes()
        self.tokens.write(written)
        size_K = np.array([len(one) + 1 for one in encoded])
        self.firsts.write((self.size + size_K.cumsum() - size_K).tobytes())
        self.counts[split] += np.bincount(token_N, minlength=self.tokenizer.vocab_size)
        self.size += len(token_N)
        return written


def chosen_tokenizer(
    choice: str, pairs: Sequence[tuple[Documents, np.ndarray]]
) -> PackingTokenizer:
    """Return the tokenizer that a recipe names; one to train sees the training documents alone."""
    size = tokenizer.trained_size(choice)
    if choice == "bytes":
        return EndedBytes()
    if size is None:
        return tokenizer.given(Path(choice))
    batches = (domain.batches(split_M == SPLITS.index("train")) for domain, split_M in pairs)
    return tokenizer.trained(size, chain.from_iterable(batches))


def split_documents(domain: Documents) -> np.ndarray:
    """Return each document's split by its place in SPLITS: (M,).

    Documents in the order of their digests, the first go to "val" and the next to "test" until each
    has its share of bytes: so equal ones are in one split, and the order of files does not matter.
    Raises ValueError for documents that are empty, no text, too few or too unequal.
    """
    digest_M = digests_of(domain)
    order_M = np.argsort(digest_M, kind="stable")
    share_M = domain.size_M[order_M].cumsum() / domain.size_M.sum()
    last = np.minimum(np.searchsorted(share_M, [HELD_OUT, 2 * HELD_OUT]), len(order_M) - 1)
    val, test = digest_M[order_M[last]]
    split_M = np.where(digest_M <= val, 1, np.where(digest_M <= test, 2, 0))
    bytes_S = np.bincount(split_M, domain.size_M, minlength=3)
    if bytes_S[0] < LEAST_TRAINED * bytes_S.sum() or not bytes_S.all():
        raise ValueError(
            f"domain {domain.domain!r} has too few documents for its splits, or too unequal ones "
            f"({len(split_M)} of {int(domain.size_M.max()):,} bytes at most): training needs half "
            "of the text, validation and test a document each. Give more text; or, of a few long "
            "plain files, make a document of each data.sample_by=paragraph, or of each line"
        )
    return split_M


def digests_of(domain: Documents) -> np.ndarray:
    """Return a number for each document by what it says; ValueError for one that says nothing."""
    digests: list[int] = []
    empty_K = np.flatnonzero(domain.size_M < 1)
    if len(empty_K) or not len(domain.size_M):
        where = domain.place(int(empty_K[0])) if len(empty_K) else f"domain {domain.domain!r}"
        raise ValueError(
            f"{len(empty_K)} of {len(domain.size_M)} documents are empty, such as {where}: leave "
            "them out of the files"
        )
    try:
        for texts in domain.batches():
            for text in texts:
                data = text.encode()
                if b"\0" in data:
                    raise ValueError(
                        f"{domain.place(len(digests))} is no text but binary: it holds a byte 0; "
                        "leave it out"
                    )
                digests.append(int.from_bytes(blake2b(data, digest_size=8).digest()))
    except UnicodeError as error:
        raise ValueError(
            f"domain {domain.domain!r} holds what is not UTF-8, in {domain.place(len(digests))} or "
            f"soon after it ({error}): convert the file"
        ) from error
    return np.array(digests, np.uint64)


def unigram_loss(train_V: np.ndarray, val_V: np.ndarray) -> float:
    """Return the nats per "val" token of the tokens' shares in training, one added to each."""
    logp_V = np.log((train_V + 1) / (train_V.sum() + len(train_V)))
    return -float(val_V @ logp_V) / int(val_V.sum())


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def read_prepared(folder: Path) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Return the manifest, the tokens (N,) and where documents begin (M,), both mapped.

    Raises ValueError where they are not what was written.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        damaged = [n for n, known in manifest["sha256"].items() if checksum(folder / n) != known]
    except (OSError, ValueError, KeyError):
        damaged = [MANIFEST]
    if damaged:
        raise ValueError(
            f"{folder / damaged[0]} is corrupt: it is not what was prepared (by its sha256). "
            "Remove the folder, and the next run prepares the corpus anew"
        )
    tokens_N = np.memmap(folder / TOKENS, manifest["dtype"], mode="r")
    return manifest, tokens_N, np.memmap(folder / DOCUMENTS, np.int64, mode="r")
