"""A study's report: one page, in Markdown and as HTML that opens offline, with its figures."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prismatic.files import replacing, write_text
from prismatic.report import markup
from prismatic.report.style import png
from prismatic.stats import Finding, too_few

from .claims import Claim
from .figures import draw_dots, draw_forest
from .study import ASSAY, Findings, Judgement, Study, overall, path_name

VERDICT, TABLE, HTML, MARKDOWN = "verdict.json", "table.csv", "report.html", "report.md"
HEAD = ("claim", "effect", "verdict", "estimate and interval", "p", "n", "matters from", "note")
POWER_HEAD = ("claim", "effects", "with 80 % power", "power")
WIDE = 10_000  # columns of what is no terminal


@dataclass(frozen=True)
class Facts:
    """What a report says of the study as a whole."""

    tier: str
    hash: str
    seeds: Sequence[int]
    runs: int
    seconds: float  # of all runs together
    command: str
    commit: str  # of the code that trained
    date: str  # of the verdict


class Drawn(NamedTuple):
    """A figure in a report: its file, or none where `caption` says why there is nothing to see."""

    file: str
    heading: str
    caption: str


def write(
    study: Study, facts: Facts, judged: Judgement, runs: pd.DataFrame, folder: Path
) -> list[Path]:
    """Write table, verdicts, figures and both reports; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    runs.to_csv(folder / TABLE, index=False)
    claims = study.claims_of(study.tier(facts.tier))
    write_text(folder / VERDICT, json.dumps(result(study, facts, judged, claims), indent=2) + "\n")
    tables = {
        "Verdicts": (HEAD, finding_rows(study.claims, judged.claims)),
        "Controls": (HEAD, finding_rows(study.controls, judged.controls)),
        "What the design can find": (POWER_HEAD, power_rows(claims, len(facts.seeds))),
        "Measures: mean and standard deviation over seeds": mean_rows(study, runs),
    }
    tables = {name: one for name, one in tables.items() if one[1]}
    main, measures = draw_main(study, judged, runs, folder), draw_measures(study, runs, folder)
    write_text(folder / MARKDOWN, markdown(study, facts, judged, tables, main))
    write_text(folder / HTML, html(study, facts, judged, tables, [*main, *measures], folder))
    drawn = [one.file for one in (*main, *measures) if one.file]
    return [folder / name for name in (MARKDOWN, HTML, VERDICT, TABLE, *drawn)]


def draw_main(study: Study, judged: Judgement, runs: pd.DataFrame, folder: Path) -> list[Drawn]:
    """Write a figure per claim, and the study's own."""
    drawn = []
    for name, found in judged.claims.items():
        claim = study.claims[name]
        figure = draw_forest(found, claim.says, claim.unit, claim.smallest_effect)
        drawn.append(save(figure, folder, f"claim_{path_name(name)}", claim.says, "Effects."))
    for name, special in study.figures.items():
        drawn.append(save(special.draw(runs), folder, name, name, special.caption))
    return drawn


def draw_measures(study: Study, runs: pd.DataFrame, folder: Path) -> list[Drawn]:
    """Write a figure per measure that is no pattern."""
    caption = "A dot per seed, and the mean."
    return [
        save(draw_dots(runs, name, meaning), folder, f"measure_{path_name(name)}", meaning, caption)
        for name, meaning in study.measures.items()
        if name in runs
    ]


def save(figure: Figure, folder: Path, name: str, heading: str, caption: str) -> Drawn:
    if not figure.axes:
        reason = " ".join(text.get_text() for text in figure.texts)
        return Drawn("", heading, f"No figure of {name}: {reason}")
    with replacing(folder / f"{name}.png") as draft:
        draft.write_bytes(png(figure))
    return Drawn(f"{name}.png", heading, caption)


def interval_text(found: Finding) -> str:
    """An estimate with its interval."""
    if not math.isfinite(found.estimate):
        return "-"
    low, high = found.interval
    return f"{found.estimate:.4g} [{low:.4g}, {high:.4g}] at {100 * found.level:.3g} %"


def finding_rows(claims: Mapping[str, Claim], findings: Findings) -> list[list[str]]:
    """A row of text per finding."""
    rows = []
    for name, found in findings.items():
        claim = claims[name]
        says = f"{claim.says} ({claim.source})" if claim.source else claim.says
        for effect, one in found.items():
            p = "-" if one.p is None else f"{one.p:.3g}"
            least = "-" if one.smallest_effect is None else f"{one.smallest_effect:g} {claim.unit}"
            estimate = interval_text(one)
            rows.append([says, effect, one.verdict, estimate, p, str(one.n), least, one.note])
    return rows


