"""Evaluate a finished run: python src/eval.py run=outputs/runs/<date>/<time>"""

from importlib import import_module

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from prismatic.config import command_line as cli
from prismatic.config import paths

paths.register()

ANSWERS = {
    "run": "prismatic.evaluation.single_run",
    "sweep": "prismatic.evaluation.fresh_seeds",
    "random": "prismatic.evaluation.random_search",
    "compare": "prismatic.evaluation.comparison",
    "send": "prismatic.tracking.run",
}


@hydra.main(version_base="1.3", config_path="../conf", config_name="eval")
def main(config: DictConfig) -> None:
    cli.refuse_added(HydraConfig.get().overrides.task, map(str, config))
    import_module(ANSWERS[cli.the_one_given(config, ANSWERS)]).main(config)


if __name__ == "__main__":
    cli.run(main)
