"""How a study is read, and a job's return: for callbacks, and for sweeps of another kind.

The user attributes of a study say what it asks: `question` (params, objectives, directions,
constraints), `fixed` (the overrides of every job) and `total` (the trials it shall finish).

Others may import this module. Its underscore is for Hydra, which imports every module of a plugin
without one at every start.
"""

from ._pruning import KEY, Progress, storable
from ._report import best_trials, gist, line, names_of, write
from ._results import evaluate
from ._study import counts, finished, is_finished, keep_question

__all__ = [
    "KEY", "Progress", "best_trials", "counts", "evaluate", "finished", "gist", "is_finished",
    "keep_question", "line", "names_of", "storable", "write",
]  # fmt: skip
