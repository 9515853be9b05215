"""Every option composes and builds, says the defaults that the code has, and keeps its promises."""

import re
from collections.abc import Iterator
from inspect import Parameter, signature
from typing import Any

import pytest
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from prismatic.experiment import build
from prismatic.measures import Guard
from prismatic.perturb import Focal, Perturbation

from ..tiny import CONF, FEW, IID, MODEL, QUIET, composed, text_data, tiny

OTHER = {"bench", "hydra", "study"}  # not of the main job, or not its own
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in OTHER)
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
PLAIN = [option for option in OPTIONS if option[0] not in ("experiment", "debug")]
EXPERIMENTS = [name for group, name in OPTIONS if group == "experiment"]
SHORT = ["data.seq_len=16", "data.max_bytes=60_000"]
LINES = ["data.seq_len=16", "data.sample_by=line"]
DATA = {
    "trio": SHORT, "duo": SHORT, "duo_tiny": [], "quartet": SHORT, "text": SHORT,
    "mixed": ["data.held_out_size=64"], "iid": IID[1:],
    "corpus": LINES, "corpus_model_tokenizer": [*LINES, "data.tokenizer=bytes"],
}  # fmt: skip

SMALL = ["model.dim=16", "model.num_heads=2", "model.num_layers=2"]
HF = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
      "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
SIZES = {"hf": [f"model.config.{key}={value}" for key, value in HF.items()]}

# What the constructors of a run are given by the program, not by a configuration.
GIVEN = {"spool", "vocab_size", "router", "expert", "hidden_size", "name", "gate", "tags"}
# Where an option is there to differ from the defaults of the code.
GPT2 = {"dim", "num_layers", "num_heads", "bias", "positions", "gradient_checkpointing"}
DIFFERENT = {
    ("model", "tiny"): {"dim", "num_layers"},
    ("model", "base"): {"dim", "num_layers", "num_heads"},
    ("model", "gpt2_small"): GPT2,
    ("model", "gpt2_medium"): GPT2,
    ("model", "looped"): {"num_layers", "depth"},
    ("data", "duo_tiny"): {"seq_len", "max_bytes"},
    ("data", "corpus_model_tokenizer"): {"tokenizer"},
    ("focal", "relative"): {"units", "length", "wavelength", "phase"},
    ("sparsity", "ultra_sparse"): {"sparsity"},
    ("sparsity", "very_sparse"): {"sparsity"},
    ("sparsity", "moderate"): {"sparsity"},
    **{("perturbation", name): {"mode"} for name in ("repulsive", "directional", "noise")},
    **{("strategy", name): {"strategy"} for name in ("top_only", "bottom_only", "random")},
    **{("focal", name): {"pattern"} for name in ("none", "radial", "helical")},
}
NODE = {"strategy": "perturbation", "sparsity": "perturbation"}


def german(config: DictConfig, folder: Any) -> DictConfig:
    """Debian's fortunes are not everywhere: the same layout in a folder of our own."""
    (folder / "witze").write_text("".join(f"Spruch {i} über Käse\n%\n" for i in range(4_000)))
    for source in config.data.get("sources", []):
        if "folder" in source:
            source.folder = str(folder)
    return config


@pytest.mark.parametrize(("group", "name"), OPTIONS, ids=lambda value: value)
def test_every_option_composes_and_builds(group, name, tmp_path, monkeypatch):
    monkeypatch.setenv("PRISMATIC_OUTPUTS", str(tmp_path))
    if name in ("text", "corpus", "corpus_model_tokenizer"):
        text_data(tmp_path)
        monkeypatch.setenv("PRISMATIC_DATA", str(tmp_path / "squares.txt"))
    sized = [*QUIET, *FEW, f"{group}={name}"]
    sized += [] if group == "data" else IID
    sized += MODEL if group != "model" else []
    sized += DATA[name] if group == "data" else []
    sized += SIZES.get(name, SMALL) if group == "model" else []
    parts = build(german(composed(*sized), tmp_path), tmp_path)
    assert parts.trainer.max_steps >= 1
    assert len(parts.model.routers) == 2


def test_a_mistyped_option_is_an_error_in_every_group():
    for group in GROUPS:
        with pytest.raises(Exception, match=f"Could not find '{group}/nope'"):
            composed(f"{group}=nope")


