"""A corpus becomes one array of tokens, once; windows, splits and refusals are as promised."""

import csv
import errno
import gzip
import json
import math
import os
import re
import threading
from collections import Counter
from itertools import chain

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import zstandard

from prismatic import experiment
from prismatic.data import CorpusTask, prepared
from prismatic.errors import DiskFullError
from prismatic.files import replacing_folder, write_text

from ..tiny import FEW, MODEL, QUIET, ROOT, fit, tiny

DOCUMENTS = [f"{k} bottles, größer als {k * k}.\n\nAnd {'so on ' * (k % 9)}" for k in range(80)]
COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def plain(folder, documents=DOCUMENTS, name="texts", compress=""):
    """A folder with a file for each document."""
    (folder / name).mkdir()
    for k, text in enumerate(documents):
        path = folder / name / f"{k:03}.txt{compress}"
        path.write_bytes(COMPRESS[compress](text.encode()))
    return folder / name


def rows(folder, kind, compress, documents=DOCUMENTS):
    """The documents as the column `body` of one file."""
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"n": 1, "body": text}) + "\n" for text in documents))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["n", "body"], *([1, text] for text in documents)])
    elif kind == "parquet":
        pa.parquet.write_table(pa.table({"body": documents}), path)
    else:
        datasets.Dataset.from_dict({"body": documents}).save_to_disk(path)
        return path
    whole = path.with_name(path.name + compress)
    whole.write_bytes(COMPRESS[compress](path.read_bytes()))
    return whole


def corpus(tmp_path, path, **options):
    return CorpusTask(str(tmp_path / "prepared"), str(path), **{"seq_len": 16} | options)


def documents_of(task, split):
    """The documents that the packed tokens of a split hold."""
    end = task.tokenizer.end
    found = []
    for begin, stop in task.bounds[split]:
        tokens = task.tokens_N[begin:stop].tolist()
        assert tokens[-1] == end
        found += [task.tokenizer.decode(part) for part in split_at(tokens[:-1], end)]
    return found


def split_at(tokens, end):
    parts = [[]]
    for token in tokens:
        parts.append([]) if token == end else parts[-1].append(token)
    return parts


@pytest.mark.parametrize(
    ("kind", "compress"),
    [
        ("txt", ""), ("txt", ".gz"), ("jsonl", ""), ("jsonl", ".zst"), ("csv", ".gz"),
        ("parquet", ""), ("parquet", ".zst"), ("saved", ""),
    ],
)  # fmt: skip
def test_every_format_gives_each_document_once_to_one_split(kind, compress, tmp_path):
    is_plain = kind == "txt"
    path = plain(tmp_path, compress=compress) if is_plain else rows(tmp_path, kind, compress)
    task = corpus(tmp_path, path, text_key="body")
    splits = {split: documents_of(task, split) for split in ("train", "val", "test")}
    assert Counter(chain.from_iterable(splits.values())) == Counter(DOCUMENTS)
    sizes = [sum(len(text.encode()) for text in texts) for texts in splits.values()]
    assert np.array(sizes) / sum(sizes) == pytest.approx([0.9, 0.05, 0.05], abs=0.02)
    (row,) = task.manifest
    assert row["bytes"] == sum(sizes)
    assert row["documents"] == {split: len(texts) for split, texts in splits.items()}
    assert task.tokens_N.dtype == np.uint16 and isinstance(task.tokens_N, np.memmap)
    for split, size in zip(splits, sizes, strict=True):
        assert task.bytes_per_token[split] == pytest.approx(size / row["tokens"][split])


def test_equal_documents_are_in_one_split_whatever_the_order(tmp_path):
    repeated = DOCUMENTS * 3
    first = corpus(tmp_path, rows(tmp_path, "jsonl", "", repeated), text_key="body")
    splits = [set(documents_of(first, split)) for split in ("train", "val", "test")]
    assert len(set.union(*splits)) == sum(map(len, splits)) == len(DOCUMENTS)
    again = corpus(tmp_path, rows(tmp_path, "jsonl", "", repeated[::-1]), text_key="body")
    assert splits == [set(documents_of(again, split)) for split in ("train", "val", "test")]


def test_a_tokenizer_is_trained_on_training_documents_and_says_every_text(tmp_path):
    task = corpus(tmp_path, plain(tmp_path), tokenizer="train:300")
    assert task.vocab_size == 300 and task.bytes_per_token["val"] > 1.2
    text = "<|endoftext|> Größe \N{SNOWMAN} is just text"
    tokens = task.tokenizer.encode(text)
    assert task.tokenizer.decode(tokens) == text and task.tokenizer.end not in tokens
    assert Counter(documents_of(task, "test")) < Counter(DOCUMENTS)
    # A folder as `transformers` saves it gives the same tokens.
    folder = tmp_path / "model"
    folder.mkdir()
    task.tokenizer.inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|endoftext|>"}}')
    given = corpus(tmp_path, tmp_path / "texts", tokenizer="model", model_path=str(folder))
    assert np.array_equal(given.tokens_N, task.tokens_N)
    assert given.tokenizer.encode(text) == tokens


