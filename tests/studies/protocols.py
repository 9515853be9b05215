"""The studies' own YAML files, as objects."""

from prismatic.studies import Study, build

from ..tiny import composed


def declared(name: str) -> Study:
    """A study as `python src/study.py study=<name>` would run it."""
    return build(composed(f"study={name}", config_name="study").study).study


def probes(name: str) -> list[str]:
    """The overrides by which a study's runs get its probes."""
    return build(composed(f"study={name}", config_name="study").study).probes
