"""One page of all studies: each claim, where it is made, and what was found."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from os.path import relpath
from pathlib import Path
from typing import Any

import pandas as pd
from hydra import compose
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from prismatic.errors import require
from prismatic.files import write_text
from prismatic.report.markup import page, paragraph, table

from .design import written_out
from .spec import TIERS, digest
from .writing import HTML, VERDICT, markdown_table, print_table

NAME = "summary"
OUTDATED = ", by another specification"
HEAD = (
    "study",
    "claim",
    "source",
    "effect",
    "verdict",
    "estimate and interval",
    "power",
)


class Summary:
    """What `study=summary` does."""

    def run(self, config: DictConfig) -> None:
        """Write `summary.md` and `summary.html` beside the studies' folders.

        Raises `ValueError` where no study has been run.
        """
        folder = Path(config.output).absolute()
        found = latest(read(folder), present)
        wanted = "run one first: python src/study.py study=leak tier=cpu"
        require(bool(found), "output", str(folder), f"it holds no finished study; {wanted}")
        rows = [row for result in found for row in rows_of(result)]
        reports = {r["study"]: relpath(Path(r["folder"], HTML), folder) for r in found}
        write_text(folder / f"{NAME}.md", markdown(found, rows, reports))
        write_text(folder / f"{NAME}.html", html(found, reports))
        print_table(pd.DataFrame(rows, columns=list(HEAD)))
        print(f"summary: {folder / f'{NAME}.html'}")


def read(folder: Path) -> list[dict[str, Any]]:
    """Every result of a study, and the folder it lies in."""
    paths = sorted(folder.glob(f"*/*/{VERDICT}"), key=lambda path: path.stat().st_mtime)
    return [json.loads(path.read_text()) | {"folder": str(path.parent)} for path in paths]


def present(study: str, tier: str) -> str | None:
    """What a study that a command could run now is known by; None if there is none."""
    try:
        node = compose("study", [f"study={study}"]).study
        return digest(written_out(OmegaConf.to_container(node, resolve=True)), tier)  # type: ignore[arg-type]
    except (HydraException, ValueError, KeyError):
        return None


def latest(
    results: Iterable[Mapping[str, Any]], present: Callable[[str, str], str | None]
) -> list[dict[str, Any]]:
    """Of each study the largest tier, and of that the last one.

    One of the specification that `present` says there is now comes before any other, which is
    marked as `outdated`.
    """
    best: dict[str, tuple[tuple[bool, int], dict[str, Any]]] = {}
    for result in results:
        known = present(result["study"], result["tier"])
        outdated = known is not None and known != result["hash"]
        rank = (not outdated, TIERS.index(result["tier"]))
        if result["study"] not in best or rank >= best[result["study"]][0]:
            best[result["study"]] = rank, {**result, "outdated": outdated}
    return [best[name][1] for name in sorted(best)]


def rows_of(result: Mapping[str, Any]) -> list[list[str]]:
    """A row of text per effect; what is the same for a whole claim stands in its first row."""
    name = f"{title(result)}, {minutes(result)}"
    rows = []
    for claim in result["claims"].values():
        whole = [name, claim["says"], claim["source"] or "-", claim["power"] or "-"]
        for row in effects(claim):
            rows.append([*whole[:3], *row, whole[3]])
            whole = [""] * 4
    return rows


def effects(claim: Mapping[str, Any]) -> list[list[str]]:
    return [
        [effect or "-", finding["verdict"], finding["shown"]]
        for effect, finding in claim["findings"].items()
    ]


def title(result: Mapping[str, Any]) -> str:
    return f"{result['study']} ({result['tier']}{OUTDATED if result['outdated'] else ''})"


def minutes(result: Mapping[str, Any]) -> str:
    return f"{result['seconds'] / 60:.1f} min"


INTRODUCTION = (
    "Each claim is judged by a rule that was fixed before the runs: supported, refuted or "
    "inconclusive, for each regime by itself. A smoke tier gives no verdict. Minutes are those of "
    "all runs of the study, one after another."
)


def markdown(
    results: Sequence[Mapping[str, Any]], rows: Sequence[Sequence[str]], reports: Mapping[str, str]
) -> str:
    lines = [f"- [{r['study']}]({reports[r['study']]}): {r['question']}" for r in results]
    studies = "\n".join(lines)
    parts = ["# Studies", INTRODUCTION, studies, markdown_table(HEAD, rows)]
    return "\n\n".join(parts) + "\n"


def html(results: Sequence[Mapping[str, Any]], reports: Mapping[str, str]) -> str:
    links = [
        f'<p><a href="#{r["study"]}">{r["study"]}</a> ({r["verdict"]}): {escape(r["question"])}</p>'
        for r in results
    ]
    parts = [part for r in results for part in section(r, reports[r["study"]])]
    return page("Studies", [paragraph(INTRODUCTION, "facts"), *links, *parts])


def section(result: Mapping[str, Any], report: str) -> Iterator[str]:
    """A study's part of the page: a table of effects for each claim."""
    yield f'<h2 id="{result["study"]}">{escape(title(result))}: {escape(result["question"])}</h2>'
    source = result["source"] or "none: a guard"
    yield f'<p><a href="{escape(report)}">Report</a></p>'
    yield paragraph(f"{minutes(result)} of computing · source {source}", "facts")
    yield paragraph(result["covers"], "setup")
    for claim in result["claims"].values():
        yield f"<h3>{escape(claim['says'])}</h3>"
        facts = [claim["verdict"], claim["source"], claim["power"] and f"power: {claim['power']}"]
        yield paragraph(" · ".join(filter(None, facts)), "facts")
        yield table(HEAD[3:6], effects(claim))
