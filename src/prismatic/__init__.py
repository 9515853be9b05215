"""Prismatic routing: soft mixtures over deterministic views of one set of weights."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prismatic.dashboard.runs import results as results
    from prismatic.experiment import load as load
    from prismatic.huggingface import from_pretrained as from_pretrained
    from prismatic.huggingface import routers_of as routers_of
    from prismatic.huggingface import unwrap as unwrap
    from prismatic.huggingface import wrap as wrap

# Imported when first asked for: torch and Lightning take seconds, and a plugin or `--help` needs
# neither.
PUBLIC = {"load": "prismatic.experiment", "results": "prismatic.dashboard.runs"}
PUBLIC |= dict.fromkeys(
    ("from_pretrained", "routers_of", "unwrap", "wrap"), "prismatic.huggingface"
)

__all__ = ["from_pretrained", "load", "results", "routers_of", "unwrap", "wrap"]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)
