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
    from .kernel import change, modulation, role
    from .selection import select
    from .views import Change, Narrow, Views, Whole, changes_of, merge, project, signed, weigh

PLACES = {
    "kernel": ("change", "modulation", "role"),
    "selection": ("select",),
    "views": (
        "Change", "Narrow", "Views", "Whole", "changes_of", "merge", "project", "signed", "weigh",
    ),
}  # fmt: skip

__all__ = [
    "ALIASES", "MODES", "PATTERNS", "PHASES", "PROFILES", "SEEDINGS", "STRATEGIES", "UNITS",
    "Change", "Focal", "Narrow", "Perturbation", "Views", "Whole", "change", "changes_of", "merge",
    "modulation", "project", "register_mode", "register_pattern", "register_strategy", "role",
    "select", "signed", "weigh",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for module, names in PLACES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
