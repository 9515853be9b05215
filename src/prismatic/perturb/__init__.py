"""The kernel: which weights a view changes, by how much, and the merge of all views."""

from .kernel import Draws, change, modulation, role
from .lenses import Patch
from .merging import Merging, Views, merge, views_of
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
)
from .select import Edges, Selection, select
from .sparse import SparseChange, sparse_change

__all__ = [
    "ALIASES",
    "MODES",
    "PATTERNS",
    "PHASES",
    "PROFILES",
    "SEEDINGS",
    "STRATEGIES",
    "UNITS",
    "Draws",
    "Edges",
    "Focal",
    "Merging",
    "Patch",
    "Perturbation",
    "Selection",
    "SparseChange",
    "Views",
    "change",
    "merge",
    "modulation",
    "role",
    "select",
    "sparse_change",
    "views_of",
]
