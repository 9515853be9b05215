"""Configurations, the best first: means over seeds, their spread, and differences to a baseline.

The table of `rank` is what the terminal, MLflow, the report and `configurations.csv` show.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra_plugins.prismatic_optuna.configurations import REPLICATE, Configuration, ranked
from hydra_plugins.prismatic_optuna.study import number, objectives, pairs

from .runs import parameters

if TYPE_CHECKING:
    from optuna.study import Study
    from pandas import DataFrame, Series

BASELINE, BETTER, WORSE, NOISE = "baseline", "better", "worse", "within noise"
FILE = "configurations.csv"  # in the sweep's folder
MOST_ROWS = 12  # of a table that is read by eye


def rank(
    study: "Study", runs: "DataFrame", compare_to: Mapping[str, Any] | None = None
) -> "DataFrame":
    """A row for each configuration that has a result, the best first; `runs` as of `read_runs`.

    Columns: `best` (it, or the front), `feasible`, `trials`, the parameters, `n` (seeds), `failed`
    (trials that did not complete), and of each objective its mean by its name, `:sd`, and `:low` to
    `:high`, a 95 % interval by Student's t. With a baseline also `:difference`, the mean less the
    baseline's paired by seed, with `:difference_low`, `:difference_high` and a `:verdict`. Those
    intervals hold all at once, by Bonferroni's inequality; of the best, which chance chose, too,
    those of all pairs do.

    The baseline is the configuration with the values of `compare_to`: the only one, or that which
    is otherwise like the one it is compared with. Without any it is the best, of one objective.
    """
    from pandas import DataFrame

    found, num_best = ranked(study)
    names = objectives(study)
    complete = runs[runs["state"] == "complete"]
    seeds = {
        one: complete[complete["trial"].isin([trial.number for trial in one.complete])]
        .groupby(REPLICATE)[names]
        .mean()
        for one in found
    }
    against = baselines(found, compare_to or {}, alone=len(names) == 1)
    compared = sum(base not in (None, one) for one, base in zip(found, against, strict=True))
    count = compared if compare_to else len(found) * (len(found) - 1) // 2
    rows = []
    for i, one in enumerate(found):
        own, other = seeds[one], against[i]
        row = {
            "best": i < num_best,
            "feasible": one.feasible,
            "trials": " ".join(str(trial.number) for trial in one.trials),
            **{name: None for name in parameters(study)},
            **{name.lstrip("+"): value for name, value in one.params.items()},
            "n": len(own),
            "failed": len(one.trials) - len(one.complete),
        }
        for name, mean, direction in zip(names, one.values, study.directions, strict=True):
            row |= {name: mean, **spread(name, own[name].dropna())}
            if other is one:
                row[f"{name}:verdict"] = BASELINE
            elif other is not None:
                sign = -1 if direction.name == "MAXIMIZE" else 1
                paired = (own[name] - seeds[other][name]).dropna()
                row |= difference(name, paired, sign, count)
        rows.append(row)
    return DataFrame(rows)


def baselines(
    found: Sequence[Configuration], compare_to: Mapping[str, Any], alone: bool
) -> list[Configuration | None]:
    """What each configuration is compared with; `alone` is whether there is one objective."""
    if not found:
        return []
    if not compare_to:
        return [found[0] if alone else None] * len(found)
    named = [one for one in found if agrees(one.params, compare_to)]
    if len(named) == 1:
        return [named[0]] * len(found)
    return [
        next((base for base in named if agrees(base.params, {**one.params, **compare_to})), None)
        for one in found
    ]


def agrees(params: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Does a configuration have these values?"""
    return all(key in params and params[key] == value for key, value in wanted.items())


def spread(name: str, values: "Series") -> dict[str, float]:
    """Standard deviation and interval of an objective over two or more seeds."""
    from prismatic.stats import t_interval

    if len(values) < 2:
        return {f"{name}:sd": float("nan")}
    low, high = map(float, t_interval(values))
    return {f"{name}:sd": float(values.std()), f"{name}:low": low, f"{name}:high": high}


def difference(name: str, paired: "Series", sign: int, count: int) -> dict[str, Any]:
    """The mean of paired differences, of which `sign` turns the better ones below 0."""
    from prismatic.stats import simultaneous_level, t_interval

    row: dict[str, Any] = {f"{name}:difference": paired.mean()}
    if len(paired) < 2:
        return row
    low, high = map(float, t_interval(paired, simultaneous_level(count)))
    verdict = NOISE if low <= 0 <= high else BETTER if sign * low < 0 else WORSE
    row |= {f"{name}:difference_low": low, f"{name}:difference_high": high}
    return row | {f"{name}:verdict": verdict}


