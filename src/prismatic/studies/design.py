"""A study's YAML with all of its arms written out.

A factorial is declared by its factors, and its arms are then named by patterns.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

from prismatic.perturb import one_of, require

AND = ", "  # between the levels by which an arm is named
WILD = set("*?[")  # in a name: it is a pattern
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
    arms = dict(rest.get("arms") or {})
    for design in rest.pop("designs", None) or ():
        for name, overrides in combinations(design).items():
            require(name not in arms, "arm", name, "it is declared twice: rename a level")
            arms[name] = overrides
    names = tuple(arms)
    for key in ("claims", "controls", "figures"):
        if key in rest:
            rest[key] = named(rest[key], names)
    tiers = {
        name: {k: v if k == "overrides" else named(v, names) for k, v in tier.items()}
        for name, tier in rest["tiers"].items()
    }
    return rest | {"arms": arms, "tiers": tiers}


def combinations(design: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
    """The arms of a factorial."""
    arms = {}
    for levels in product(*(factor.items() for factor in design.values())):
        name = AND.join(str(level) for level, _ in levels if level != "")
        arms[name] = [override for _, overrides in levels for override in overrides]
    return arms


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
            written |= {arm: named(value, arms, arm) for arm in matched(key, arms)}
        else:
            written[named(key, arms, each)] = named(value, arms, each)
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
