"""Routers around the decoder blocks of any causal language model of Hugging Face transformers."""

import inspect
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from prismatic.errors import require
from prismatic.perturb import Focal, Perturbation
from prismatic.routers import PrismaticRouter, Router, unbind_rules

from .block import RoutedBlock, plain_names

MLP = "mlp"  # what every family calls it
READABLE = "sdpa", "eager"


def wrap(
    model: Any,
    num_experts: int = 4,
    perturbation: Perturbation | None = None,
    focal: Focal | None = None,
    level: str = "token",
    pool: str | None = None,
    layers: Sequence[int] | str | None = None,
    **router_options: Any,
) -> Any:
    """Put a `PrismaticRouter` around the decoder blocks of a causal language model, in place.

    `layers` picks some of the blocks by number; "mlp" routes the MLP of every block and leaves its
    attention alone. Other options are those of `PrismaticRouter`. Returns the model, whose
    `save_pretrained` also keeps the routers (see `from_pretrained`). Raises `ValueError` for a
    model or an option that cannot be right.
    """
    options = dict(
        num_experts=num_experts, perturbation=perturbation or Perturbation(),
        focal=focal or Focal(), level=level, pool=pool, **router_options,
    )  # fmt: skip
    require("gate" not in options, "gate", options.get("gate"), "it could not be loaded again")
    route_blocks(model, partial(PrismaticRouter, **options), layers)
    plain = {name: asdict(o) if isinstance(o, (Perturbation, Focal)) else o
             for name, o in options.items()}  # fmt: skip
    kept = layers if layers is None or isinstance(layers, str) else list(layers)
    model.config.prismatic = {**plain, "layers": kept}
    if isinstance(model, PreTrainedModel):
        model.__class__ = plainly_saved(type(model))  # type: ignore[arg-type,assignment]
    return model


@lru_cache
def plainly_saved(cls: Any) -> type:
    """A class of models whose `save_pretrained` writes weights that the plain class can read.

    Their names in a module's state have to be their paths, by which peft finds them.
    """

    class PlainlySaved(cls):
        bare = cls

        def save_pretrained(self, *args: Any, state_dict: Any = None, **kwargs: Any) -> None:
            state = self.state_dict() if state_dict is None else state_dict
            super().save_pretrained(*args, state_dict=plain_state(self, state), **kwargs)

    PlainlySaved.__name__ = PlainlySaved.__qualname__ = cls.__name__
    PlainlySaved.__module__ = cls.__module__
    return PlainlySaved


