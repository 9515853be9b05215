import inspect
from pathlib import Path

import pytest
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from prismatic.data import German

CONF = Path(__file__).parents[2] / "conf" / "data"
DOMAINS = {
    "trio": ("python", "shakespeare", "bible"),
    "duo": ("python", "pydoc"),
    "mixed": ("mixed",),
    "iid": ("iid",),
}


def load(name):
    return OmegaConf.load(CONF / f"{name}.yaml")


def nodes(node):
    """Every `_target_` node in a resolved config."""
    if isinstance(node, list):
        return [found for child in node for found in nodes(child)]
    if not isinstance(node, dict):
        return []
    return [node] * ("_target_" in node) + nodes(list(node.values()))


@pytest.mark.parametrize("name", DOMAINS)
def test_a_config_builds_its_task(name):
    task = instantiate(load(name))
    assert task.domains == DOMAINS[name]
    assert [row["source"] for row in task.manifest] == list(DOMAINS[name])
    if task.is_text:
        assert 1 < task.baselines["bigram"] < task.baselines["unigram"] < 4
        assert all(row["bytes"] <= 2_000_000 for row in task.manifest)


def test_quartet_is_the_trio_and_german(tmp_path):
    (tmp_path / "witze").write_text("".join(f"Spruch {i} über Käse\n%\n" for i in range(1_000)))
    config = load("quartet")
    assert config.sources[:3] == load("trio").sources
    config.sources[3].folder = str(tmp_path)
    assert instantiate(config).domains == ("python", "shakespeare", "bible", "german")


def test_text_takes_its_path_from_the_environment(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("What I wrote. " * 1_000)
    monkeypatch.setenv("PRISMATIC_DATA", str(tmp_path / "mine.txt"))
    assert instantiate(load("text")).domains == ("mine.txt",)


def test_text_without_a_path_says_how_to_give_one(monkeypatch):
    monkeypatch.delenv("PRISMATIC_DATA", raising=False)
    with pytest.raises(Exception, match=r"data\.path=null names no text"):
        instantiate(load("text"))


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_config_shows_every_argument_with_its_default(path, monkeypatch):
    monkeypatch.delenv("PRISMATIC_DATA", raising=False)
    assert path.read_text().startswith("# ")
    for node in nodes(OmegaConf.to_container(OmegaConf.load(path), resolve=True)):
        parameters = inspect.signature(get_object(node["_target_"])).parameters
        assert set(parameters) == {key for key in node if not key.startswith("_")}
        for key, parameter in parameters.items():
            if parameter.default is not inspect.Parameter.empty:
                assert node[key] == parameter.default


def test_german_default_is_where_debian_puts_it():
    assert German().folder == "/usr/share/games/fortunes/de"
