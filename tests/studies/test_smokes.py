"""Every study runs from its command to its report, and its smoke tier gives no verdict."""

import json
import shutil
import signal

import pytest

from ..tiny import ROOT

NAMES = sorted({path.stem for path in (ROOT / "conf" / "study").glob("*.yaml")} - {"summary"})
QUICK = ("floor", "leak")  # seeds trained together, and one training after the other
EVERY = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in NAMES]


@pytest.mark.parametrize("name", EVERY)
def test_a_study_at_its_smoke_tier(script, tmp_path, empty_store, name):
    (tmp_path / "outputs").mkdir()
    shutil.copy(empty_store, tmp_path / "outputs" / "mlflow.db")
    before = signal.getsignal(signal.SIGTERM)
    done = script("study", f"study={name}", "tier=smoke")
    assert done.status == 0, done.err
    assert signal.getsignal(signal.SIGTERM) is before, "others of this process meet signals as ever"
    [folder] = (tmp_path / "outputs" / "studies" / name).glob("smoke-*")
    result = json.loads((folder / "verdict.json").read_text())
    assert result["verdict"] == "no verdict"
    assert result["claims"] and result["question"].endswith("?")
    assert len(list(folder.glob("*.png"))) >= len(result["claims"])
