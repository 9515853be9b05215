"""Causal language models of Hugging Face transformers, routed."""

from prismatic.errors import optional

for _name in ("transformers", "peft"):
    optional(_name)

from .model import CausalLM  # noqa: E402
from .wrapping import from_pretrained, routers_of, unwrap, wrap  # noqa: E402

__all__ = ["CausalLM", "from_pretrained", "routers_of", "unwrap", "wrap"]
