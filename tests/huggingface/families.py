"""Tiny random models of the families that the contract is held for."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import prismatic
from prismatic.perturb import Focal, Perturbation

VOCAB, WIDTH, VIEWS = 61, 32, 3
LLAMA = dict(
    hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8,
)  # fmt: skip
FAMILIES = {
    "llama": LLAMA,
    "gpt2": dict(n_embd=WIDTH, n_layer=2, n_head=4, n_positions=64),
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "mistral": LLAMA | dict(sliding_window=6),
    "gpt_neox": dict(
        hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    ),
    "gemma": LLAMA,
    "phi": LLAMA | dict(num_key_value_heads=4),
}
# Level and pool, the ones that a language model accepts.
CAUSAL = [("token", None), ("token", "first"), ("token", "last"), ("sequence", None)]


def plain(family: str, attention: str = "sdpa", vocab: int = VOCAB):
    """A model in evaluation mode whose weights are large enough for its tokens to differ."""
    torch.manual_seed(0)
    special = dict(pad_token_id=0, bos_token_id=None, eos_token_id=None)
    config = AutoConfig.for_model(family, vocab_size=vocab, **FAMILIES[family], **special)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def routed(family: str, attention: str = "sdpa", scale: float = 0.9, **options):
    """The same model with lively routers."""
    views = dict(perturbation=Perturbation(scale=scale, sparsity=0.5), focal=Focal("none"))
    model = prismatic.wrap(plain(family, attention), VIEWS, **views, **options)
    return enliven(model)


def enliven(model):
    """Gates that are not nearly indifferent."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for router in prismatic.routers_of(model):
            for parameter in router.gate.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def tokens(num_rows: int = 3, length: int = 12, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCAB, (num_rows, length), generator=generator)
