"""Documents of a corpus: which files a path means, and reading them with `datasets`."""

import glob
import re
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prismatic.errors import FULL_DISK, causes, one_of, optional, require

from .corpora import read_text, visible_files

# What is none of these is plain text.
FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
COMPRESSED = (".gz", ".zst")
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves
HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")
DOCUMENTS = ("document", "paragraph", "line")
BATCH_BYTES = 1 << 23


class Table(NamedTuple):
    """Rows with a text each: a data set, its column of texts, and the file of each row if known."""

    rows: Any
    key: str
    files: list[Path] | None = None


class Documents:
    """All documents of a domain, in order, and where each of them stands."""

    def __init__(self, domain: str, tables: list[Table]) -> None:
        self.domain, self.tables = domain, tables
        self.size_M = np.concatenate([sizes(table) for table in tables])  # in bytes, -1 for null

    def batches(self, chosen_M: np.ndarray | None = None) -> Iterator[list[str]]:
        """Return the texts of these documents, by default all, up to some megabytes at a time."""
        before = 0
        for table in self.tables:
            rows, size_K = table.rows.with_format("arrow"), self.size_M[before:][: len(table.rows)]
            ends = np.flatnonzero(np.diff(size_K.cumsum() // BATCH_BYTES)) + 1
            for begin, end in pairwise([0, *ends.tolist(), len(size_K)]):
                texts = rows[begin:end][table.key]
                if chosen_M is not None:
                    texts = texts.filter(chosen_M[before + begin : before + end])
                if len(texts):
                    yield texts.to_pylist()
            before += len(size_K)

    def place(self, index: int) -> str:
        """Return where a document stands, for an error."""
        for table in self.tables:
            if index < len(table.rows):
                known = table.files
                return str(known[index]) if known else f"row {index:,} of domain {self.domain!r}"
            index -= len(table.rows)
        raise IndexError(index)


def sizes(table: Table) -> np.ndarray:
    """Return the bytes of each text, -1 for one that is null: (M,)."""
    lengths = optional("pyarrow.compute").binary_length
    parts = table.rows.with_format("arrow").iter(100_000)
    found = [lengths(part[table.key]).fill_null(-1).to_numpy() for part in parts]
    return np.concatenate([np.zeros(0, np.int64), *found]).astype(np.int64)


def is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in SAVED)


def is_hub_name(path: str) -> bool:
    """Whether a path that is not there may be the name of a data set on the hub."""
    return bool(HUB.fullmatch(path)) and Path(path).suffix not in (".txt", *FORMATS, *COMPRESSED)


def find_files(path: str) -> list[Path]:
    """Return the files of a path, in order; none for the name of a data set on the hub.

    Raises FileNotFoundError or ValueError where there is no file, or nothing in one.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        files = [found for _, found in sorted(visible_files(place).items())]
    elif place.exists():
        files = [place]
    else:
        files = sorted(Path(found) for found in glob.glob(str(place), recursive=True))
        files = [found for found in files if found.is_file()]
        if not files and is_hub_name(path):
            return []
    if not files:
        raise FileNotFoundError(
            f"data.path={path} holds no file (looked in {Path.cwd()}): give a file, a folder, a "
            "glob such as 'texts/**/*.txt', or the name of a data set on the hub"
        )
    empty = [str(file) for file in files if not file.stat().st_size]
    if empty and not is_saved(place):
        raise ValueError(
            f"{len(empty)} of {len(files)} files of data.path={path} are empty, such as {empty[0]}:"
            f" remove them (find {path} -empty -delete) or give a glob that leaves them out"
        )
    return files


def identity(path: str) -> list:
    """Return what distinguishes the files of a path: their names, sizes and times of change.

    A data set of the hub is known by its name alone, so that it is downloaded once.
    """
    stats = [(file, file.stat()) for file in find_files(path)]
    return [[str(file.resolve()), s.st_size, s.st_mtime_ns] for file, s in stats] or [path]


def read_documents(
    domain: str, path: str, text_key: str, *, sample_by: str, cache: Path
) -> Documents:
    """Return the documents of a domain, mapped from what is kept in the folder `cache`.

    Raises ValueError or OSError that names what cannot be read.
    """
    datasets = optional("datasets")
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it prints what it raises
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    files, place = find_files(path), Path(path).expanduser()
    if not files:
        tables = [Table(rows, text_key) for rows in hub_rows(path, cache)]
    elif is_saved(place):
        tables = [Table(rows, text_key) for rows in saved_rows(place)]
    else:
        tables = []
        for kind in sorted({format_of(file) for file in files}):
            chosen = [file for file in files if format_of(file) == kind]
            of_kind = {"sample_by": sample_by} if kind == "text" else {}
            of_files = chosen if kind == "text" and sample_by == "document" else None
            key = "text" if kind == "text" else text_key
            tables.append(Table(read_rows(kind, chosen, cache, **of_kind), key, of_files))
    for table in tables:
        require_text(table, path)
    return Documents(domain, tables)


def format_of(file: Path) -> str:
    suffixes = [suffix for suffix in file.suffixes if suffix not in COMPRESSED]
    return FORMATS.get(suffixes[-1] if suffixes else "", "text")


def read_rows(kind: str, files: list[Path], cache: Path, **options: str) -> Any:
    """Return the rows of files of one kind; ValueError that names the one that cannot be read."""
    if kind == "parquet":
        files = [unpacked(file, cache) for file in files]
    load = partial(optional("datasets").load_dataset, kind, split="train", cache_dir=str(cache))
    try:
        return load(data_files=list(map(str, files)), **options)
    except Exception as error:
        if any(getattr(cause, "errno", None) in FULL_DISK for cause in causes(error)):
            raise
        for half in (files[: len(files) // 2], files[len(files) // 2 :]):
            if 0 < len(half) < len(files):
                read_rows(kind, half, cache, **options)
        if kind == "text" and files[0].suffix not in COMPRESSED:
            read_text(files[0])  # it says at which byte
        *_, deepest = causes(error)
        names = " and ".join(dict.fromkeys([str(files[0]), str(files[-1])]))
        raise ValueError(
            f"{names} cannot be read as {kind}: {first_line(deepest)}; mend or leave it out"
        ) from error


def unpacked(file: Path, cache: Path) -> Path:
    """Return a binary file without the compression around it, which `datasets` leaves there."""
    if file.suffix not in COMPRESSED:
        return file
    whole = cache / file.name.removesuffix(file.suffix)
    whole.parent.mkdir(parents=True, exist_ok=True)
    with optional("fsspec").open(str(file), compression="infer") as packed, whole.open("wb") as out:
        shutil.copyfileobj(packed, out)
    return whole


def saved_rows(folder: Path) -> list[Any]:
    """Return what `save_to_disk` wrote, all splits of it; ValueError for a damaged folder."""
    try:
        found = optional("datasets").load_from_disk(str(folder))
    except Exception as error:
        raise ValueError(
            f"{folder} cannot be read as a folder of `datasets`: {first_line(error)}; save it anew"
        ) from error
    return list(found.values()) if isinstance(found, dict) else [found]


def hub_rows(name: str, cache: Path) -> list[Any]:
    """Return a data set of the hub, all splits of it; ConnectionError where it cannot be had."""
    try:
        optional("huggingface_hub").dataset_info(name, timeout=10)
        return list(optional("datasets").load_dataset(name, cache_dir=str(cache)).values())
    except Exception as error:
        raise ConnectionError(
            f"data.path={name} is no file or folder here, and the hub did not give a data set of "
            f"that name ({type(error).__name__}: {first_line(error)}). Name files, or prepare "
            "where there is a network: what is in outputs/data then needs none"
        ) from error


def require_text(table: Table, path: str) -> None:
    """Raise ValueError unless the column is there and holds text."""
    names = tuple(table.rows.column_names)
    one_of("data.text_key", table.key, names)
    kind = getattr(table.rows.features[table.key], "dtype", "structure")
    wanted = f"it is of {kind} in data.path={path}: choose another of {', '.join(names)}"
    require(kind in ("string", "large_string"), "data.text_key", table.key, wanted)


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
