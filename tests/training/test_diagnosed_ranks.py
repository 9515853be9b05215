"""Two ranks keep the diagnostics that one keeps."""

import numpy as np
import pytest

from prismatic.report import record

from ..test_end_to_end import command
from ..tiny import MODEL, TEXT

TOLERANCE = 1e-4


def diagnosed(folder, *options):
    """The record of a run on two domains of text."""
    (folder / "text").mkdir(parents=True)
    for name, text in (("squares", TEXT), ("same", TEXT.swapcase())):
        (folder / "text" / f"{name}.txt").write_text(text)
    command(
        "train", *MODEL, "data=text", f"data.path={folder}/text", "data.seq_len=16",
        "~callbacks.progress", "trainer.accelerator=cpu", "optim.batch_size=4",
        "optim.warmup_steps=1", "trainer.max_steps=6", "trainer.val_check_interval=3",
        "trainer.log_every_n_steps=1", "logger=none", *options, folder=folder,
    )  # fmt: skip
    [path] = folder.glob(f"outputs/runs/*/*/{record.FILE}")
    return record.read(path)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_keep_the_diagnostics_of_one(strategy, tmp_path):
    one = diagnosed(tmp_path / "one")
    two = diagnosed(tmp_path / "two", f"trainer={strategy}", "trainer.devices=2")
    assert "routing/domain_DE" in one.lines[-1] and "routing/train_E" in one.lines[0]
    assert one.about["as_of"] == two.about["as_of"] == 6
    changes = two.about["change_PE"], one.about["change_PE"]
    np.testing.assert_allclose(*changes, TOLERANCE, TOLERANCE)
    assert [line.keys() for line in one.lines] == [line.keys() for line in two.lines]
    for name in {name for line in one.lines for name in line} - {"step"}:
        np.testing.assert_allclose(
            two.last(name), one.last(name), TOLERANCE, TOLERANCE, err_msg=name
        )
