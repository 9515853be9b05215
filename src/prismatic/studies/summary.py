"""One page of all studies: each claim, where it is made, and what was found."""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from os.path import relpath
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from prismatic.config.paths import absolute
from prismatic.errors import require
from prismatic.files import write_text
from prismatic.report import markup

from .design import written_out
from .report import HTML, MARKDOWN, TABLE, VERDICT, markdown_table, print_table
from .study import TIERS, digest

NAME = "summary"
INDEX = "README.md"  # of the published results
OUTDATED = ", by another specification"
HEAD = ("study", "claim", "source", "effect", "verdict", "estimate and interval", "power")
INTRODUCTION = (
    "Each claim is judged by a rule that was fixed before the runs: supported, refuted or "
    "inconclusive, for each regime by itself. A smoke tier gives no verdict. Minutes are those of "
    "all runs of the study, one after another."
)
PUBLISHED = (
    "The last judged round of every study, written by `python src/study.py study=summary "
    "publish=true`: the verdicts as JSON, the table of runs that they are a function of, the "
    "report and its figures. The commit is that of the code that trained the runs."
)


class Summary:
    """What `study=summary` does."""

    def run(self, config: DictConfig) -> None:
        """Write `summary.md` and `summary.html` beside the studies' folders.

        With `publish`, copy every study's last results to `results`, and write their index. Raises
        `ValueError` where no study has been run.
        """
        folder = absolute(config.output)
        results = latest(read(folder), present)
        wanted = "run one first: python src/study.py study=leak tier=cpu"
        require(bool(results), "output", str(folder), f"it holds no finished study; {wanted}")
        rows = [row for result in results for row in rows_of(result)]
        reports = {r["study"]: relpath(Path(r["folder"], HTML), folder) for r in results}
        write_text(folder / f"{NAME}.md", markdown(results, rows, reports))
        write_text(folder / f"{NAME}.html", html(results, reports))
        print_table(HEAD, rows)
        print(f"summary: {folder / f'{NAME}.html'}")
        if config.publish:
            print(f"results: {publish(results, absolute(config.results))}")


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
        for row in effect_rows(claim):
            rows.append([*whole[:3], *row, whole[3]])
            whole = [""] * 4
    return rows


def effect_rows(claim: Mapping[str, Any]) -> list[list[str]]:
    return [
        [effect or "-", finding["verdict"], finding["shown"]]
        for effect, finding in claim["findings"].items()
    ]


def title(result: Mapping[str, Any]) -> str:
    return f"{result['study']} ({result['tier']}{OUTDATED if result['outdated'] else ''})"


def minutes(result: Mapping[str, Any]) -> str:
    return f"{result['seconds'] / 60:.1f} min"


def markdown(
    results: Sequence[Mapping[str, Any]], rows: Sequence[Sequence[str]], reports: Mapping[str, str]
) -> str:
    lines = [f"- [{r['study']}]({reports[r['study']]}): {r['question']}" for r in results]
    parts = ["# Studies", INTRODUCTION, "\n".join(lines), markdown_table(HEAD, rows)]
    return "\n\n".join(parts) + "\n"


def html(results: Sequence[Mapping[str, Any]], reports: Mapping[str, str]) -> str:
    links = [
        f'<p><a href="#{r["study"]}">{r["study"]}</a> ({r["verdict"]}): {escape(r["question"])}</p>'
        for r in results
    ]
    parts = [part for r in results for part in section(r, reports[r["study"]])]
    return markup.page("Studies", [markup.paragraph(INTRODUCTION, "facts"), *links, *parts])


def section(result: Mapping[str, Any], report: str) -> Iterator[str]:
    """A study's part of the page: a table of effects for each claim."""
    yield f'<h2 id="{result["study"]}">{escape(title(result))}: {escape(result["question"])}</h2>'
    source = result["source"] or "none: a guard"
    yield f'<p><a href="{escape(report)}">Report</a></p>'
    yield markup.paragraph(f"{minutes(result)} of computing · source {source}", "facts")
    yield markup.paragraph(result["covers"], "setup")
    for claim in result["claims"].values():
        yield f"<h3>{escape(claim['says'])}</h3>"
        facts = [claim["verdict"], claim["source"], claim["power"] and f"power: {claim['power']}"]
        yield markup.paragraph(" · ".join(filter(None, facts)), "facts")
        yield markup.table(HEAD[3:6], effect_rows(claim))


def publish(results: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Copy what a clone should hold of each judged study, and write the index of all there are.

    What else lies there stays: the log shows figures of earlier rounds.
    """
    for result in results:
        if result["tier"] != TIERS[0]:
            source, target = Path(result["folder"]), folder / result["study"]
            target.mkdir(parents=True, exist_ok=True)
            shown = re.findall(r"!\[.*?\]\((.*?)\)", (source / MARKDOWN).read_text())
            for name in (VERDICT, TABLE, MARKDOWN, *shown):
                shutil.copyfile(source / name, target / name)
    rows, lacking = [], []
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        if not (path / VERDICT).exists():
            lacking.append(path.name)
            continue
        r = json.loads((path / VERDICT).read_text())
        link = f"[{path.name}]({path.name}/{MARKDOWN})"
        rows.append([link, r["question"], r["verdict"], r["tier"], r["date"], r["commit"]])
    head = ("study", "question", "verdicts", "tier", "judged", "commit")
    parts = ["# Results", PUBLISHED, *([markdown_table(head, rows)] if rows else [])]
    if lacking:
        parts.append(
            f"Of {', '.join(lacking)} only figures of an earlier round are here: `LOG.md` has what "
            "was found."
        )
    write_text(folder / INDEX, "\n\n".join(parts) + "\n")
    return folder / INDEX