def test_windows_of_weighted_domains_stand_in_their_own_training_text(tmp_path):
    paths = {
        "low": str(plain(tmp_path, [text.lower() for text in DOCUMENTS], "low")),
        "high": str(plain(tmp_path, [text.upper() for text in DOCUMENTS * 2], "high")),
    }
    task = CorpusTask(str(tmp_path / "out"), paths, weights={"high": 1, "low": 3}, seq_len=16)
    batch = task.train_batch(3, 4_000, 0)
    assert task.domains == ("low", "high")
    assert batch.domain_B.double().mean() == pytest.approx(0.25, abs=0.03)
    texts = [task.tokens_N[a:b].astype(np.uint8).tobytes() for a, b in task.bounds["train"]]
    windows = torch.cat([batch.tokens_BT, batch.targets_BT[:, -1:]], 1)
    for window, domain in zip(windows.tolist()[:200], batch.domain_B.tolist(), strict=False):
        assert bytes(window) in texts[domain]
    fresh = CorpusTask(str(tmp_path / "out"), paths, weights={"high": 1, "low": 3}, seq_len=16)
    fresh.train_batch(9, 2, 1)
    assert all(map(torch.equal, fresh.train_batch(3, 4_000, 0), batch))


def test_windows_begin_at_documents_where_they_are_asked_to(tmp_path):
    task = corpus(tmp_path, plain(tmp_path), align="document", seq_len=8)
    first_M = np.concatenate([[0], np.flatnonzero(task.tokens_N == 0) + 1])
    begin, end = task.bounds["train"][0]
    drawn = task.starts.draw(np.random.default_rng(0), np.zeros(20_000, np.int64))
    into = drawn - first_M[np.searchsorted(first_M, drawn, side="right") - 1]
    assert set(into % 8) == {0} and drawn.min() >= begin and drawn.max() + 8 < end
    documents = first_M[(first_M >= begin) & (first_M + 8 < end)]
    assert set(documents) <= set(drawn)


def test_a_validation_reads_an_even_sample_and_the_manifest_says_so(tmp_path):
    whole = corpus(tmp_path, plain(tmp_path), held_out_tokens=None)
    task = corpus(tmp_path, tmp_path / "texts", held_out_tokens=5 * 16)
    there = whole.num_rows("val")
    assert task.num_rows("val") == 5 < there
    assert task.num_rows("test") == whole.num_rows("test")
    assert task.manifest[0]["val_windows"] == {"read": 5, "of": there, "chosen": "evenly"}
    chosen = torch.linspace(0, there - 1, 5).long()
    assert torch.equal(task.held_out("val").tokens_BT, whole.held_out("val", chosen).tokens_BT)
    row_B = torch.tensor([4, 1])
    assert torch.equal(
        task.held_out("val", row_B).targets_BT, task.held_out("val").targets_BT[row_B]
    )
    # Every token of "test" but the first is predicted once.
    begin, end = task.bounds["test"][0]
    predicted = task.held_out("test").targets_BT.flatten().tolist()
    assert predicted == task.tokens_N[begin + 1 : end].tolist()[: len(predicted)]
    assert end - begin - 1 - len(predicted) < 16


def test_the_unigram_baseline_is_counted(tmp_path):
    task = corpus(tmp_path, plain(tmp_path))
    train, val = (task.tokens_N[slice(*task.bounds[split][0])] for split in ("train", "val"))
    share_V = (np.bincount(train, minlength=256) + 1) / (len(train) + 256)
    assert task.baselines["unigram"] == pytest.approx(-np.log(share_V[val]).mean(), rel=1e-12)