def tabulate(
    study: "Study", ranking: "DataFrame", compare_to: Mapping[str, Any] | None = None
) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a ranking as they are read: the best ones, and the baselines."""
    if ranking.empty:
        return [], []
    names, repeated = objectives(study), is_repeated(ranking)
    verdicts = [column for column in ranking if column.endswith(":verdict")]
    wanted = (ranking.index < MOST_ROWS) | (ranking[verdicts] == BASELINE).any(axis=1)
    shown: list[dict[str, Any]] = ranking[wanted].to_dict("records")
    columns = [("trial", [row["trials"] for row in shown])]
    if len(names) > 1 or not ranking["feasible"].all():
        columns.append(("place", list(map(place, shown))))
    for name in names:
        columns.append((name, [number(row[name]) for row in shown]))
        if repeated:
            columns.append(("sd", [rough(row[f"{name}:sd"]) for row in shown]))
            ends = f"{name}:low", f"{name}:high"
            columns.append(("95 % interval", [interval(row, *ends, number) for row in shown]))
        if verdicts and (repeated or compare_to):
            less = f"less {baseline_name(compare_to)}"
            columns.append((less, [compared(row, name) for row in shown]))
    columns += [("seeds", [str(row["n"]) for row in shown])] if repeated else []
    if ranking["failed"].any():
        columns.append(("not complete", [str(row["failed"]) for row in shown]))
    for name in parameters(study):
        columns.append((name, [number(row[name]) for row in shown]))
    heads, cells = zip(*columns, strict=True)
    return list(heads), [list(row) for row in zip(*cells, strict=True)]


def remarks(
    study: "Study", ranking: "DataFrame", compare_to: Mapping[str, Any] | None = None
) -> list[str]:
    """What a reader of the table must know: what is left out, and what chance alone may explain."""
    said = []
    if compare_to and not any(f"{name}:verdict" in ranking for name in objectives(study)):
        said.append(f"no configuration with {pairs(compare_to)} has a result to compare with")
    if len(ranking) > MOST_ROWS:
        said.append(f"{len(ranking)} configurations in all: {FILE} has them")
    if len(ranking) > 1 and not is_repeated(ranking):
        said.append(
            "each configuration ran on one seed, so a difference may be chance: repeat them by "
            "'seeds=[0,1,2]' (or seed=0,1,2 in a grid), or the best on fresh seeds (see the end)"
        )
        return said
    for name in objectives(study):
        if f"{name}:difference_low" not in ranking:
            continue
        judged = ranking[f"{name}:verdict"].isin([NOISE, BETTER, WORSE]).sum()
        noise = (ranking[f"{name}:verdict"] == NOISE).sum()
        said.append(
            f"{name}: {'differences' if noise == judged else f'{noise} of {judged} differences'} "
            f"to {baseline_name(compare_to)} are within noise (paired by seed; 95 % intervals "
            "that hold for all of them at once)"
        )
    return said


def place(row: Mapping[str, Any]) -> str:
    """What is said of a configuration beside its values."""
    if not row["feasible"]:
        return "infeasible"
    return "best" if row["best"] else ""


def is_repeated(ranking: "DataFrame") -> bool:
    """Did any configuration run on several seeds?"""
    return bool((ranking["n"] > 1).any())


def baseline_name(compare_to: Mapping[str, Any] | None) -> str:
    return pairs(compare_to) if compare_to else "the best"


def compared(row: Mapping[str, Any], name: str) -> str:
    """A difference with its interval and verdict, as one cell."""
    if row[f"{name}:verdict"] == BASELINE:
        return BASELINE
    ends = interval(row, f"{name}:difference_low", f"{name}:difference_high", rough)
    shown = [rough(row.get(f"{name}:difference")), ends and f"({ends})"]
    return " ".join(filter(None, [*shown, ends and row[f"{name}:verdict"]]))


def interval(row: Mapping[str, Any], low: str, high: str, style: Callable[[Any], str]) -> str:
    """Both ends, or nothing where there is no interval."""
    ends = [row.get(low), row.get(high)]
    return " to ".join(map(style, ends)) if all(map(rough, ends)) else ""


def rough(value: float | None) -> str:
    """Two digits, as many as a difference or a deviation is known to; nothing for a missing one."""
    return "" if value is None or value != value else f"{value:.2g}"
