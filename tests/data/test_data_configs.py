import inspect
from pathlib import Path

import pytest
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from prismatic.data import German
from prismatic.stats import loss_ladder

from ..tiny import composed

CONF = Path(__file__).parents[2] / "conf" / "data"
JOINTS = sorted(path.stem for path in (CONF / "joint").glob("*.yaml"))
DOMAINS = {
    "trio": ("python", "shakespeare", "bible"),
    "duo": ("python", "pydoc"),
    "mixed": ("mixed",),
    "iid": ("iid",),
}


def load(name):
    return composed(f"data={name}").data


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
    if task.bytes_per_token:
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


def test_a_joint_table_is_chosen_by_name():
    ladders = {name: loss_ladder(load_joint(name)) for name in JOINTS}
    flat = {"sum_mod", "latin_square", "sum_digit"}  # knowing one token is knowing nothing
    for name, ladder in ladders.items():
        useless = ladder["H(Z)"] - ladder["H(Z|X)"] < 1e-9
        assert useless == (name in flat), name
        assert ladder["additive floor"] > ladder["H(Z|X,Y)"] + 0.1, name
    assert set(ladders) == flat | {"random_function", "carry", "uneven"}


def load_joint(name):
    return instantiate(composed("data=mixed", f"data/joint={name}").data).joint_XYZ


def test_numbers_of_a_joint_table_are_set_below_it():
    assert load_joint("sum_mod").shape == (10, 10, 10)
    config = composed("data=mixed", "data.joint.n=3", "data.joint.noise=0")
    assert instantiate(config.data).bayes_loss == 0


def test_a_joint_table_of_another_task_is_refused():
    with pytest.raises(Exception, match=r"Could not override 'data/joint'"):
        composed("data=iid", "data/joint=carry")


# A carry is a digit of a sum, at the second place.
DIFFERENT = {("carry", "place")}


@pytest.mark.parametrize("name", JOINTS)
def test_a_joint_table_shows_every_argument_with_its_default(name):
    config = composed("data=mixed", f"data/joint={name}").data.joint
    for node in nodes(OmegaConf.to_container(config, resolve=True)):
        parameters = inspect.signature(get_object(node["_target_"])).parameters
        assert set(parameters) == {key for key in node if not key.startswith("_")}
        for key, parameter in parameters.items():
            if parameter.default is not inspect.Parameter.empty:
                assert (node[key] == parameter.default) != ((name, key) in DIFFERENT)


def test_german_default_is_where_debian_puts_it():
    assert German().folder == "/usr/share/games/fortunes/de"
