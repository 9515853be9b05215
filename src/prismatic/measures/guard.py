"""What goes wrong with views and routers, by name, and the remedy that is tried first.

The failure modes and remedies are those of source 002, "Failure Modes" and "Troubleshooting". The
thresholds stand in conf/guard/default.yaml, with the alarms that are expected of some runs.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from prismatic.errors import one_of, require

ACTIONS = ("warn", "stop")
# What it is shown.
CONCENTRATION, LEAST_USED = "routing/least_concentration", "routing/least_used"
CLOSEST, STRENGTH = "views/closest", "views/least_strength"
SHARPEST, SPIKES = "edge/least_attention_entropy", "edge/grad_spikes"
LOSS, RISE = "loss", "loss/rise"
# What these lead to, one another included, is not named on top of them.
ROOTS = {"nan", "divergence"}
# What an Optuna sweep gives a trial up for.
FATAL = {"divergence", "router_collapse"}
# Which thresholds are numbers from 0 to 1, and which are counts, from what on.
SHARES = (
    "collapse_weight",
    "unused_weight",
    "identical_nats",
    "identity_norm",
    "attention_entropy",
)
COUNTS = {
    "collapse_steps": 0, "unused_steps": 0, "divergence_steps": 0, "spike_window": 1,
    "spike_count": 1,
}  # fmt: skip


class Alarm(NamedTuple):
    """What was found, and what to do about it."""

    name: str
    message: str
    remedy: str


class AlarmRule(NamedTuple):
    """An alarm for a measure that is `bad` at every look for `steps` steps."""

    name: str
    measure: str
    bad: Callable[[float], bool]
    steps: int
    message: str  # of the measure's value
    remedy: str


@dataclass
class Guard:
    """Watches measures and names what goes wrong; `action` is what a run then does.

    An alarm sounds once, and again only after its measure was good in between. Raises `ValueError`
    for values out of range.
    """

    action: str = "warn"
    collapse_weight: float = 0.95
    collapse_steps: int = 50
    unused_weight: float = 0.01
    unused_steps: int = 50
    identical_nats: float = 1e-4
    identity_norm: float = 0.02
    attention_entropy: float = 0.05
    spike_factor: float = 4.0
    spike_window: int = 100
    spike_count: int = 5
    divergence_nats: float = 1.0
    divergence_steps: int = 20
    since: dict[str, int] = field(default_factory=dict, init=False, compare=False)
    sounded: set[str] = field(default_factory=set, init=False, compare=False)

    def __post_init__(self) -> None:
        one_of("guard.action", self.action, ACTIONS)
        for name in SHARES:
            value = getattr(self, name)
            require(0 <= value <= 1, f"guard.{name}", value, "give a number in [0, 1]")
        for name, least in COUNTS.items():
            value = getattr(self, name)
            whole = isinstance(value, int) and value >= least
            require(whole, f"guard.{name}", value, f"give a whole number >= {least}")
        require(self.spike_factor > 1, "guard.spike_factor", self.spike_factor, "give a number > 1")
        rise = self.divergence_nats
        require(rise > 0, "guard.divergence_nats", rise, "give a number > 0")

    def see(self, step: int, measures: Mapping[str, float]) -> list[Alarm]:
        """The alarms that these measures set off; names that no rule knows do not matter."""
        alarms: list[Alarm] = []
        for rule in self.rules():
            value = measures.get(rule.measure)
            if value is None or (self.sounded & ROOTS) - {rule.name}:
                continue
            if not rule.bad(value):
                self.since.pop(rule.name, None)
                self.sounded.discard(rule.name)
            elif step - self.since.setdefault(rule.name, step) >= rule.steps:
                if rule.name not in self.sounded:
                    self.sounded.add(rule.name)
                    alarms.append(Alarm(rule.name, rule.message.format(value), rule.remedy))
        return alarms

    def rules(self) -> list[AlarmRule]:
        """Every rule, with the thresholds of this guard."""
        slower = (
            "lower perturbation.scale, perturbation.sparsity or optim.lr, or lengthen "
            "optim.warmup_steps"
        )
        return [
            AlarmRule(
                "nan", LOSS, lambda x: not math.isfinite(x), 0, "the loss is not finite", slower
            ),
            AlarmRule(
                "divergence", RISE, lambda x: x > self.divergence_nats, self.divergence_steps,
                "the loss is {:.3g} nats above what it was before training", slower,
            ),
            AlarmRule(
                "router_collapse", CONCENTRATION, lambda x: x > self.collapse_weight,
                self.collapse_steps, "every router gives one view {:.1%} of the weight or more",
                "raise perturbation.scale, lower perturbation.sparsity, or balance the views with "
                "router.balance_loss=0.01",
            ),
            AlarmRule(
                "dead_view", LEAST_USED, lambda x: x < self.unused_weight, self.unused_steps,
                "a view gets no more than {:.2%} of the weight from any router",
                "balance the views with router.balance_loss=0.01, or lower perturbation.scale and "
                "perturbation.sparsity if views break the model (views/excess)",
            ),
            AlarmRule(
                "identical_views", CLOSEST, lambda x: x < self.identical_nats, 0,
                "two views predict the same: their log-probabilities are {:.1g} nats apart",
                "choose a focal pattern that tells views apart (focal=radial_helical), or raise "
                "perturbation.scale",
            ),
            AlarmRule(
                "near_identity", STRENGTH, lambda x: x < self.identity_norm, 0,
                "the strongest view changes the weights by {:.2%} of their norm, next to nothing: "
                "a lens has an absolute width of a few hundred weights",
                "make the lens relative to each tensor with focal.units=fraction "
                "focal.length=0.1 focal.wavelength=1; or use focal=none; or raise "
                "perturbation.scale",
            ),
            AlarmRule(
                "attention_collapse", SHARPEST, lambda x: x < self.attention_entropy, 0,
                "attention looks at single positions: its entropy is {:.1%} of the most possible",
                "lower optim.lr, or lengthen optim.warmup_steps",
            ),
            AlarmRule(
                "gradient_spikes", SPIKES, lambda x: x >= self.spike_count, 0,
                "{:.0f} of the last gradient norms were far above what was usual",
                "lower perturbation.scale, perturbation.sparsity or optim.lr, or "
                "trainer.gradient_clip_val",
            ),
        ]  # fmt: skip

    def state(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {"since": dict(self.since), "sounded": sorted(self.sounded)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.since, self.sounded = dict(state["since"]), set(state["sounded"])
