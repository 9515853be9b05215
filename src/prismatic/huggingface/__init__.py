"""Causal language models of Hugging Face transformers, routed."""

from .wrapping import from_pretrained, routers_of, unwrap, wrap

__all__ = ["from_pretrained", "routers_of", "unwrap", "wrap"]
