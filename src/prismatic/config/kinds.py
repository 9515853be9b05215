"""Values of the wrong kind are refused by what their targets take, as their source says it.

Importing the targets takes seconds, and reading them a moment.
"""

import ast
import re
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import resolve_name
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from prismatic.errors import require

KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "None": ((type(None),), "null"),
}


def check_kinds(node: DictConfig, path: str = "") -> None:
    """Raise `ValueError` for a value that is not of the kind which its target's signature states.

    Only where the signature asks for numbers, truth values or null: of texts the target itself
    knows more. An interpolation is looked at where its value stands.
    """
    target = node.get("_target_")
    kinds = kinds_of(*target.rpartition(".")[::2]) if isinstance(target, str) else {}
    for key in map(str, node):
        if OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key):
            continue
        name, value = f"{path}{key}", node[key]
        if isinstance(value, DictConfig):
            check_kinds(value, f"{name}.")
        elif key in kinds:
            types = {accepted for kind in kinds[key] for accepted in KINDS[kind][0]}
            named = [k for k in kinds[key] if k != "int" or "float" not in kinds[key]]
            wanted = " or ".join(KINDS[kind][1] for kind in named)
            require(type(value) in types, name, value, f"give {wanted}")


@cache
def kinds_of(module: str, name: str) -> dict[str, list[str]]:
    """The kinds of those arguments of a class or function that are of `KINDS` alone.

    A class takes what its bases take, too; the fields of a dataclass are its arguments.
    """
    place = definition(module, name)
    if place is None:
        return {}
    module, node = place
    kinds: dict[str, list[str]] = {}
    for base in getattr(node, "bases", ()):
        kinds |= kinds_of(module, base.id) if isinstance(base, ast.Name) else {}
    has_fields = any("dataclass" in ast.unparse(one) for one in node.decorator_list)
    taken: list[ast.AnnAssign | ast.arg] = []
    for part in (node, *node.body):
        if isinstance(part, ast.AnnAssign) and has_fields:
            taken.append(part)
        elif isinstance(part, ast.FunctionDef) and part.name in (name, "__init__"):
            taken += [*part.args.args, *part.args.kwonlyargs]
    for one in taken:
        argument = one.arg if isinstance(one, ast.arg) else ast.unparse(one.target)
        kinds[argument] = plain(one.annotation)
    return {argument: found for argument, found in kinds.items() if found}


def plain(annotation: ast.expr | None) -> list[str]:
    """The members of an annotation; none if one of them is not of `KINDS`."""
    words = re.findall(r"\w+", ast.unparse(annotation)) if annotation else []
    words = ["None" if word == "Optional" else word for word in words if word != "Union"]
    return words if set(words) <= KINDS.keys() else []


def definition(module: str, name: str) -> tuple[str, ast.ClassDef | ast.FunctionDef] | None:
    """Where a class or function is defined: its module, and its node there."""
    tree, package = parsed(module)
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    relative = "." * node.level + (node.module or "")
                    return definition(resolve_name(relative, package), alias.name)
    return None


@cache
def parsed(module: str) -> tuple[ast.Module, str]:
    """The source of a module, and its package; an empty one where there is none to read."""
    path, within = None, None
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:depth]), within)
        path, within = (spec.origin, spec.submodule_search_locations) if spec else (None, [])
    package = module.rpartition(".")[0] if within is None else module
    text = Path(path).read_text(encoding="utf-8") if path and path.endswith(".py") else ""
    return ast.parse(text), package
