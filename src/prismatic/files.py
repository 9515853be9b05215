"""Writing files so that a reader never sees half of one, whatever happens."""

import os
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
