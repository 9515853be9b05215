"""A study's report: one page, in Markdown and as HTML that opens offline, with its pictures."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prismatic.files import replacing, write_text
from prismatic.report.markup import notice, page, paragraph, picture, table
from prismatic.report.missing import NothingToDrawError
from prismatic.report.style import png
from prismatic.stats.verdicts import too_few

from .claims import ASSAY, Claim, Finding, Paired, UnjudgeableError
from .pictures import Effect, draw_dots, draw_forest
from .spec import Study, plain
from .verdict import Judgement, overall

VERDICT, TABLE, HTML, MARKDOWN = "verdict.json", "table.csv", "report.html", "report.md"
POWER_HEAD = ("claim", "effects", "with 80 % power", "power")
POWER_OF = {
    "greater": ("finds", "for twice what matters"),
    "no difference": ("shows none above", "if there is none"),
}
WIDE = 10_000  # columns of what is no terminal
HEAD = ("claim", "effect", "verdict", "estimate and interval", "p", "n", "matters from", "note")


@dataclass(frozen=True)
class Facts:
    """What a report says of the study as a whole."""

    tier: str
    hash: str
    seeds: Sequence[int]
    runs: int
    seconds: float  # of all runs together
    command: str
    commit: str


def interval(found: Finding) -> str:
    """An estimate with its interval."""
    if not math.isfinite(found.estimate):
        return "-"
    low, high = found.interval
    return f"{found.estimate:.4g} [{low:.4g}, {high:.4g}] at {100 * found.level:.3g} %"


def finding_rows(
    claims: Mapping[str, Claim], found: Mapping[str, Mapping[str, Finding]]
) -> list[list[str]]:
    """A row of text per finding."""
    rows = []
    for name, findings in found.items():
        claim = claims[name]
        for effect, one in findings.items():
            p = "-" if one.p is None else f"{one.p:.3g}"
            least = "-" if one.smallest_effect is None else f"{one.smallest_effect:g} {claim.unit}"
            says = f"{claim.says} ({claim.source})" if claim.source else claim.says
            rows.append([says, effect, one.verdict, interval(one), p, str(one.n), least, one.note])
    return rows


def power_rows(claims: Mapping[str, Claim], num_seeds: int) -> list[list[str]]:
    """What the design can find, a row per claim about paired effects."""
    rows = []
    for name, claim in claims.items():
        if isinstance(claim, Paired):
            found = claim.power(num_seeds)
            finds, of = POWER_OF[found.kind]
            power = "unknown: no pilot" if found.power is None else f"{found.power:.2f} {of}"
            if too_few(num_seeds, found.effects):
                power = f"none: {num_seeds} seeds cannot support one of {found.effects} claims"
            size = f"{finds} {found.smallest:.3g} {found.unit}"
            rows.append([name, str(found.effects), size, power])
    return rows


def power_shown(claim: Claim, num_seeds: int) -> str:
    """What the design can find, in a phrase; empty for a claim that is not of paired effects."""
    rows = power_rows({"": claim}, num_seeds)
    return "; ".join(rows[0][2:]) if rows else ""


def means(study: Study, runs: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Mean and standard deviation over seeds, by arm, of the measures that are no patterns."""
    names = [name for name in study.measures if name in runs]
    grouped = runs.groupby("arm", sort=False)[names].agg(["mean", "std"])
    rows = [
        [str(arm), *(spread(row[name]["mean"], row[name]["std"]) for name in names)]
        for arm, row in grouped.iterrows()
    ]
    return ["arm", *names], rows


def spread(mean: float, deviation: float) -> str:
    return "-" if math.isnan(mean) else f"{mean:.5g} ± {deviation:.2g}"


