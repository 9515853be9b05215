"""The kernel: which weights a view changes, by how much, and the merge of all views."""

from .kernel import change, modulation, role
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
from .select import select
from .views import Change, Narrow, Views, Whole, changes_of, merge, project, signed, weigh

__all__ = [
    "ALIASES", "MODES", "PATTERNS", "PHASES", "PROFILES", "SEEDINGS", "STRATEGIES", "UNITS",
    "Change", "Focal", "Narrow", "Perturbation", "Views", "Whole", "change", "changes_of", "merge",
    "modulation", "project", "register_mode", "register_pattern", "register_strategy", "role",
    "select", "signed", "weigh",
]  # fmt: skip
