"""Training: the LightningModule, its data, optimiser, losses and callbacks."""

import warnings

from .callbacks import (
    PREDICTIONS,
    STOP,
    Checkpoints,
    Clock,
    EndTogether,
    Objectives,
    Pictures,
    Predictions,
    ProgressBar,
    TrialProgress,
    ViewsAlone,
    publish,
)
from .data import TaskData
from .diagnostics import Diagnostics
from .losses import cross_entropy, eml
from .module import DivergedError, Learner
from .optim import Optimization
from .sharding import FullySharded

# Lightning 2.6 takes batches by index for shuffled ones where it shall repeat them, and calls
# torch's own deprecated check at every fit; nothing a user can do. What is logged on several ranks
# was summed over them before.
warnings.filterwarnings("ignore", "You requested to overfit but enabled train", UserWarning)
warnings.filterwarnings("ignore", "It is recommended to use `self.log", UserWarning)
warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)

__all__ = [
    "PREDICTIONS", "STOP", "Checkpoints", "Clock", "Diagnostics", "DivergedError", "EndTogether",
    "FullySharded", "Learner", "Objectives", "Optimization", "Pictures", "Predictions",
    "ProgressBar", "TaskData", "TrialProgress", "ViewsAlone", "cross_entropy", "eml", "publish",
]  # fmt: skip
