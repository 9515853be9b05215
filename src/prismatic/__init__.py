"""Prismatic routing: soft mixtures over deterministic views of one set of weights."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prismatic.experiment import load as load

# Imported when first asked for: torch and Lightning take seconds, and a plugin or `--help` needs
# neither.
PUBLIC = {"load": "prismatic.experiment"}

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)