def test_runs_that_begin_together_prepare_once(tmp_path, monkeypatch):
    filled, fill = [], prepared.fill

    def counted(draft, recipe):
        filled.append(draft)
        fill(draft, recipe)

    monkeypatch.setattr(prepared, "fill", counted)
    path = plain(tmp_path)
    runs = [threading.Thread(target=corpus, args=(tmp_path, path)) for _ in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    corpus(tmp_path, path, seq_len=8, align="document", held_out_tokens=64)
    assert len(filled) == 1


def test_a_file_that_changed_is_prepared_anew(tmp_path):
    before = corpus(tmp_path, plain(tmp_path)).manifest[0]["sha256"]
    (tmp_path / "texts" / "003.txt").write_text("Another text.")
    assert corpus(tmp_path, tmp_path / "texts").manifest[0]["sha256"] != before
    assert len([path for path in (tmp_path / "prepared").iterdir() if path.is_dir()]) == 2


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    fill, path = prepared.fill, plain(tmp_path)

    def changing(draft, recipe):
        fill(draft, recipe)
        os.utime(path / "003.txt", (0, 0))

    monkeypatch.setattr(prepared, "fill", changing)
    with pytest.raises(ValueError, match="changed while they were read"):
        corpus(tmp_path, path)
    assert nothing_is_left(tmp_path)


def nothing_is_left(tmp_path):
    return all(path.is_file() for path in (tmp_path / "prepared").glob("*"))


@pytest.mark.parametrize(
    ("error", "raised"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.ENOSPC, "full"), DiskFullError)],
)
def test_preparing_that_is_ended_leaves_nothing(error, raised, tmp_path, monkeypatch):
    path, append = plain(tmp_path), prepared.Packing.append

    def ending(self, texts, split):
        append(self, texts, split)
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(prepared.Packing, "append", ending)
        with pytest.raises(raised):
            corpus(tmp_path, path)
    assert nothing_is_left(tmp_path)
    corpus(tmp_path, path)


def test_what_a_killed_process_left_is_swept_away(tmp_path):
    (tmp_path / ".made.draft").mkdir()
    (tmp_path / ".made.draft" / "half").write_text("x")
    with replacing_folder(tmp_path / "made") as draft:
        assert not list(draft.iterdir())
        (draft / "whole").write_text("y")
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "whole"]


@pytest.mark.parametrize("name", ["tokens.bin", "documents.bin", "manifest.json"])
def test_a_corrupt_folder_is_refused(name, tmp_path):
    corpus(tmp_path, plain(tmp_path))
    (file,) = (tmp_path / "prepared").glob(f"*/{name}")
    content = bytearray(file.read_bytes())
    content[7] ^= 255
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is corrupt.*Remove the folder"):
        corpus(tmp_path, tmp_path / "texts")


def written(tmp_path, name, content):
    plain(tmp_path)
    (tmp_path / "texts" / name).write_bytes(content)
    return tmp_path / "texts"


