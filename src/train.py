"""Train one model: python src/train.py perturbation=attractive focal=radial_helical"""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from prismatic.config import command_line as cli
from prismatic.config import paths
from prismatic.config.checks import check

paths.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(config: DictConfig) -> object:
    cli.refuse_lone_sweep(HydraConfig.get().runtime.choices, paths.in_sweep())
    check(config)  # in a second: what trains takes several to import
    from prismatic.replicas import run

    return run(config, HydraConfig.get().runtime.output_dir)


if __name__ == "__main__":
    cli.run(main)
