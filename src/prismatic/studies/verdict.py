"""From a table to verdicts: a pure function of what was measured."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from prismatic.stats.verdicts import NO_VERDICT, SUPPORTED

from .claims import ASSAY, Claim, Finding, UnjudgeableError, unjudged
from .spec import Study


@dataclass(frozen=True)
class Judgement:
    """Findings by claim and by control, each by effect, and what keeps them from counting."""

    claims: Mapping[str, Mapping[str, Finding]]
    controls: Mapping[str, Mapping[str, Finding]]
    failed: tuple[str, ...]  # controls, as "control: effect"


def judge(study: Study, tier: str, table: pd.DataFrame) -> Judgement:
    """Judge every claim that the tier's arms can answer.

    A claim whose control fails is `inconclusive (assay)`; a smoke tier gives no verdict.
    """
    given = study.tier(tier)
    asked = study.controls_of(given)
    controls = {name: judge_one(control, table) for name, control in asked.items()}
    claims = {name: judge_one(claim, table) for name, claim in study.claims_of(given).items()}
    failed = tuple(
        f"{name}: {effect}"
        for name, found in controls.items()
        for effect, finding in found.items()
        if finding.verdict != SUPPORTED
    )
    if tier == "smoke":
        claims = said(claims, NO_VERDICT, "a smoke tier only shows that the study runs")
        controls = said(controls, NO_VERDICT, "a smoke tier only shows that the study runs")
        failed = ()
    elif failed:
        claims = said(claims, ASSAY, f"a control failed ({'; '.join(failed)})")
    return Judgement(claims, controls, failed)


def judge_one(claim: Claim, table: pd.DataFrame) -> Mapping[str, Finding]:
    try:
        return claim.judge(table, np.random.default_rng(0))
    except UnjudgeableError as error:
        return {"": unjudged(NO_VERDICT, str(error))}


def said(
    claims: Mapping[str, Mapping[str, Finding]], verdict: str, note: str
) -> dict[str, Mapping[str, Finding]]:
    """The same findings under another verdict."""
    return {
        name: {effect: replace(f, verdict=verdict, note=note) for effect, f in found.items()}
        for name, found in claims.items()
    }


def overall(found: Iterable[Finding]) -> str:
    """One verdict for many: theirs if it is the same, or how many there are of each."""
    verdicts = [finding.verdict for finding in found]
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
