"""A causal language model of Hugging Face transformers as the model of a run: `model=hf`."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from prismatic.errors import one_of, require
from prismatic.models import RoutedModel

from .block import own_parameters
from .wrapping import READABLE, load_plain, route_blocks

TRAINED = "all", "router", "lora"

log = logging.getLogger(__name__)


class CausalLM(RoutedModel):
    """A pretrained model from a folder or the hub, or a new one from a configuration.

    `path` names the folder; `config` overrides its configuration, or with a `model_type` describes
    a new model, whose vocabulary is then that of the data. Values of None are left as they are.
    `train` says what learns: all weights, the routers alone, or the routers and LoRA adapters
    (arXiv 2106.09685), whose options `lora` holds. `layers` is as for `prismatic.wrap`. Weights are
    in float32, and no code of the folder runs. `model` is the model of transformers.
    Raises `ValueError` for options that do not fit one another, `OSError` for a folder without
    safetensors.
    """

    def __init__(
        self,
        vocab_size: int,
        seq_len: int,
        router: Any,
        path: str | None = None,
        config: Mapping[str, Any] | None = None,
        *,
        train: str = "all",
        lora: Mapping[str, Any] | None = None,
        layers: Sequence[int] | str | None = None,
        gradient_checkpointing: bool = False,
        attn_implementation: str = "sdpa",
    ) -> None:
        super().__init__()
        one_of("model.train", train, TRAINED)
        one_of("model.attn_implementation", attn_implementation, READABLE)
        settings = configure(path, config or {}, vocab_size)
        require_fit(settings, vocab_size, seq_len)
        self.seq_len, attention = seq_len, {"attn_implementation": attn_implementation}
        if path is None:
            self.model = AutoModelForCausalLM.from_config(settings, **attention)
        else:
            self.model = load_plain(path, config=settings, dtype=torch.float32, **attention)
        if train == "lora":
            # Before the routers come, whose gates shall have no adapters.
            self.model = inject_adapter_in_model(LoraConfig(**(lora or {})), self.model)
        route_blocks(self.model, router, layers)
        if train != "all":
            train_routers(self, adapters=train == "lora")
        if gradient_checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        self.train()  # a model that was loaded is in evaluation mode

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        return self.model(tokens_BT, use_cache=False).logits


def configure(path: str | None, overrides: Mapping[str, Any], vocab_size: int) -> Any:
    """The configuration of a model, of which every key that is given has a meaning."""
    given = {key: value for key, value in overrides.items() if value is not None}
    kind = given.pop("model_type", None)
    if path is None:
        wanted = "give the folder of a pretrained model, or model.config.model_type=llama"
        require(kind is not None, "model.path", path, wanted)
        wanted = "transformers has it not; it has llama, gpt2, qwen3, mistral, gpt_neox and others"
        require(kind in CONFIG_MAPPING, "model.config.model_type", kind, wanted)
        settings = AutoConfig.for_model(kind)
        given.setdefault("vocab_size", vocab_size)
    else:
        settings = AutoConfig.from_pretrained(path, trust_remote_code=False)
        wanted = f"{path} is a {settings.model_type}: leave it out"
        require(kind in (None, settings.model_type), "model.config.model_type", kind, wanted)
    known = sorted({*settings.to_dict(), *settings.attribute_map})
    for key in given:
        wanted = f"{settings.model_type} has {', '.join(known)}"
        require(key in known, "key of model.config", key, wanted)
    # A new model's other values follow from those that are given, as its heads of keys do.
    kept = {} if path is None else settings.to_dict()
    return type(settings)(**{**kept, **given})


def require_fit(settings: Any, vocab_size: int, seq_len: int) -> None:
    """Raise `ValueError` unless the model knows all tokens of the data and all their positions."""
    text = settings.get_text_config()
    wanted = f"the model knows {text.vocab_size} tokens: give data with its own tokenizer"
    require(vocab_size <= text.vocab_size, "vocabulary of the data", vocab_size, wanted)
    if vocab_size != text.vocab_size:
        log.info(f"the model knows {text.vocab_size} tokens, the data have {vocab_size}")
    most = getattr(text, "max_position_embeddings", None) or seq_len
    wanted = f"the model has {most} positions: give fewer"
    require(seq_len <= most, "data.seq_len", seq_len, wanted)


def train_routers(model: CausalLM, adapters: bool) -> None:
    """Let nothing learn but what routers add to the model, and adapters."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = adapters and "lora_" in name
    for router in model.routers:
        for parameter in own_parameters(router):
            parameter.requires_grad = True
    require(
        any(p.requires_grad for p in model.parameters()), "model.train", "router",
        "router=dense adds nothing that could learn: its loss is view 0's (views/0/loss). Use "
        "baseline=none, or model.train=all or lora",
    )  # fmt: skip
