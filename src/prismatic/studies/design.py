"""A study's YAML with all of its arms written out.

A factorial is declared by its factors, and its arms are then named by patterns.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

from prismatic.errors import one_of, require

AND = ", "  # between the levels by which an arm is named
WILD = set("*?[")  # in a name: it is a pattern
ARMS = "arms: {slow: [optim.lr=0.001]}"
DESIGNS = "designs: [{rate: {slow: [optim.lr=0.001], fast: [optim.lr=0.01]}}]"
TIERS = "tiers: {cpu: {seeds: 10}}"
EACH = "{arm}"  # below a pattern: the arm that it stands for


def written_out(node: Mapping[str, Any]) -> dict[str, Any]:
    """The YAML of a study without `designs` and patterns.

    `designs` is a list of factorials. Each maps factors to their levels and these to overrides; its
    arms are all combinations, each named by its levels, less the level named "". In `claims`,
    `controls`, `figures` and the arms of `tiers` a name with "*", "?" or "[" is a pattern, as of
    files. In a list it stands for the arms that it matches, in their order; as a key for an entry
    each, in whose value "{arm}" is the arm. Raises `ValueError` for an arm that is declared twice,
    and for a pattern that matches none.
    """
    rest = dict(node)
    arms = dict(a_mapping("arms", rest["arms"], ARMS)) if rest.get("arms") else {}
    designs = rest.pop("designs", None) or []
    require(isinstance(designs, list), "designs", designs, f"give a list: {DESIGNS}")
    for design in designs:
        for name, overrides in combinations(design):
            require(name not in arms, "arm", name, "it is declared twice: rename a level")
            arms[name] = overrides
    for name, overrides in arms.items():
        valid = isinstance(overrides, list) and all(isinstance(one, str) for one in overrides)
        require(valid, f"arm {name}", overrides, f"give a list of overrides, as in {ARMS}")
    names = tuple(arms)
    for key in ("claims", "controls", "figures"):
        if key in rest:
            rest[key] = named(rest[key], names)
    tiers = {}
    for name, tier in a_mapping("tiers", rest.get("tiers"), TIERS).items():
        options = a_mapping(f"tier {name}", tier, TIERS).items()
        tiers[name] = {k: v if k == "overrides" else named(v, names) for k, v in options}
    return rest | {"arms": arms, "tiers": tiers}


def combinations(design: Any) -> Iterator[tuple[str, list[str]]]:
    """The arms of a factorial."""
    for factor, levels in a_mapping("design", design, DESIGNS).items():
        for level, overrides in a_mapping(f"factor {factor}", levels, DESIGNS).items():
            wanted = f"give a list of overrides, as in {DESIGNS}"
            require(isinstance(overrides, list), f"level {level!r} of {factor}", overrides, wanted)
    for levels in product(*(factor.items() for factor in design.values())):
        name = AND.join(str(level) for level, _ in levels if level != "")
        yield name, [override for _, overrides in levels for override in overrides]


def a_mapping(name: str, value: Any, like: str) -> dict[str, Any]:
    """Raises `ValueError` unless it is one, and not empty."""
    require(isinstance(value, dict) and bool(value), name, value, f"give a mapping, as in {like}")
    return value


def named(node: Any, arms: tuple[str, ...], each: str = EACH) -> Any:
    """A part of the YAML with the names of arms for patterns, and `each` for "{arm}"."""
    if isinstance(node, str):
        return node.replace(EACH, each)
    if isinstance(node, list):
        return listed([named(one, arms, each) for one in node], arms)
    if not isinstance(node, dict):
        return node
    written: dict[Any, Any] = {}
    for key, value in node.items():
        if is_pattern(key):
            found = {arm: named(value, arms, arm) for arm in matched(key, arms)}
        else:
            found = {named(key, arms, each): named(value, arms, each)}
        for twice in found.keys() & written.keys():
            require(False, "name", twice, f"it is given twice, the second time by {key!r}")
        written |= found
    return written


def listed(items: list[Any], arms: tuple[str, ...]) -> list[Any]:
    """A list without patterns; one that has any names nothing but arms."""
    patterns = [one for one in items if is_pattern(one)]
    if not patterns:
        return items
    single = [one for one in items if one not in patterns]
    for one in single:
        one_of("arm beside a pattern", one, arms)
    chosen = {*single, *(arm for pattern in patterns for arm in matched(pattern, arms))}
    return [arm for arm in arms if arm in chosen]


def is_pattern(name: Any) -> bool:
    return isinstance(name, str) and not WILD.isdisjoint(name)


def matched(pattern: str, arms: tuple[str, ...]) -> list[str]:
    """The arms that a pattern stands for."""
    found = [arm for arm in arms if fnmatchcase(arm, pattern)]
    require(bool(found), "pattern", pattern, f"it matches none of {'; '.join(arms)}")
    return found
