"""From a claim to a verdict: python src/study.py study=benefit tier=cpu"""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from prismatic.config import command_line as cli
from prismatic.config import paths

paths.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="study")
def main(config: DictConfig) -> None:
    cli.refuse_added(HydraConfig.get().overrides.task, map(str, config))
    from prismatic.studies import main as study

    study(config)


if __name__ == "__main__":
    cli.run(main)