def route_blocks(model: Any, make_router: Any, layers: Sequence[int] | str | None = None) -> None:
    """What `wrap` does, with routers of any kind: `make_router(module, hidden_size=, name=)`."""
    require(not routers_of(model), "model", type(model).__name__, "it is routed: unwrap it first")
    config = model.config
    wanted = "give a causal language model, a decoder alone"
    decoder = not (config.is_encoder_decoder or getattr(config, "add_cross_attention", False))
    require(decoder, "model", type(model).__name__, wanted)
    attention = config._attn_implementation
    wanted = f"routers cannot read its masks: load the model with one of {', '.join(READABLE)}"
    require(attention in READABLE, "attn_implementation", attention, wanted)
    path, blocks = find_blocks(model)
    part, chosen = "", list(range(len(blocks)))
    if isinstance(layers, str):
        wanted = f'give "{MLP}", a list of numbers, or None for all blocks'
        require(layers == MLP, "layers", layers, wanted)
        part = MLP
        wanted = f"its blocks have no submodule {MLP!r}: give layers=None"
        require(hasattr(blocks[0], MLP), "layers", layers, wanted)
    elif layers is not None:
        chosen = list(layers)
        fitting = chosen and {*chosen} <= {*range(len(blocks))} and len({*chosen}) == len(chosen)
        require(bool(fitting), "layers", chosen, f"give numbers from 0 to {len(blocks) - 1}")
    width = config.get_text_config().hidden_size
    for k in chosen:
        name = ".".join(filter(None, [path, str(k), part]))
        blocks[k] = RoutedBlock(blocks[k], part, make_router, hidden_size=width, name=name)


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The decoder's blocks and their path: the longest list of modules of one class that take
    hidden states first.
    """
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len({type(block) for block in module}) == 1
        and next(iter(inspect.signature(module[0].forward).parameters), "") == "hidden_states"
    ]
    require(
        bool(found), "model", type(model).__name__,
        "it has no list of blocks of one class that take hidden_states first",
    )  # fmt: skip
    return max(found, key=lambda one: len(one[1]))


def routers_of(model: nn.Module) -> list[Router]:
    """The routers of a model, in order."""
    return [module for module in model.modules() if isinstance(module, Router)]


@torch.no_grad()
def unwrap(model: Any, view: int = 0) -> Any:
    """Take the routers away, in place: the plain model, with the weights of one view.

    View 0 is the model that was wrapped, as it was trained. Returns the model.
    """
    for path, block in routed_blocks(model):
        if view:
            bake(block.router, view)
        unbind_rules(block.router.expert)
        model.set_submodule(path, block.unrouted())
    if hasattr(model.config, "prismatic"):
        del model.config.prismatic
    if hasattr(type(model), "bare"):
        model.__class__ = type(model).bare
    return model


def plain_state(model: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """A state of a model in which all weights of the plain model have the names they have there."""
    for path, block in routed_blocks(model):
        state = plain_names(block, f"{path}.", state)
    return state


def routed_blocks(model: nn.Module) -> list[tuple[str, RoutedBlock]]:
    """The routed blocks of a model and their paths."""
    return [(path, m) for path, m in model.named_modules() if isinstance(m, RoutedBlock)]


def bake(router: Router, view: int) -> None:
    """Give the wrapped module the weights of one view."""
    last = router.num_experts - 1
    require(0 <= view <= last, "view", view, f"give a view from 0 to {last}")
    one_hot_E = torch.eye(router.num_experts)[view]
    some = next(router.expert.parameters())
    mixtures = router.source.mixtures(router.expert, some, None)
    merged = [(p, mixtures[p].merged(one_hot_E.to(p.device))) for p in mixtures]
    for parameter, value in merged:
        parameter.copy_(value)


def from_pretrained(folder: str | Path, **kwargs: Any) -> Any:
    """A model that was wrapped and saved by its `save_pretrained`, routers and adapters included.

    `kwargs` are those of `AutoModelForCausalLM.from_pretrained`. Safetensors only, and no code of
    the folder runs. Raises `ValueError` for a folder that holds no routers.
    """
    folder = Path(folder)
    if (folder / "adapter_config.json").is_file():
        from peft import PeftConfig, PeftModel

        base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
        return PeftModel.from_pretrained(from_pretrained(base, **kwargs), str(folder))
    model = load_plain(folder, **kwargs)
    saved: Any = getattr(model.config, "prismatic", None)
    wanted = "it holds no routers: load it with transformers, and wrap it"
    require(saved is not None, "folder", str(folder), wanted)
    del model.config.prismatic
    kinds = {"perturbation": Perturbation, "focal": Focal}
    wrap(model, **{name: kinds[name](**o) if name in kinds else o for name, o in saved.items()})
    own = {name for name in plain_state(model, model.state_dict()) if ".routed." in name}
    state: dict[str, torch.Tensor] = {}
    for file in sorted(downloaded(folder).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            state |= {name: tensors.get_tensor(name) for name in own & set(tensors.keys())}
    missing = sorted(own - state.keys())
    require(not missing, "folder", str(folder), f"it lacks {missing[:1]}: save the model again")
    model.load_state_dict(state, strict=False)
    return model


def downloaded(folder: Path) -> Path:
    """Where the files of a folder are, or those of a model of the hub."""
    if folder.is_dir():
        return folder
    return Path(snapshot_download(str(folder), allow_patterns="*.safetensors"))


def load_plain(folder: str | Path, **kwargs: Any) -> PreTrainedModel:
    """A pretrained causal language model from safetensors, without routers it was saved with.

    Raises `ValueError` for a folder that lacks some of its weights.
    """
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # its report of what did not fit, which is judged here
    logging.disable_progress_bar()
    try:
        cls: Any = AutoModelForCausalLM
        model, fit = cls.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **kwargs,
        )
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
    others = [name for name in fit["unexpected_keys"] if ".routed." not in name]
    unfit = sorted([*fit["missing_keys"], *map(str, fit["mismatched_keys"]), *others])
    wanted = f"its weights are not those of {type(model).__name__}: {', '.join(unfit[:3])}"
    require(not unfit, "folder", str(folder), wanted)
    return model
