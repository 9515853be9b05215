"""The kernel: which weights a view changes, by how much, and the merge of all views."""

from .kernel import DRAWS, Draws, change, modulation, role
from .lenses import Patch
from .merging import Views, merge, views_of
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
from .select import Selection, select
from .sparse import Select, SparseChange, merge_sparse, sparse_change

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
    "Patch",
    "Perturbation",
    "Select",
    "Selection",
    "SparseChange",
    "Views",
    "change",
    "merge",
    "merge_sparse",
    "modulation",
    "one_of",
    "require",
    "role",
    "select",
    "sparse_change",
    "views_of",
]
