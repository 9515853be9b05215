"""Writing files and folders so that a reader never sees half of one, whatever happens."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prismatic.errors import naming_full_disk


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft beside `path` to write to, which then takes its place. Raises `DiskFullError`."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with naming_full_disk(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield draft
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole file, or leave what was there. Raises `DiskFullError`."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def append_line(path: Path, line: str) -> None:
    """Append a whole line, or nothing. Raises `DiskFullError`."""
    with naming_full_disk(path):
        end = path.stat().st_size if path.exists() else 0
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        except OSError:
            if end:
                os.truncate(path, end)
            else:
                path.unlink(missing_ok=True)
            raise


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """An empty draft beside `path` to fill, which then becomes it; for one process at a time.

    What an earlier process left of its draft is removed. Raises `DiskFullError`.
    """
    draft = path.with_name(f".{path.name}.draft")
    with naming_full_disk(path):
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir(parents=True)
            yield draft
            draft.replace(path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