def targets(node: Any, path: str) -> Iterator[tuple[str, DictConfig]]:
    """Every node below that says what it becomes."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield path, node
        for key, child in node.items_ex(resolve=False):
            yield from targets(child, f"{path}.{key}")
    if isinstance(node, ListConfig):
        for child in node:
            yield from targets(child, path)


@pytest.mark.parametrize(("group", "name"), PLAIN, ids=lambda value: value)
def test_defaults_in_yaml_are_those_of_the_code(group, name):
    config = composed(f"{group}={name}")
    different = DIFFERENT.get((group, name), set())
    for path, node in targets(config[NODE.get(group, group)], group):
        target = get_object(node._target_)
        if not target.__module__.startswith("prismatic"):
            continue
        taken = signature(target).parameters
        defaults = {n: p.default for n, p in taken.items() if p.default is not Parameter.empty}
        if "__init__" in vars(target) or not isinstance(target, type):
            written = {str(key) for key in node} - {"_target_", "_partial_", "_convert_"}
            assert defaults.keys() - GIVEN - written == set(), f"{path}: not shown to the user"
        for key in defaults.keys() & {str(key) for key in node}:
            value = node[key]
            if isinstance(value, DictConfig):
                if "_target_" not in value:
                    continue  # what another library takes
                value = instantiate(value)
                assert value in (Perturbation(), Focal(), Guard())
            elif key in different:
                assert value != defaults[key], f"{path}.{key} is listed as different"
            elif (group, key) != ("callbacks", "refresh_rate"):
                assert value == defaults[key], f"{path}.{key}"


def test_every_choice_is_a_directory_and_every_default_exists():
    chosen = {
        key: value
        for entry in OmegaConf.load(CONF / "train.yaml").defaults
        if isinstance(entry, DictConfig)
        for key, value in entry.items()
        if not key.startswith("override hydra/")
    }
    assert set(GROUPS) <= chosen.keys()
    for group, name in chosen.items():
        assert name is None or (group, name) in OPTIONS


def test_sparsity_names_of_the_source():
    expected = {"ultra_sparse": 0.01, "very_sparse": 0.05, "default": 0.1, "moderate": 0.2}
    found = {name: tiny(f"sparsity={name}").perturbation.sparsity for name in expected}
    assert found == expected


OURS = {"finetune"}  # the others are of the source documents
LENS = {"focal.pattern": "radial_helical"}
SOURCE_002 = {
    "conservative": {
        "router.num_experts": 3, "perturbation.scale": 0.01, "perturbation.sparsity": 0.1,
        "perturbation.perturb_by_magnitude": True, "perturbation.mode": "directional",
    },
    "moderate": {
        "router.num_experts": 4, "perturbation.scale": 0.1, "perturbation.sparsity": 0.1,
        "perturbation.perturb_by_magnitude": True, "perturbation.mode": "directional",
    },
    "aggressive": {
        "router.num_experts": 4, "perturbation.scale": 1.0, "perturbation.sparsity": 0.05,
        "perturbation.perturb_by_magnitude": True, "perturbation.mode": "noise",
    },
    "default": {
        "router.num_experts": 4, "perturbation.scale": 0.8, "perturbation.sparsity": 0.1,
        "perturbation.strategy": "dual_sided", "perturbation.mode": "attractive",
        "focal.length": 314.159, "focal.wavelength": 3141.59, **LENS,
    },
    "radial": {"router.num_experts": 3, "focal.pattern": "radial"},
    "helical": {"router.num_experts": 3, "focal.pattern": "helical"},
    "none": {"router.num_experts": 2, "focal.pattern": "none"},
    "repulsive": {
        "router.num_experts": 4, "perturbation.scale": 0.8, "perturbation.sparsity": 0.1,
        "perturbation.strategy": "dual_sided", "perturbation.mode": "repulsive", **LENS,
    },
    "willow": {
        "router.num_experts": 2, "perturbation.scale": 0.5, "perturbation.sparsity": 0.01,
        "perturbation.perturb_by_magnitude": True, **LENS,
    },
    "ablation": {
        "router.num_experts": 3, "perturbation.scale": 0.01, "perturbation.sparsity": 0.1,
        "perturbation.perturb_by_magnitude": False,
    },
    "delta_8": {"router.num_experts": 2, "model.num_layers": 2, "model.depth": 8},
    "source": {"router.level": "batch", "router.pool": "mean", "router.allow_leak": True},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(EXPERIMENTS) - OURS))
def test_an_experiment_has_the_numbers_of_its_source(name):
    config = composed(f"experiment={name}")
    for key, value in SOURCE_002[name].items():
        # The source writes a hundred pi with six digits.
        wanted = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
        assert OmegaConf.select(config, key) == wanted, key
    assert config.router._target_.endswith("PrismaticRouter")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_gives_its_command_time_and_expected_result(name):
    header = header_of(name)
    more = " .*" if name in OURS else ""
    assert re.search(rf"^# Command:  python src/train.py experiment={name}{more}$", header, re.M)
    assert re.search(r"^# Time: .* on 2 cores$", header, re.M)
    assert re.search(r"^# Expected: \S", header, re.M)


def test_times_of_experiments_are_measured():
    times = {name: re.search(r"^# Time:.*", header_of(name), re.M)[0] for name in EXPERIMENTS}
    assert [name for name, time in times.items() if not re.search(r"\d.* on 2", time)] == []


def header_of(name):
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines(keepends=True)
    return "".join(line for line in lines if line.startswith("#"))


def test_options_of_two_groups_compose_and_numbers_override_them():
    config = composed("experiment=willow", "sparsity=moderate", "seed=7", "perturbation.scale=0.3")
    # What is typed stands over what an experiment chooses.
    assert config.perturbation.sparsity == 0.2
    assert config.perturbation.scale == 0.3
    assert config.seed == 7


def test_environment_overrides(monkeypatch):
    monkeypatch.setenv("PRISMATIC_DATA", "/somewhere/notes.txt")
    monkeypatch.setenv("PRISMATIC_OUTPUTS", "/elsewhere")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = composed("data=text")
    assert config.data.path == "/somewhere/notes.txt"
    assert config.logger.tracking_uri == "sqlite:////elsewhere/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert composed().logger.tracking_uri == "http://127.0.0.1:5000"
