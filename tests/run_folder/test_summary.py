"""What several seeds of one run are said to come to."""

import json
import logging

import pytest

from prismatic.run_folder.contents import METRICS, seed_folder
from prismatic.run_folder.summary import summarise_seeds


@pytest.mark.parametrize(
    ("excess", "said"), [([0.3, 0.2, 0.1], "within noise"), ([0.1, 0.11, 0.12], "more than noise")]
)
def test_seeds_are_told_by_mean_deviation_and_interval(tmp_path, caplog, excess, said):
    caplog.set_level(logging.INFO)
    for seed, (loss, one) in enumerate(zip([1, 2, 3], excess, strict=True)):
        folder = seed_folder(tmp_path, seed)
        folder.mkdir()
        (folder / METRICS).write_text(json.dumps({"loss/val": loss, "loss/excess": one}))
    means = {"loss/val": 2.0, "loss/excess": sum(excess) / 3}
    # The fourth diverged and left nothing.
    summarise_seeds(means, ["loss/val"], tmp_path, seeds=[0, 1, 2, 3], logger=None)
    assert "2 ± 1 (-0.484138 to 4.48414)" in caplog.text  # Student: 2 ± 4.3027 / sqrt(3)
    assert f"the dense model of the same seeds is {said}" in caplog.text
