"""Training: the LightningModule, its data, optimiser, losses, measures and callbacks."""

import warnings

from .callbacks import (
    PREDICTIONS,
    STOP,
    Checkpoints,
    Clock,
    Objectives,
    Predictions,
    ProgressBar,
    Trial,
)
from .data import TaskData
from .diagnostics import Diagnostics
from .guard import Alarm, Guard
from .losses import cross_entropy, eml
from .measures import RoutingMeasure, routing_measures, view_measures
from .module import DivergedError, Learner
from .objectives import diversity, over_seeds, steadiness, views_apart
from .optim import Optimization
from .pictures import Pictures
from .sharding import FullySharded

# Lightning 2.6 takes batches by index for shuffled ones where it shall repeat them, and calls
# torch's own deprecated check at every fit; nothing a user can do. What is logged on several ranks
# was summed over them before.
warnings.filterwarnings("ignore", "You requested to overfit but enabled train", UserWarning)
warnings.filterwarnings("ignore", "It is recommended to use `self.log", UserWarning)
warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)

__all__ = [
    "PREDICTIONS", "STOP", "Alarm", "Checkpoints", "Clock", "Diagnostics", "DivergedError",
    "FullySharded", "Guard", "Learner", "Objectives", "Optimization", "Pictures", "Predictions",
    "ProgressBar", "RoutingMeasure", "TaskData", "Trial", "cross_entropy", "diversity", "eml",
    "over_seeds", "routing_measures", "steadiness", "view_measures", "views_apart",
]  # fmt: skip