def power_rows(claims: Mapping[str, Claim], num_seeds: int) -> list[list[str]]:
    """What the design can find, a row per claim of which that is known beforehand."""
    rows = []
    for name, claim in claims.items():
        if (known := claim.power(num_seeds)) is None:
            continue
        finds, of = "finds", "for twice what matters"
        if known.kind == "no difference":
            finds, of = "shows none above", "if there is none"
        power = "unknown: no pilot" if known.power is None else f"{known.power:.2f} {of}"
        if too_few(num_seeds, known.effects):
            power = f"none: {num_seeds} seeds cannot support one of {known.effects} claims"
        rows.append([name, str(known.effects), f"{finds} {known.smallest:.3g} {known.unit}", power])
    return rows


def mean_rows(study: Study, runs: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Mean and standard deviation over seeds, by arm, of the measures that are no patterns."""
    names = [name for name in study.measures if name in runs]
    grouped = runs.groupby("arm", sort=False)[names]
    mean, deviation = grouped.mean(), grouped.std()
    rows = [
        [str(arm), *(
            "-" if math.isnan(mean.at[arm, name])
            else f"{mean.at[arm, name]:.5g} ± {deviation.at[arm, name]:.2g}"
            for name in names
        )]
        for arm in mean.index
    ]  # fmt: skip
    return ["arm", *names], rows


def result(
    study: Study, facts: Facts, judged: Judgement, claims: Mapping[str, Claim]
) -> dict[str, Any]:
    """What a summary of studies reads."""
    power = {row[0]: "; ".join(row[2:]) for row in power_rows(claims, len(facts.seeds))}
    return {
        "study": study.name,
        "question": study.question,
        "source": study.source,
        **asdict(facts),
        "covers": study.tier(facts.tier).covers,
        "verdict": judged.verdict,
        "failed_controls": list(judged.failed),
        "claims": {
            name: {
                "says": study.claims[name].says,
                "source": study.claims[name].source,
                "unit": study.claims[name].unit,
                "verdict": overall(found.values()),
                "findings": {
                    effect: asdict(one) | {"shown": interval_text(one)}
                    for effect, one in found.items()
                },
                "power": power.get(name, ""),
            }
            for name, found in judged.claims.items()
        },
        "controls": {
            name: {effect: asdict(one) for effect, one in found.items()}
            for name, found in judged.controls.items()
        },
    }


def facts_line(study: Study, facts: Facts) -> str:
    return (
        f"tier {facts.tier} · {len(facts.seeds)} seeds · {facts.runs} runs · "
        f"{facts.seconds / 60:.1f} minutes of computing · specification {facts.hash} · "
        f"code {facts.commit} · judged {facts.date} · source {study.source or 'none: a guard'}"
    )


def markdown(
    study: Study, facts: Facts, judged: Judgement, tables: Mapping[str, Any],
    drawn: Sequence[Drawn],
) -> str:  # fmt: skip
    parts = [
        f"# {study.question}",
        f"**{study.name}: {judged.verdict}**",
        facts_line(study, facts),
        study.setup,
        study.tier(facts.tier).covers,
        *(f"## {name}\n\n{markdown_table(*one)}" for name, one in tables.items()),
        *(f"![{one.heading}]({one.file})\n\n{one.caption}" if one.file else one.caption
          for one in drawn),
        f"Repeat: `{facts.command}`",
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def html(
    study: Study, facts: Facts, judged: Judgement, tables: Mapping[str, Any],
    drawn: Sequence[Drawn], folder: Path,
) -> str:  # fmt: skip
    kind = "alarm" if ASSAY in judged.verdict else "calm"
    parts = [
        markup.notice(kind, f"{study.name}: {judged.verdict}.", *judged.failed),
        markup.paragraph(facts_line(study, facts), "facts"),
        markup.paragraph(study.setup, "setup"),
        markup.paragraph(study.tier(facts.tier).covers, "setup"),
    ]
    for name, one in tables.items():
        parts += [f"<h2>{name}</h2>", markup.table(*one)]
    parts.append("<h2>Figures</h2>")
    for file, heading, caption in drawn:
        if file:
            parts.append(markup.picture((folder / file).read_bytes(), heading, caption))
        else:
            parts.append(markup.paragraph(caption, "absent"))
    parts.append(markup.paragraph(f"Repeat: {facts.command}", "facts"))
    return markup.page(study.question, parts)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(c.replace('|', '/') for c in line)} |" for line in lines)


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table in the terminal; its columns are as wide as they need where it is none."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    shown = Table(*head, box=SIMPLE_HEAD)
    for row in rows:
        shown.add_row(*map(escape, row))
    console.print(shown)
