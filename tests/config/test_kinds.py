"""A value of the wrong kind, anywhere in a configuration, is one clear error, and at once."""

import inspect
import re
from types import NoneType
from typing import get_args

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from prismatic.config.checks import check
from prismatic.config.kinds import KINDS, kinds_of

from ..tiny import CONF, tiny

GROUPS = ("data", "model", "router", "perturbation", "focal", "optim", "callbacks", "guard")
FILES = [path for group in (*GROUPS, "trainer", "logger") for path in CONF.glob(f"{group}/*.yaml")]
TARGETS = sorted({t for path in FILES for t in re.findall(r"_target_: ([\w.]+)", path.read_text())})


def signature_of(target) -> dict[str, set[type]]:
    """The arguments of numbers, truth values and null alone, as python itself tells them."""
    found: dict[str, set[type]] = {}
    for one in reversed(getattr(target, "__mro__", (target,))):
        if inspect.isfunction(one) or "__init__" in vars(one):
            for argument in inspect.signature(one, eval_str=True).parameters.values():
                members = set(get_args(argument.annotation) or [argument.annotation])
                found[argument.name] = members if members <= {int, float, bool, NoneType} else set()
    return {name: members for name, members in found.items() if members}


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_read_is_what_python_would_say(target):
    read = kinds_of(*target.rpartition(".")[::2])
    types = {"int": int, "float": float, "bool": bool, "None": NoneType}
    assert types.keys() == KINDS.keys()
    assert {name: {types[kind] for kind in kinds} for name, kinds in read.items()} == signature_of(
        get_object(target)
    )


@pytest.fixture(scope="module")
def config():
    return tiny("callbacks=default")


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("model.dim", "abc", "a whole number"),
        ("model.depth", [3], "a whole number or null"),
        ("model.bias", 1, "true or false"),
        ("optim.lr", "abc", "a number"),
        ("optim.batch_size", True, "a whole number"),
        ("router.num_experts", 2.5, "a whole number"),
        ("router.balance_loss", None, "a number"),
        ("guard.spike_count", "abc", "a whole number"),
        ("perturbation.scale", "abc", "a number"),
        ("trainer.gradient_clip_val", "abc", "null or a number"),
        ("callbacks.pictures.every", "abc", "a whole number"),
        ("data.seq_len", "abc", "a whole number"),
    ],
)
def test_the_value_and_what_is_valid_are_named(config, name, value, wanted):
    mistyped = config.copy()
    OmegaConf.update(mistyped, name, value)
    with pytest.raises(ValueError) as refused:
        check(mistyped)
    assert str(refused.value) == f"{name}={value!r} is not valid: give {wanted}"


def test_a_number_may_be_whole_and_a_name_may_be_a_number(config):
    for name, value in {
        "optim.lr": 1,
        "trainer.limit_val_batches": 0.5,
        "data._target_": 7,
    }.items():
        other = config.copy()
        OmegaConf.update(other, name, value)
        check(other)