BAD = {
    "nothing.txt": (b"", r"1 of 81 files .* are empty, such as .*nothing\.txt"),
    "latin.txt": ("größer".encode("latin-1"), r"latin\.txt is not UTF-8.*0xf6 at offset 2"),
    "binary.txt": (b"a\0b", r"binary\.txt is no text but binary"),
    "broken.jsonl": (
        b'{"text": "x"}\nno json\n',
        r"broken\.jsonl cannot be read as json: Tr",
    ),
    "null.jsonl": (b'{"text": "x"}\n{"text": null}\n', r"1 of 82 documents are empty, .*row 1 of"),
    "latin.jsonl": (b'{"text": "gr\xf6"}\n', r"'texts' holds what is not UTF-8"),
    "other.jsonl": (b'{"body": "x", "n": 1}\n', r"data.text_key='text' .*choose one of body, n"),
    "numbers.jsonl": (b'{"text": 1}\n', "data.text_key='text' .* is of int64"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_text_is_refused_and_nothing_is_left(name, tmp_path):
    content, said = BAD[name]
    path = written(tmp_path, name, content)
    with pytest.raises(ValueError, match=said):
        corpus(tmp_path, path)
    assert nothing_is_left(tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seq_len": 10_000}, r"tokens for train: with data.seq_len=10000, a window needs 10001"),
        ({"held_out_tokens": 0}, "held_out_tokens=0"),
        ({"align": "line"}, "data.align='line' .* any, document"),
        ({"sample_by": "word"}, "data.sample_by='word'"),
        ({"weights": {"text": 1}}, "data.weights=.* domains texts"),
        ({"weights": {"texts": 0}}, "data.weights=.* above 0"),
        ({"tokenizer": "model"}, "no model.path"),
        ({"tokenizer": "train:256"}, "N >= 257"),
        ({"tokenizer": "byte"}, "data.tokenizer=byte names no tokenizer"),
        ({"path": None}, "data.path=None names no text"),
        ({"path": "nowhere/*.txt"}, "data.path=nowhere/.*holds no file"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options, said, tmp_path):
    options = {"path": str(plain(tmp_path)), "seq_len": 16} | options
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        CorpusTask(str(tmp_path / "prepared"), **options)


def test_one_long_file_says_how_it_can_be_split(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("\n\n".join(DOCUMENTS))
    with pytest.raises(ValueError, match=r"'long.txt' has too few .*data.sample_by=paragraph"):
        corpus(tmp_path, path)
    task = corpus(tmp_path, path, sample_by="paragraph")
    assert sum(task.manifest[0]["documents"].values()) == 160


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    task = corpus(tmp_path, plain(tmp_path), tokenizer="train:300")
    (file,) = (tmp_path / "prepared").glob("*/tokenizer.json")
    alone = tmp_path / "tokenizer.json"
    alone.write_text(file.read_text().replace("<|endoftext|>", "<stop>"))
    with pytest.raises(ValueError, match=r"no end token .*tokenizer_config\.json"):
        corpus(tmp_path, tmp_path / "texts", tokenizer=str(alone))
    alone.write_text("{}")
    with pytest.raises(ValueError, match="is no tokenizer"):
        corpus(tmp_path, tmp_path / "texts", tokenizer=str(alone))
    assert task.vocab_size == 300


def test_without_a_network_a_hub_name_is_refused(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.dataset_info", unreachable)
    with pytest.raises(ConnectionError, match=r"owner/texts is no file .*hub did not .*no route"):
        corpus(tmp_path, "owner/texts")
    assert nothing_is_left(tmp_path)


def test_without_the_packages_the_error_is_the_command_that_installs_them(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match=r"needs the package datasets; .*pip install -e '.\[hf\]'"):
        corpus(tmp_path, plain(tmp_path))


def test_the_readmes_task_trains_from_a_folder_of_ones_own(script, tmp_path, monkeypatch):
    page = (ROOT / "conf" / "README.md").read_text()
    (tmp_path / "data").mkdir()
    for kind, name in (("python", "parity.py"), ("yaml", "data/parity.yaml")):
        (block,) = re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL)
        assert len(block.splitlines()) <= 32
        (tmp_path / name).write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    ended = script("train", "--config-dir", str(tmp_path), "data=parity", *MODEL, *QUIET, *FEW)
    assert ended.status == 0, ended.err


def test_a_run_on_a_corpus_resumes_bit_for_bit(tmp_path):
    data = ["data=corpus", f"data.path={plain(tmp_path)}", "data.seq_len=16"]
    data += ["data.tokenizer=train:300", f"data.folder={tmp_path / 'prepared'}"]
    data += ["trainer.max_steps=4", "trainer.val_check_interval=2"]
    data += ["+callbacks.checkpoint={_target_: prismatic.training.Checkpoints}"]
    whole, losses = fit(tmp_path / "whole", *data)
    fit(tmp_path / "half", *data, "trainer.max_steps=2")
    last = tmp_path / "half" / "checkpoints" / "last.ckpt"
    assert fit(tmp_path / "rest", *data, resume=last)[1] == losses[2:]
    # On other texts it does not go on.
    write_text(tmp_path / "half" / "manifest.json", json.dumps({"sources": whole.task.manifest}))
    (tmp_path / "texts" / "003.txt").write_text("Another text.")
    with pytest.raises(ValueError, match="data texts are not what the run was trained on"):
        experiment.run(tiny(*data, f"ckpt_path={last}", "trainer.max_steps=8"), tmp_path / "other")
    metrics = whole.trainer.callback_metrics
    bits = float(metrics["loss/val"]) / math.log(2)
    assert float(metrics["loss/bits_per_byte"]) == pytest.approx(
        bits / whole.task.bytes_per_token["val"], rel=1e-6
    )


@pytest.mark.slow
def test_eval_reads_all_of_the_test_part_and_continues_with_the_tokenizer(script, tmp_path):
    options = ["data=corpus", f"data.path={plain(tmp_path)}", "data.seq_len=16", "logger=none"]
    options += ["data.tokenizer=train:300", "data.held_out_tokens=32", *FEW, *MODEL]
    trained = script(
        "train", *options, f"hydra.run.dir={tmp_path / 'run'}", "callbacks.pictures=null"
    )
    assert trained.status == 0, trained.err
    evaluated = script("eval", f"run={tmp_path / 'run'}", "prompt='größer als'", "count=20")
    assert evaluated.status == 0, evaluated.err
    assert "größer als" in evaluated.out.partition("--- continuation ---")[2]
    found = json.loads((tmp_path / "run" / "eval.json").read_text())
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    (row,) = manifest["sources"]
    assert row["val_windows"]["read"] == 2
    assert found["loss/test_bits_per_byte"] < found["loss/test"] / math.log(2)
    (tmp_path / "texts" / "003.txt").write_text("Another text.")
    again = script("eval", f"run={tmp_path / 'run'}")
    assert again.status == 1 and "not what the run was trained on" in again.err
