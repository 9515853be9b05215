"""What the README and the help tell a user to type exists and composes."""

import re
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from prismatic.stats.verdicts import too_few
from prismatic.studies import build
from prismatic.studies.runner import jobs

from .tiny import ROOT, composed

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", TEXT, re.DOTALL)
HELP = (ROOT / "conf" / "train.yaml").read_text()
LINES = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
LINES += [line.strip() for line in HELP.splitlines()]
SCRIPTS = sorted({line for line in LINES if line.startswith("python src/")})
PLACES = {"<date>/<time>": "2026-01-01/12-00-00", "<id>": "abc"}


@pytest.mark.parametrize("line", SCRIPTS)
def test_every_command_composes(line):
    for place, value in PLACES.items():
        line = line.replace(place, value)
    _, script, *arguments = shlex.split(line, comments=True)
    assert (ROOT / script).is_file()
    # A sweep composes one value of each list at a time.
    sweep = "-m" in arguments
    typed = [word.split(",")[0] if sweep else word for word in arguments if word != "-m"]
    composed(*typed, config_name=Path(script).stem)


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", TEXT)) <= targets


def test_the_router_example_runs():
    (example,) = (b for kind, b in BLOCKS if kind == "python" and "PrismaticRouter" in b)
    names: dict = {}
    exec(example, names)
    assert names["y"].shape == names["y1"].shape == (2, 10, 64)


def test_the_study_example_is_a_study(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    made = build(OmegaConf.create(example)).study
    for tier in made.tiers.values():
        for one in jobs(made, tier, range(1)):
            composed(*one.overrides)
    cpu = made.tier("cpu")
    assert made.arms_of(cpu) >= {"plain, attractive", "warm, attractive"}
    effects = {name: set(claim.contrasts) for name, claim in made.claims_of(cpu).items()}
    assert effects == {"better": {"attractive"}, "better_than_none": {"warm, attractive"}}
    assert not too_few(10, 25) and too_few(10, 26)
    assert set(re.findall(r"^\| `(\w+)` \| [^`]*\? \|", TEXT, re.MULTILINE)) | {"summary"} == {
        path.stem for path in (ROOT / "conf" / "study").glob("*.yaml")
    }


def test_every_option_of_the_table_exists():
    for group, options in re.findall(r"^\| `(\w+)` \| (.*?) \|", TEXT, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", options):
            if (ROOT / "conf" / group).is_dir():
                assert (ROOT / "conf" / group / f"{name}.yaml").is_file(), (group, name)


def test_every_picture_exists():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", TEXT)
    assert pictures
    for path in pictures:
        assert (ROOT / path).read_bytes().startswith(b"\x89PNG")
