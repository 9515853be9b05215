"""Evaluate a finished run: python src/eval.py run=outputs/runs/<date>/<time>"""

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_method
from omegaconf import DictConfig

from prismatic.config import command_line as cli
from prismatic.config import paths

paths.register()

ANSWERS = {
    "run": "prismatic.evaluation.single_run.main",
    "sweep": "prismatic.evaluation.sweep.report_sweep",
    "random": "prismatic.evaluation.sweep.evaluate_search",
    "compare": "prismatic.evaluation.comparison.main",
    "send": "prismatic.tracking.run.main",
}


@hydra.main(version_base="1.3", config_path="../conf", config_name="eval")
def main(config: DictConfig) -> None:
    cli.refuse_added(HydraConfig.get().overrides.task, map(str, config))
    get_method(ANSWERS[cli.the_one_given(config, ANSWERS)])(config)


if __name__ == "__main__":
    cli.run(main)
