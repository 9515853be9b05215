"""Evaluate a finished run: python src/eval.py run=outputs/runs/<date>/<time>"""

import hydra
from omegaconf import DictConfig

from prismatic import cli, paths

paths.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="eval")
def main(config: DictConfig) -> None:
    from prismatic.evaluation import main as evaluate

    evaluate(config)


if __name__ == "__main__":
    cli.run(main)
