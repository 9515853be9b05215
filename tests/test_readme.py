"""What the READMEs and the help tell a user to type exists, composes and runs."""

import re
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from prismatic.stats.verdicts import too_few
from prismatic.studies import build
from prismatic.studies.runner import jobs

from .tiny import ROOT, composed

PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in ("", "conf", "sweeps", "src", "outputs/results")
    for path in sorted((ROOT / folder).glob("**/README.md" if folder else "README.md"))
}
TEXT = "\n".join(PAGES.values())
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
LINES = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
LINES += [line.strip() for line in (ROOT / "conf" / "train.yaml").read_text().splitlines()]
SCRIPTS = sorted({line for line in LINES if line.startswith("python src/")})
# Blocks that speak of a run of the reader's own are read by the eye alone.
RUNNABLE = [block for kind, block in BLOCKS if kind == "python" and "<" not in block]
STUDY = PAGES["conf/study/README.md"]
PLACES = {"<date>/<time>": "2026-01-01/12-00-00", "<id>": "abc", "<folder>": str(ROOT / "conf")}


@pytest.mark.parametrize("line", SCRIPTS)
def test_every_command_composes(line):
    for place, value in PLACES.items():
        line = line.replace(place, value)
    _, script, *arguments = shlex.split(line, comments=True)
    assert (ROOT / script).is_file()
    if "--config-dir" in arguments:
        return  # a configuration of the reader's own
    # A sweep composes one value of each list at a time.
    sweep = "-m" in arguments
    typed = [word.split(",")[0] if sweep else word for word in arguments if word != "-m"]
    composed(*typed, config_name=Path(script).stem)


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", TEXT)) <= targets


@pytest.mark.parametrize("example", RUNNABLE)
def test_every_example_runs(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(example, names)
    if "PrismaticRouter" in example and "y1" in names:
        assert names["y"].shape == names["y1"].shape == (2, 10, 64)


def test_the_study_example_is_a_study():
    (example,) = re.findall(r"```yaml\n(.*?)```", STUDY, re.DOTALL)
    made = build(OmegaConf.create(example)).study
    for tier in made.tiers.values():
        for one in jobs(made, tier, range(1)):
            composed(*one.overrides)
    cpu = made.tier("cpu")
    assert made.arms_of(cpu) >= {"plain, attractive", "warm, attractive"}
    effects = {name: set(claim.contrasts) for name, claim in made.claims_of(cpu).items()}
    assert effects == {"better": {"attractive"}, "better_than_none": {"warm, attractive"}}
    assert not too_few(10, 25) and too_few(10, 26)


def test_the_table_of_studies_is_complete():
    assert set(re.findall(r"^\| `(\w+)` \| [^`]*\? \|", STUDY, re.MULTILINE)) | {"summary"} == {
        path.stem for path in (ROOT / "conf" / "study").glob("*.yaml")
    }


def test_every_option_of_the_table_exists():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", PAGES["conf/README.md"], re.MULTILINE)
    groups = [(group, options) for group, options in rows if (ROOT / "conf" / group).is_dir()]
    assert len(groups) > 10
    for group, options in groups:
        for name in re.findall(r"`(\w+)`", options):
            assert (ROOT / "conf" / group / f"{name}.yaml").is_file(), (group, name)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", PAGES[page]):
        target = (ROOT / page).parent / link
        assert target.exists(), link
        assert target.suffix != ".png" or target.read_bytes().startswith(b"\x89PNG"), link


def test_the_first_page_is_short():
    """What is reference stands in the folders' own pages."""
    assert len(PAGES["README.md"].splitlines()) <= 140
