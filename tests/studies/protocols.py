"""The studies' own YAML files, as objects."""

from prismatic.studies import Study, build

from ..tiny import composed


def declared(name: str) -> Study:
    """A study as `python src/study.py study=<name>` would run it."""
    return build(composed(f"study={name}", config_name="study").study).study
