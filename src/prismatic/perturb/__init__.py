"""The kernel: which weights a view changes, by how much, and the merge of all views."""

from .kernel import DRAWS, Draws, change, modulation, role
from .merging import Select, SparseChange, merge, merge_sparse, sparse_change
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
    one_of,
    require,
)

__all__ = [
    "ALIASES",
    "DRAWS",
    "MODES",
    "PATTERNS",
    "PHASES",
    "PROFILES",
    "SEEDINGS",
    "STRATEGIES",
    "UNITS",
    "Draws",
    "Focal",
    "Perturbation",
    "Select",
    "SparseChange",
    "change",
    "merge",
    "merge_sparse",
    "modulation",
    "one_of",
    "require",
    "role",
    "sparse_change",
]
