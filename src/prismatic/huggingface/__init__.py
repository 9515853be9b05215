"""Causal language models of Hugging Face transformers, routed."""

try:
    import peft as _peft  # noqa: F401
    import transformers as _transformers  # noqa: F401
except ModuleNotFoundError as error:
    raise ValueError(
        f"{error.name} is missing, which Hugging Face models need: pip install 'prismatic-lab[hf]'"
    ) from error

from .model import CausalLM
from .wrapping import from_pretrained, routers_of, unwrap, wrap

__all__ = ["CausalLM", "from_pretrained", "routers_of", "unwrap", "wrap"]
