"""The task of predicting the next token of a corpus of any size."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from prismatic.errors import one_of, require

from .documents import DOCUMENTS
from .packed import AtDocuments, PackedTask, windows
from .prepared import Recipe, prepare, read_prepared
from .task import SPLITS, require_count
from .tokenizer import saved

ALIGNMENTS = ("any", "document")


class CorpusTask(PackedTask):
    """Predict the next token of a corpus that is prepared once in `folder` and mapped from there.

    `path` is a file, folder, glob, folder of `datasets` or a hub's name, or such a path for each
    domain; `weights` are the domains' shares of the drawn windows, by default their tokens'.
    `tokenizer` is bytes, train:N, a path, or model: that of `model_path`. Of "val" at most
    `held_out_tokens` are read, evenly from all; None reads all. With `align` "document" windows
    begin at documents. `baselines` is the loss of the tokens' shares in training.

    Raises ValueError or OSError for what cannot be read, is too small or is asked for wrongly.
    """

    def __init__(
        self,
        folder: str,
        path: str | Mapping[str, str] | None = None,
        weights: Mapping[str, float] | None = None,
        text_key: str = "text",
        sample_by: str = "document",
        tokenizer: str = "bytes",
        model_path: str | None = None,
        seq_len: int = 128,
        align: str = "any",
        held_out_tokens: int | None = 200_000,
    ) -> None:
        require_count("seq_len", seq_len, "data.seq_len=128")
        if held_out_tokens is not None:
            wanted = "data.held_out_tokens=200000, or null for all"
            require_count("held_out_tokens", held_out_tokens, wanted)
        one_of("data.sample_by", sample_by, DOCUMENTS)
        one_of("data.align", align, ALIGNMENTS)
        if tokenizer == "model":
            wanted = "there is no model.path whose tokenizer it could be; give bytes or train:8192"
            require(model_path is not None, "data.tokenizer", tokenizer, wanted)
            tokenizer = str(model_path)
        paths = paths_of(path)
        prepared = prepare(Recipe(paths, tokenizer, text_key, sample_by), Path(folder))
        made, tokens_N, first_M = read_prepared(prepared)
        rows = made["domains"]
        bounds = {
            split: np.array([[row[split]["begin"], row[split]["end"]] for row in rows])
            for split in SPLITS
        }
        require_windows(list(paths), bounds, seq_len)
        train_D2 = bounds["train"]
        super().__init__(
            tokens_N,
            bounds,
            seq_len,
            weight_D=None if weights is None else weights_of(weights, list(paths)),
            starts=AtDocuments(train_D2, seq_len, first_M) if align == "document" else None,
            held_out_tokens=held_out_tokens,
        )
        self.domains = tuple(paths)
        self.vocab_size = made["vocab_size"]
        self.tokenizer = saved(prepared, made["end"])
        self.bytes_per_token = {
            split: sum(row[split]["bytes"] for row in rows) / int(np.diff(bounds[split]).sum())
            for split in SPLITS
        }
        self.baselines = {"unigram": made["unigram"]}
        self.manifest = self.describe(rows, windows(bounds["val"], seq_len)[1])

    def describe(self, rows: list[dict], domain_R: np.ndarray) -> list[dict]:
        """Return the manifest, which says how many of the "val" windows are read."""
        read_D, there_D = (
            np.bincount(found, minlength=len(rows)).tolist()
            for found in (self.rows["val"][1], domain_R)
        )
        return [
            {
                "source": row["name"],
                "version": None,
                "sha256": row["sha256"],
                "bytes": sum(row[split]["bytes"] for split in SPLITS),
                "documents": {split: row[split]["documents"] for split in SPLITS},
                "tokens": {split: row[split]["end"] - row[split]["begin"] for split in SPLITS},
                "val_windows": {"read": read, "of": there, "chosen": "evenly"},
            }
            for row, read, there in zip(rows, read_D, there_D, strict=True)
        ]


def paths_of(path: str | Mapping[str, str] | None) -> dict[str, str]:
    """Return the path of each domain; a single one is named after it."""
    if not path:
        raise ValueError(
            f"data.path={path} names no text: give a file, folder, glob or hub's name, as in "
            "`data=corpus data.path=notes.txt`, or set PRISMATIC_DATA"
        )
    if isinstance(path, Mapping):
        return {str(name): str(place) for name, place in path.items()}
    name = Path(path).expanduser().resolve().name
    return {"corpus" if any(mark in name for mark in "*?[") else name: str(path)}


def weights_of(weights: Mapping[str, float], domains: list[str]) -> list[float]:
    """Return the weights in the order of the domains; ValueError if there is not one of each."""
    wanted = f"give a number above 0 for each of the domains {', '.join(domains)}"
    fitting = set(weights) == set(domains) and all(w > 0 for w in weights.values())
    require(fitting, "data.weights", dict(weights), wanted)
    return [float(weights[name]) for name in domains]


def require_windows(domains: list[str], bounds: Mapping[str, np.ndarray], seq_len: int) -> None:
    """Raise ValueError unless a window fits into every split of every domain."""
    for split, bounds_D2 in bounds.items():
        for name, size in zip(domains, np.diff(bounds_D2).ravel().tolist(), strict=True):
            if size <= seq_len:
                raise ValueError(
                    f"domain {name!r} has {size:,} tokens for {split}: with "
                    f"data.seq_len={seq_len}, a window needs {seq_len + 1}; give more text or a "
                    "smaller data.seq_len"
                )
