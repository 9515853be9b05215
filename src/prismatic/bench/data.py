"""What a large corpus costs: preparing it, starting on it, drawing from it, and validations.

And what a large vocabulary costs beyond the bare model. The text is that of installed packages.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from sysconfig import get_path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from prismatic.config.paths import ROOT
from prismatic.data import CorpusTask
from prismatic.data.tokenizer import trained
from prismatic.run_folder.contents import METRICS

BATCH = 1_000  # documents that `tokenizers` alone is given at once
DRAWS = 200
UNLOGGED = ["callbacks=none", "logger=none"]
NO_VALIDATION = ["trainer.limit_val_batches=0", "objective=loss/train"]


class Usage(NamedTuple):
    """Of a command: wall time in seconds, and the most memory it held at once, in bytes."""

    seconds: float
    peak: int


def training(overrides: Sequence[str], outputs: Path) -> Usage:
    """Run `src/train.py` in a process of its own. Raises RuntimeError where it fails."""
    command = [sys.executable, str(ROOT / "src" / "train.py"), *overrides]
    environment = os.environ | {"PRISMATIC_OUTPUTS": str(outputs)}
    begun = time.perf_counter()
    with (outputs / "said").open("wb") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(overrides)}: {(outputs / 'said').read_text()}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Usage(time.perf_counter() - begun, usage.ru_maxrss * unit)


def texts(num_bytes: int) -> Iterator[str]:
    """Sources and notes among the installed packages, again and again, to so many bytes."""
    files = sorted(Path(get_path("purelib")).rglob("*.py"))
    found = 0
    while files and found < num_bytes:
        for file in files:
            text = file.read_text(errors="ignore").replace("\0", "")
            if text and found < num_bytes:
                found += len(text.encode())
                yield text


def write_texts(path: Path, num_bytes: int) -> None:
    with path.open("w") as file:
        for text in texts(num_bytes):
            file.write(json.dumps({"text": text}) + "\n")


def tokenizers_alone(path: Path, vocab_size: int) -> float:
    """Seconds in which `tokenizers` is trained on nine tenths of the texts and encodes them all."""
    found = [json.loads(line)["text"] for line in path.open()]
    begun = time.perf_counter()
    tokenizer = trained(vocab_size, [found[: len(found) * 9 // 10]]).inner
    for start in range(0, len(found), BATCH):
        tokenizer.encode_batch_fast(found[start : start + BATCH], add_special_tokens=False)
    return time.perf_counter() - begun


def fit_seconds(overrides: Sequence[str], outputs: Path) -> float:
    """What a run spends in training and validations."""
    folder = outputs / "fit"
    training([*overrides, f"hydra.run.dir={folder}"], outputs)
    return json.loads((folder / METRICS).read_text())["time/fit"]


def bench(
    megabytes: int, few_megabytes: int, vocab_size: int, steps: int, rounds: int, large: int
) -> tuple[dict[str, Any], str]:
    """Measure each figure beside its limit; the machine should be idle."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        much, little = folder / "much.jsonl", folder / "little.jsonl"
        write_texts(much, megabytes * 10**6)
        write_texts(little, few_megabytes * 10**6)
        figures = preparing(much, little, vocab_size, rounds=rounds)
        figures |= running(much, steps)
        figures |= vocabulary(large, folder)
    return {"megabytes": megabytes, "figures": figures}, table(figures, megabytes)


def preparing(much: Path, little: Path, vocab_size: int, *, rounds: int) -> dict[str, Any]:
    """The first run on a corpus, and further ones beside those on a small corpus."""
    common = ["data=corpus", f"data.tokenizer=train:{vocab_size}", "trainer.max_steps=1"]
    common += ["optim.batch_size=2", *UNLOGGED, *NO_VALIDATION]
    outputs = much.parent
    alone = tokenizers_alone(much, vocab_size)
    first = training([*common, f"data.path={much}"], outputs)
    training([*common, f"data.path={little}"], outputs)
    pairs = [
        [training([*common, f"data.path={path}"], outputs) for path in (much, little)]
        for _ in range(rounds)
    ]
    later = median(on_much.seconds - on_little.seconds for on_much, on_little in pairs)
    held = median(on_much.peak - on_little.peak for on_much, on_little in pairs)
    spent = first.seconds - median(on_much.seconds for on_much, _ in pairs)
    return {
        "preparing over tokenizers alone": figure(spent / alone, 1.5, "x"),
        "start beside a small corpus": figure(later, 3.0, " s"),
        "peak memory beside a small corpus": figure(held / 2**30, 0.4, " GiB"),
    }


def running(much: Path, steps: int) -> dict[str, Any]:
    """Drawing batches and validating, as shares of training the default model on bytes."""
    common = ["data=corpus", f"data.path={much}", *UNLOGGED, f"trainer.max_steps={steps}"]
    common += [f"trainer.val_check_interval={steps}"]
    plain = fit_seconds([*common, *NO_VALIDATION], much.parent)
    validated = fit_seconds(common, much.parent)
    task = CorpusTask(str(much.parent / "data"), str(much))
    begun = time.perf_counter()
    for index in range(DRAWS):
        task.train_batch(index, 32, 0)
    drawn = (time.perf_counter() - begun) / DRAWS
    return {
        "drawing a batch, share of a step": figure(drawn / (plain / steps), 0.01, ""),
        "a validation, share of training": figure((validated - plain) / plain, 0.15, ""),
    }


def vocabulary(size: int, outputs: Path) -> dict[str, Any]:
    """The most memory that a run with views holds, over the bare model's."""
    common = ["data=iid", f"data.vocab_size={size}", "data.seq_len=32", "data.held_out_tokens=4096"]
    common += ["logger=none", "callbacks.pictures=null", "trainer.max_steps=4"]
    peaks = [
        training([*common, f"router={router}"], outputs).peak for router in ("prismatic", "dense")
    ]
    return {f"peak memory at {size:,} tokens over dense": figure(peaks[0] / peaks[1], 1.1, "x")}


def figure(value: float, most: float, unit: str) -> dict[str, Any]:
    return {"value": value, "most": most, "unit": unit}


def table(figures: dict[str, Any], megabytes: int) -> str:
    """The figures for reading, each beside the most that it may be."""
    lines = [f"{megabytes} MB of text", f"{'figure':44} {'found':>12} {'at most':>12}"]
    for name, row in figures.items():
        found, most = (f"{row[key]:.3g}{row['unit']}" for key in ("value", "most"))
        lines.append(f"{name:44} {found:>12} {most:>12}")
    return "\n".join(lines)
