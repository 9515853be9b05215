"""A study before it runs: complete, checked, and known by its hash; and its verdict afterwards."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pandas as pd

from prismatic.errors import one_of, require
from prismatic.stats import NO_VERDICT, SUPPORTED, Finding

from .claims import Claim, UnjudgeableError
from .figures import StudyFigure

TIERS = ("smoke", "cpu", "gpu")
KEPT = ("arm", "seed", "diverged", "seconds")  # of every run
PILOT = 10_000  # the first pilot seed; confirmatory ones begin at 0
ASSAY = "inconclusive (assay)"  # a control failed: whatever was measured shows nothing
MODULES = re.compile(r"\bprismatic(\.[a-z_]\w*)*\.")  # what stands before the name of an object

Findings = Mapping[str, Mapping[str, Finding]]  # by claim and effect


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
        enough = isinstance(self.seeds, int) and self.seeds >= 2
        require(enough, "seeds", self.seeds, "give at least 2")
        last = self.first + self.seeds - 1
        valid = 0 <= self.first and last < PILOT
        require(valid, "first", self.first, f"from {PILOT} on seeds are pilots: give 0 or more")


@dataclass(frozen=True)
class Study:
    """A preregistered study, as its YAML says it.

    `arms` maps names to overrides of `src/train.py`; all runs also have those of `common` and of
    the tier. `measures` maps names of metrics, or patterns of names, to what they are. With
    `together` an arm's seeds are trained at once (`prismatic.studies.full_batch`). Every control
    must be supported, or nothing is. Raises `ValueError` for arms that do not exist, and for tiers
    other than smoke that leave out an arm of a control.
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
    figures: Mapping[str, StudyFigure] = field(default_factory=dict)
    together: bool = False

    def __post_init__(self) -> None:
        require(bool(self.controls), "controls", None, "a study needs at least one control")
        require_distinct("arm", self.arms, path_name)
        require_distinct("claim", (*self.claims, *self.controls), path_name)
        for name, claim in {**self.claims, **self.controls}.items():
            wanted = "give it a _target_, such as prismatic.studies.Contrast"
            require(isinstance(claim, Claim), f"claim {name}", claim, wanted)
            require_distinct(f"effect of {name}", getattr(claim, claim.EFFECTS), metric_name)
            for measure in claim.measure_names():
                wanted = f"it is none of the study's measures: {', '.join(self.measures)}"
                known = measure in KEPT or self.keeps(measure)
                require(known, f"measure of {name}", measure, wanted)
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

    def keeps(self, metric: str) -> bool:
        """Whether a metric is one of the measures."""
        return any(fnmatchcase(metric, pattern) for pattern in self.measures)


def path_name(name: str) -> str:
    """A name as it can stand in a path."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("_")


def metric_name(name: str) -> str:
    """A name as MLflow takes it for a metric or a tag."""
    return re.sub(r"[^\w .:/-]", "_", str(name))


def require_distinct(kind: str, names: Iterable[str], written: Callable[[str], str]) -> None:
    """Refuse names that are kept under one name, where the second would replace the first."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(written(name), name)
        require(other == name, kind, name, f"it is kept under the name of {other!r}: rename one")


def answerable(claims: Mapping[str, Claim], arms: set[str]) -> dict[str, Claim]:
    """The claims about these arms alone, less the effects of others."""
    within = {name: claim.within(arms) for name, claim in claims.items()}
    return {name: claim for name, claim in within.items() if claim is not None}


def digest(node: Mapping[str, Any], tier: str) -> str:
    """What a study at a tier is known by: all that its YAML asks for at that tier.

    Figures and other tiers are left out, and so are the modules of the objects it names: what moves
    in the source is still the same study.
    """
    kept = {k: v for k, v in node.items() if k not in ("figures", "tiers")}
    text = json.dumps([kept, node["tiers"][tier]], sort_keys=True)
    return hashlib.sha256(MODULES.sub("", text).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Judgement:
    """Findings by claim and by control, each by effect, and what keeps them from counting."""

    claims: Findings
    controls: Findings
    failed: tuple[str, ...]  # controls, as "control: effect"

    @property
    def verdict(self) -> str:
        """The study's verdict in a line."""
        return overall(one for found in self.claims.values() for one in found.values())


def judge(study: Study, tier: str, table: pd.DataFrame) -> Judgement:
    """Judge every claim that the tier's arms can answer: a pure function of what was measured.

    A claim whose control fails is `inconclusive (assay)`; a smoke tier gives no verdict.
    """
    given = study.tier(tier)
    controls = judge_all(study.controls_of(given), table)
    claims = judge_all(study.claims_of(given), table)
    failed = tuple(
        f"{name}: {effect}"
        for name, found in controls.items()
        for effect, finding in found.items()
        if finding.verdict != SUPPORTED
    )
    if tier == "smoke":
        note = "a smoke tier only shows that the study runs"
        claims, controls = (overruled(one, NO_VERDICT, note) for one in (claims, controls))
        failed = ()
    elif failed:
        claims = overruled(claims, ASSAY, f"a control failed ({'; '.join(failed)})")
    return Judgement(claims, controls, failed)


def judge_all(claims: Mapping[str, Claim], table: pd.DataFrame) -> Findings:
    found: dict[str, Mapping[str, Finding]] = {}
    for name, claim in claims.items():
        try:
            found[name] = claim.judge(table, np.random.default_rng(0))
        except UnjudgeableError as reason:
            found[name] = {"": reason.finding()}
    return found


def overruled(findings: Findings, verdict: str, note: str) -> Findings:
    """The same findings under another verdict."""
    return {
        name: {effect: replace(f, verdict=verdict, note=note) for effect, f in found.items()}
        for name, found in findings.items()
    }


def overall(found: Iterable[Finding]) -> str:
    """One verdict for many: theirs if it is the same, or how many there are of each."""
    verdicts = [finding.verdict for finding in found]
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
