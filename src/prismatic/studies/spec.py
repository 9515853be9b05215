"""A study before it runs: complete, checked, and known by its hash."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Protocol

import pandas as pd
from matplotlib.figure import Figure

from prismatic.errors import one_of, require

from .claims import Claim, Divisible, Finding

TIERS = ("smoke", "cpu", "gpu")
KEPT = ("arm", "seed", "diverged", "seconds")  # of every run
PILOT = 10_000  # the first pilot seed; confirmatory ones begin at 0

Findings = Mapping[str, Mapping[str, Finding]]  # by claim and effect


class Picture(Protocol):
    """What a study's YAML lists under `figures`."""

    caption: str

    def draw(self, table: pd.DataFrame, findings: Findings) -> Figure:
        """The figure; raises `NothingToDrawError` where the table has nothing for it."""


@dataclass(frozen=True)
class Tier:
    """How large a study is run: its seeds, further overrides, and which arms (null: all).

    `covers` says what part of the full design that is, and so what conclusions are about. `of_arms`
    holds further overrides of single arms, such as their number of steps. `first` is the first
    seed: not 0 where the protocol was made with a look at some of the first ones.
    """

    seeds: int
    overrides: Sequence[str] = ()
    arms: Sequence[str] | None = None
    covers: str = ""
    of_arms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    first: int = 0

    def __post_init__(self) -> None:
        whole = isinstance(self.seeds, int) and self.seeds >= 2
        require(whole, "seeds", self.seeds, "give at least 2")
        last = self.first + self.seeds - 1
        valid = 0 <= self.first and last < PILOT
        require(valid, "first", self.first, f"from {PILOT} on seeds are pilots: give 0 or more")


@dataclass(frozen=True)
class Study:
    """A preregistered study, as its YAML says it.

    `arms` maps names to overrides of `src/train.py`; all runs also have those of `common` and of
    the tier. `measures` maps names of metrics, or patterns of names, to what they are. With
    `together` an arm's seeds are trained at once (`prismatic.studies.together`). Every control must
    be supported, or nothing is. Raises `ValueError` for arms that do not exist, and for tiers other
    than smoke that leave out an arm of a control.
    """

    name: str
    question: str
    arms: Mapping[str, Sequence[str]]
    measures: Mapping[str, str]
    tiers: Mapping[str, Any]
    claims: Mapping[str, Claim]
    controls: Mapping[str, Claim]
    source: str | None = None
    setup: str = ""
    common: Sequence[str] = ()
    figures: Mapping[str, Picture] = field(default_factory=dict)
    together: bool = False

    def __post_init__(self) -> None:
        require(bool(self.controls), "controls", None, "a study needs at least one control")
        folders: dict[str, str] = {}
        for arm in self.arms:
            other = folders.setdefault(plain(arm), arm)
            wanted = f"its runs would lie where those of {other!r} do: rename one"
            require(other == arm, "arm", arm, wanted)
        self.check_measures()
        tiers = {name: Tier(**tier) for name, tier in self.tiers.items()}
        object.__setattr__(self, "tiers", tiers)
        for name, tier in tiers.items():
            one_of("tier", name, TIERS)
            for arm in (*(tier.arms or ()), *tier.of_arms):
                one_of(f"arm of tier {name}", arm, tuple(self.arms))
            lacking = {a for c in self.controls.values() for a in c.arms()} - self.arms_of(tier)
            wanted = f"controls need {', '.join(sorted(lacking))}, too"
            valid = name == "smoke" or not lacking
            require(valid, f"arms of tier {name}", list(tier.arms or ()), wanted)
        for claim in self.claims.values():
            for arm in claim.arms():
                one_of("arm of a claim", arm, tuple(self.arms))

    def check_measures(self) -> None:
        """Raises `ValueError` for what is no claim, and for one about a measure that the study does
        not keep.
        """
        for name, claim in {**self.claims, **self.controls}.items():
            wanted = "give it a _target_, such as prismatic.studies.Contrast"
            require(hasattr(claim, "judge"), f"claim {name}", claim, wanted)
            asked = {getattr(claim, key, None) for key in ("measure", "outcome")} - {None}
            for measure in asked | set(getattr(claim, "measures", ())):
                known = measure in KEPT or self.wants(str(measure))
                wanted = f"it is none of the study's measures: {', '.join(self.measures)}"
                require(known, f"measure of {name}", measure, wanted)

    def tier(self, name: str) -> Tier:
        """Raises `ValueError` for a tier that the study does not have."""
        one_of("tier", name, tuple(self.tiers))
        return self.tiers[name]

    def arms_of(self, tier: Tier) -> set[str]:
        return set(self.arms if tier.arms is None else tier.arms)

    def claims_of(self, tier: Tier) -> dict[str, Claim]:
        """The claims that the tier's arms can answer, less the effects that they cannot."""
        return answerable(self.claims, self.arms_of(tier))

    def controls_of(self, tier: Tier) -> dict[str, Claim]:
        """All controls; of a smoke tier, like claims."""
        return answerable(self.controls, self.arms_of(tier))

    def wants(self, metric: str) -> bool:
        """Whether a metric is one of the measures."""
        return any(fnmatchcase(metric, pattern) for pattern in self.measures)


def plain(name: str) -> str:
    """A name as it can stand in a path or a metric."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("_")


def answerable(claims: Mapping[str, Claim], arms: set[str]) -> dict[str, Claim]:
    """The claims about these arms alone, less the effects of others."""
    cut = {
        name: claim.within(arms) if isinstance(claim, Divisible) else claim
        for name, claim in claims.items()
    }
    return {name: claim for name, claim in cut.items() if claim and claim.arms() <= arms}


def digest(node: Mapping[str, Any], tier: str) -> str:
    """What a study at a tier is known by: all of its YAML but for other tiers and for figures."""
    kept = {k: v for k, v in node.items() if k not in ("figures", "tiers")}
    text = json.dumps([kept, node["tiers"][tier]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
