"""What a run leaves for its pictures, whatever it is made of, and what a guard does to it."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from pytorch_lightning.loggers.logger import DummyLogger

from prismatic.experiment import build
from prismatic.measures.views import changes, describe_lens, describe_views
from prismatic.report import compute_alarms, record
from prismatic.training import Diagnostics, DivergedError

from ..measures.test_views import model
from ..tiny import TEXT, fit, tiny

WATCHED = [
    "callbacks=default",
    "~callbacks.progress",
    "~callbacks.pictures",
    "~callbacks.checkpoint",
]


def diagnosed(folder, *overrides, **options):
    parts, _ = fit(folder, *WATCHED, *overrides, **options)
    return parts, record.read(folder / record.FILE)


def two_domains(folder):
    (folder / "text").mkdir()
    for name, text in (("numbers", TEXT), ("words", TEXT.swapcase())):
        (folder / "text" / f"{name}.txt").write_text(text)
    return ["data=text", f"data.path={folder}/text", "data.seq_len=16"]


def shapes(found):
    sized = {name: np.shape(value) for line in found.lines for name, value in line.items()}
    del sized["step"]
    return sized


@pytest.mark.parametrize("level", ["token", "sequence", "batch"])
def test_what_is_kept_has_the_axes_of_its_name(level, tmp_path):
    pool = {"token": "causal_mean", "sequence": "first", "batch": "mean"}[level]
    options = [f"router.level={level}", f"router.pool={pool}", "router.allow_leak=true"]
    parts, found = diagnosed(tmp_path, "model.depth=3", *options, *two_domains(tmp_path))
    about = found.about
    sizes = {"L": 3, "E": 4, "D": 2, "S": 24, "B": 2}
    sizes |= {"Q": len(about["quantiles"]), "P": len(about["tensors"])}
    fixed = {"edge/grad_tier_K": (3,), "edge/nll_K2": (64, 2), "edge/calibration_K3": (15, 3)}
    for name, shape in shapes(found).items():
        axes = name.rpartition("_")[2] if name.rpartition("_")[2].isupper() else ""
        assert shape == fixed.get(name, tuple(sizes.get(axis) for axis in axes)), name
    names = "routing/sample_SLE routing/domain_null_DE routing/train_E loss/forced_E loss/domain_D"
    assert {*names.split(), "edge/logit_LQ", "edge/grad_block_B"} <= shapes(found).keys()
    assert np.shape(about["change_PE"]) == (sizes["P"], 4) and len(about["norm_E"]) == 4
    for name, shown in about["lens"].items():
        assert name in about["tensors"]
        assert np.shape(shown["selected"]) == np.shape(shown["modulation"])
        assert np.shape(shown["selected"])[1] == len(shown["position"]) <= 2000
    logged = parts.trainer.callback_metrics
    np.testing.assert_allclose(found.last("loss/val"), float(logged["loss/val"]), rtol=1e-5)
    np.testing.assert_allclose(found.last("routing/weight_LE").sum(-1), 1, rtol=1e-4)
    domains = found.last("routing/domain_DE")
    share = np.array([float(parts.learner.held_out.count_D[d]) for d in (0, 1)])
    expected = found.last("routing/weight_LE").mean(0)
    np.testing.assert_allclose(share / share.sum() @ domains, expected, rtol=1e-3)
    names = "edge/pass_2/softmax_gain edge/grad_norm/top edge/grad_norm/block_1 edge/grad_spikes"
    names += " routing/mutual_information_null routing/router_1/entropy views/advertised_share"
    names += " routing/input_dependence_null routing/pass_2/mutual_information edge/log_partition"
    names += " routing/pass_2/merged_relative_norm loss/bits"
    assert set(names.split()) <= logged.keys()


def test_the_lens_is_that_of_the_end(tmp_path):
    parts, found = diagnosed(tmp_path, "optim.lr=0.1")
    assert found.about["as_of"] == 4
    ends = describe_views(changes(parts.model))
    assert found.about["change_PE"] == ends["change_PE"] and found.about["lens"] == ends["lens"]
    begun = json.loads((tmp_path / record.FILE).read_text().splitlines()[0])["about"]
    assert begun["change_PE"] != ends["change_PE"] and begun["views"] == found.about["views"]


def test_a_lens_is_shown_where_it_changes_most_and_evenly_where_it_is_flat():
    focused, flat = (
        next(change for change in changes(model("model.dim=128", focal)) if change.weight.ndim > 1)
        for focal in ("focal=radial", "focal=none")
    )
    found = describe_lens(focused)
    assert np.abs(found["selected"]).max() == pytest.approx(float(focused.f_EP.abs().max()))
    found = describe_lens(flat)
    chosen = np.array(found["position"])[np.array(found["selected"][0]) != 0]
    assert np.mean(chosen) == pytest.approx(flat.weight.numel() / 2, rel=0.2)


def test_twins_that_are_not_trained_depend_on_the_input_as_their_routers(tmp_path):
    parts, found = diagnosed(tmp_path, "optim.lr=1e-30", "router.temperature=0.01")
    trained = found.last("routing/input_dependence")
    assert trained > 0.001
    np.testing.assert_allclose(found.last("routing/input_dependence_null"), trained, rtol=1e-4)
    null_L = [float(parts.trainer.callback_metrics[f"routing/pass_{t}/input_dependence_null"])
              for t in range(2)]  # fmt: skip
    np.testing.assert_allclose(np.mean(null_L), trained, rtol=1e-4)


BARE = {
    "one view": ["router.num_experts=1"],
    "dense": ["router=dense", "router.num_experts=1"],
    "one pass": ["model.num_layers=1", "model.depth=1"],
    "constant": ["router=constant"],
    "separate experts": ["router=smear"],
    "drawn": ["perturbation=noise", "strategy=random"],
    "one token": ["data.seq_len=1"],
    "no change": ["perturbation.scale=0"],
}


@pytest.mark.parametrize("options", BARE.values(), ids=BARE)
def test_what_a_run_does_not_have_is_not_kept(options, tmp_path):
    _, found = diagnosed(tmp_path, *options)
    kept = shapes(found).keys()
    assert not any("domain" in name or "mutual" in name for name in kept), "there is one domain"
    one_view = "router.num_experts=1" in options
    assert one_view != ("routing/train_E" in kept) and one_view != ("loss/forced_E" in kept)
    assert ("edge/logit_LQ" in kept) == (options != ["data.seq_len=1"])
    assert ("tensors" in found.about) == ("smear" not in options[0] and not one_view)


def test_a_mixed_task_is_shown_pair_by_pair(tmp_path):
    joint = ["data=mixed", "data.joint.n=3", "data.held_out_size=64"]
    parts, found = diagnosed(tmp_path, *joint, "router.num_experts=2")
    assert found.last("table/routing_XYE").shape == (3, 3, 2)
    assert found.last("table/attention_XYM").shape == (3, 3, 2), "two heads"
    assert found.about["predicts"] == "last" and found.about["classes"] == 3
    with torch.no_grad():
        parts.model(torch.tensor([[2, 1]]))
    weight = torch.stack([routing.probs[0, -1] for routing in parts.model.routing]).mean(0)
    np.testing.assert_allclose(found.last("table/routing_XYE")[2, 1], weight, rtol=1e-4)


def test_a_run_is_the_same_with_and_without(tmp_path):
    options = [*two_domains(tmp_path), "router.expert_dropout=0.3"]
    watched = fit(tmp_path / "with", *WATCHED, *options)
    plain = fit(tmp_path / "without", *options)
    assert watched[1] == plain[1]
    for one, two in zip(watched[0].model.parameters(), plain[0].model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert not any(block._forward_pre_hooks for block in watched[0].model.routers)


def test_a_resumed_run_has_the_twins_of_its_first_part(tmp_path):
    kept = [
        "callbacks=default",
        "~callbacks.progress",
        "~callbacks.pictures",
        "trainer.val_check_interval=2",
    ]
    options = [*two_domains(tmp_path), *kept, "optim.total_steps=4"]
    fit(tmp_path / "whole", *options, "trainer.max_steps=4")
    fit(tmp_path / "part", *options, "trainer.max_steps=2")
    (tmp_path / "rest").mkdir()
    shutil.copy(tmp_path / "part" / record.FILE, tmp_path / "rest")
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    fit(tmp_path / "rest", *options, "trainer.max_steps=4", resume=last)
    one, joined = (record.read(tmp_path / name / record.FILE) for name in ("whole", "rest"))
    for name in ("routing/domain_null_DE", "routing/domain_DE", "loss/val"):
        for found, expected in zip(joined.series(name), one.series(name), strict=True):
            np.testing.assert_allclose(found, expected, err_msg=name)


class Told(DummyLogger):
    """A logger that keeps what it is told."""

    def __init__(self):
        super().__init__()
        self.tags, self.events = {}, {}

    def set_tags(self, tags):
        self.tags |= tags

    def log_metrics(self, metrics, step=None):
        self.events |= {name: step for name in metrics if name.startswith("alarm/")}


def test_an_alarm_is_a_warning_a_tag_an_event_and_a_line(tmp_path, caplog):
    told = Told()
    parts = build(tiny(*WATCHED, "perturbation.scale=0.001", "guard.identical_nats=0"), tmp_path)
    parts.trainer.loggers = [told]
    parts.trainer.fit(parts.learner, parts.data)
    assert told.events == {"alarm/near_identity": 0}
    assert told.tags["alarm.near_identity"].startswith("step 0: the strongest view changes")
    [alarm] = compute_alarms(record.read(tmp_path / record.FILE))
    assert (alarm.step, alarm.name) == (0, "near_identity") and "focal=none" in alarm.remedy
    assert "alarm near_identity at step 0" in caplog.text and "Remedy: make" in caplog.text
    assert parts.trainer.global_step == 4, "a warning lets it go on"


def test_a_guard_may_stop_a_run_which_is_validated_then(tmp_path):
    parts, found = diagnosed(tmp_path, "perturbation.scale=0.001", "guard.action=stop")
    assert parts.trainer.global_step == 1
    assert float(parts.trainer.callback_metrics["loss/val"]) == pytest.approx(
        float(found.last("loss/val")), rel=1e-5
    )


@pytest.mark.parametrize("at", ["training", "validation"])
def test_a_router_that_returns_nan_is_named(at, tmp_path):
    drawn = [option for option in WATCHED if option != "~callbacks.pictures"]
    parts = build(tiny(*drawn, "trainer.max_steps=3"), tmp_path)
    gate = parts.model.routers[0].gate
    # The twins are copies of the gate: they get the hook, too.
    gate.register_forward_hook(
        lambda module, inputs, output: (
            output * math.nan if (at == "validation") == (not parts.model.training) else output
        )
    )
    with pytest.raises(DivergedError):
        parts.trainer.fit(parts.learner, parts.data)
    alarms = compute_alarms(record.read(tmp_path / record.FILE))
    assert [alarm.name for alarm in alarms] == ["nan"]
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Alarm: nan." in page and "No picture of forced: The run ended" in page


def test_a_record_is_json_a_line(tmp_path):
    diagnosed(tmp_path)
    for line in (tmp_path / record.FILE).read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_default_guard_is_there(tmp_path):
    assert Diagnostics().guard.action == "warn"
