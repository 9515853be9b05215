"""Every refusal in one voice, what led to an error, and the error of a full disk."""

import errno
import importlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FULL_DISK = {errno.ENOSPC, errno.EDQUOT}


def require(valid: bool, name: str, value: object, wanted: str) -> None:
    """Raise a `ValueError` that names the option, its value and what is valid."""
    if not valid:
        raise ValueError(f"{name}={value!r} is not valid: {wanted}")


def one_of(name: str, value: str, valid: tuple[str, ...]) -> None:
    mark = "; " if any(", " in one for one in valid) else ", "
    require(value in valid, name, value, f"choose one of {mark.join(valid)}")


def optional(module: str) -> Any:
    """A module of the extra `hf`. Raises `MissingExtraError` with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"this needs the package {error.name}; install it with: pip install -e '.[hf]' (make "
            "env installs it, too)"
        ) from error


class MissingExtraError(ValueError):
    """A package is not installed that only some options need."""


class DiskFullError(OSError):
    """A file could not be written for lack of space; what was there before is whole."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it, the deepest last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turn the system's error of a full disk, which names no file, into a `DiskFullError`.

    Also where it is only the cause of another error, as libraries raise it.
    """
    try:
        yield
    except Exception as error:
        if not any(getattr(cause, "errno", None) in FULL_DISK for cause in causes(error)):
            raise
        free = shutil.disk_usage(path.parent).free / 2**20
        raise DiskFullError(
            f"{path} cannot be written: the disk is full, or your share of it ({free:.1f} MiB are "
            "free). Nothing that was there is lost. Make room there, or name a folder on another "
            "disk with PRISMATIC_OUTPUTS"
        ) from error
