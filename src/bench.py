"""Measure what routing costs: python src/bench.py bench=step"""

import hydra
from omegaconf import DictConfig

from prismatic.config import command_line as cli
from prismatic.config import paths

paths.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="bench")
def main(config: DictConfig) -> None:
    from prismatic.bench import main as bench

    bench(config)


if __name__ == "__main__":
    cli.run(main)
