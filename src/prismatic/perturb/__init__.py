"""The kernel: which weights a view changes, by how much, and the merge of all views.

The options are there at once; what computes with them brings torch, and waits until asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .options import (
    ALIASES,
    MODES,
    PATTERNS,
    PHASES,
    PROFILES,
    SEEDINGS,
    STRATEGIES,
    UNITS,
    Focal,
    Perturbation,
    register_mode,
    register_pattern,
    register_strategy,
)

if TYPE_CHECKING:
    from .kernel import change, role
    from .selection import select
    from .views import Views, merge

PLACES = {
    "change": "kernel", "role": "kernel", "select": "selection", "Views": "views", "merge": "views",
}  # fmt: skip

__all__ = [
    "ALIASES", "MODES", "PATTERNS", "PHASES", "PROFILES", "SEEDINGS", "STRATEGIES", "UNITS",
    "Focal", "Perturbation", "Views", "change", "merge", "register_mode", "register_pattern",
    "register_strategy", "role", "select",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in PLACES:
        return getattr(import_module(f".{PLACES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