def print_table(frame: pd.DataFrame) -> None:
    """A table in the terminal; its columns are as wide as they need where it is none."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    shown = Table(*map(str, frame.columns), box=SIMPLE_HEAD)
    for row in frame.itertuples(index=False):
        shown.add_row(*map(escape, map(str, row)))
    console.print(shown)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(c.replace('|', '/') for c in line)} |" for line in lines)


def draw(study: Study, judged: Judgement, runs: pd.DataFrame, folder: Path) -> list[list[str]]:
    """Write every picture; rows of file name, heading and caption."""
    findings = {**judged.claims, **judged.controls}
    drawn: list[tuple[str, str, str, Any]] = []
    for name, found in judged.claims.items():
        claim = study.claims[name]
        effects = [
            Effect(effect, one.estimate, *one.interval, one.verdict)
            for effect, one in found.items()
        ]
        smallest = getattr(claim, "smallest_effect", None)
        figure = draw_forest(effects, claim.says, claim.unit, smallest)
        drawn.append((f"claim_{plain(name)}", claim.says, "Effects by regime.", figure))
    for name, special in study.figures.items():
        try:
            figure = special.draw(runs, findings)
        except (NothingToDrawError, UnjudgeableError) as reason:
            drawn.append((name, name, f"No picture of {name}: {reason}", None))
            continue
        drawn.append((name, name, special.caption, figure))
    for name, meaning in study.measures.items():
        if name in runs:
            by_arm = {
                str(arm): rows[name].tolist() for arm, rows in runs.groupby("arm", sort=False)
            }
            figure = draw_dots(by_arm, meaning, name)
            drawn.append(
                (f"measure_{plain(name)}", meaning, "A dot per seed, and the mean.", figure)
            )
    return [save(folder, *one) for one in drawn]


def save(folder: Path, name: str, heading: str, caption: str, figure: Any) -> list[str]:
    """Write one picture; an empty file name where there is none."""
    if figure is None or not figure.axes:
        reason = " ".join(text.get_text() for text in figure.texts) if figure else caption
        return ["", heading, reason]
    with replacing(folder / f"{name}.png") as draft:
        draft.write_bytes(png(figure))
    return [f"{name}.png", heading, caption]


def write(
    study: Study, facts: Facts, judged: Judgement, runs: pd.DataFrame, folder: Path
) -> list[Path]:
    """Write table, verdicts, pictures and both reports; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    runs.to_csv(folder / TABLE, index=False)
    claims = study.claims_of(study.tier(facts.tier))
    tables = {
        "Verdicts": (HEAD, finding_rows(study.claims, judged.claims)),
        "Controls": (HEAD, finding_rows(study.controls, judged.controls)),
        "What the design can find": (POWER_HEAD, power_rows(claims, len(facts.seeds))),
        "Measures: mean and standard deviation over seeds": means(study, runs),
    }
    pictures = draw(study, judged, runs, folder)
    write_text(folder / MARKDOWN, markdown(study, facts, judged, tables, pictures))
    write_text(folder / HTML, html(study, facts, judged, tables, pictures, folder))
    write_text(folder / VERDICT, json.dumps(result(study, facts, judged, claims), indent=2) + "\n")
    files = (MARKDOWN, HTML, VERDICT, TABLE, *(name for name, *_ in pictures if name))
    return [folder / name for name in files]


def result(
    study: Study, facts: Facts, judged: Judgement, claims: Mapping[str, Claim]
) -> dict[str, Any]:
    """What a summary of studies reads."""
    return {
        "study": study.name,
        "question": study.question,
        "source": study.source,
        **asdict(facts),
        "covers": study.tier(facts.tier).covers,
        "verdict": verdict_of(judged),
        "failed_controls": list(judged.failed),
        "claims": {
            name: {
                "says": study.claims[name].says,
                "source": study.claims[name].source,
                "unit": study.claims[name].unit,
                "verdict": overall(found.values()),
                "findings": {
                    effect: asdict(one) | {"shown": interval(one)} for effect, one in found.items()
                },
                "power": power_shown(claims[name], len(facts.seeds)),
            }
            for name, found in judged.claims.items()
        },
        "controls": {
            name: {effect: asdict(one) for effect, one in found.items()}
            for name, found in judged.controls.items()
        },
    }


def verdict_of(judged: Judgement) -> str:
    """The study's verdict in a line."""
    return overall(one for found in judged.claims.values() for one in found.values())


def facts_line(study: Study, facts: Facts) -> str:
    return (
        f"tier {facts.tier} · {len(facts.seeds)} seeds · {facts.runs} runs · "
        f"{facts.seconds / 60:.1f} minutes of computing · specification {facts.hash} · "
        f"code {facts.commit[:12]} · source {study.source or 'none: a guard'}"
    )


def markdown(
    study: Study, facts: Facts, judged: Judgement, tables: Mapping[str, Any],
    pictures: Sequence[Sequence[str]],
) -> str:  # fmt: skip
    parts = [
        f"# {study.question}",
        f"**{study.name}: {verdict_of(judged)}**",
        facts_line(study, facts),
        study.setup,
        study.tier(facts.tier).covers,
        *(f"## {name}\n\n{markdown_table(*one)}" for name, one in tables.items() if one[1]),
        *(f"![{heading}]({name})\n\n{text}" if name else text for name, heading, text in pictures),
        f"Repeat: `{facts.command}`",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def html(
    study: Study, facts: Facts, judged: Judgement, tables: Mapping[str, Any],
    pictures: Sequence[Sequence[str]], folder: Path,
) -> str:  # fmt: skip
    verdict = verdict_of(judged)
    kind = "alarm" if ASSAY in verdict else "calm"
    parts = [
        notice(kind, f"{study.name}: {verdict}.", *judged.failed),
        paragraph(facts_line(study, facts), "facts"),
        paragraph(study.setup, "setup"),
        paragraph(study.tier(facts.tier).covers, "setup"),
    ]
    for name, one in tables.items():
        if one[1]:
            parts += [f"<h2>{name}</h2>", table(*one)]
    parts.append("<h2>Pictures</h2>")
    for name, heading, text in pictures:
        shown = (folder / name).read_bytes() if name else b""
        parts.append(picture(shown, heading, text) if name else paragraph(text, "absent"))
    parts.append(paragraph(f"Repeat: {facts.command}", "facts"))
    return page(study.question, parts)
