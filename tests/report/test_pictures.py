"""Every picture shows what was recorded, can be read, and says why it is empty."""

import math

import numpy as np
import pytest

from prismatic import report
from prismatic.report.record import Record
from prismatic.report.style import png, view_name, view_style

from . import records

PICTURES = {one.name: one for pictures in report.CHAPTERS.values() for one in pictures}
ROUTED = {"forced", "apart", "weights", "entropy", "dependence", "information", "domains", "passes",
          "routing_table", "lens", "change"}  # fmt: skip

# What a run lacks -> the pictures that it has nothing of, and what these must say.
POOR = {
    "one view": (
        records.without(
            *records.ROUTING, *records.DOMAIN, *records.DEPENDENCE, *records.BETWEEN, views=1,
            lens={},
        ),
        ROUTED, "one view",
    ),
    "depth 1": (records.without(passes=1), {"passes"}, "one pass"),
    "no domains": (
        records.without(*records.DOMAIN, domains=["all"]), {"information", "domains"}, "one domain",
    ),
    "no attention": (
        records.without(*records.ATTENTION, "table/attention_XYM"),
        {"logits", "attention", "attention_table"}, "",
    ),
    "no mixed task": (
        records.without(*records.TABLES), {"routing_table", "attention_table"}, "two tokens",
    ),
    "scale 0": (records.without(change_PE=[[0.0] * 4] * 3), {"change"}, "perturbation.scale is 0"),
    "router that returns NaN": (
        records.changed(lambda _: math.nan), set(PICTURES) - {"lens", "change"}, "NaN",
    ),
    "killed at once": (Record(), set(PICTURES), ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def full():
    return records.full()


@pytest.fixture(scope="module", params=PICTURES)
def drawn(request, full):
    return PICTURES[request.param].draw(full)


def test_a_picture_has_a_title_and_labelled_axes(drawn):
    assert drawn.axes and drawn.get_suptitle()
    for axes in drawn.axes:
        place = axes.get_subplotspec()
        if place is None or place.is_last_row():
            assert axes.get_xlabel() or axes.get_label() == "<colorbar>"
        if place is None or place.is_first_col():
            assert axes.get_ylabel()


def test_a_view_looks_the_same_in_every_picture_and_like_no_other(drawn):
    lines = [line for axes in drawn.axes for line in axes.lines]
    names = {view_name(view): view_style(view) for view in range(records.VIEWS)}
    looks = {}
    for line in lines:
        if line.get_label() in names:
            expected = names[line.get_label()]
            assert line.get_color() == expected["color"]
            assert line.get_linestyle() in (expected["linestyle"], "None")
            looks[line.get_label()] = (line.get_linestyle(), line.get_marker())
    assert len(set(looks.values())) == len(looks), "told apart without colour"


def test_views_of_a_line_plot_differ_in_line_style(full):
    for draw in (report.draw_weights, report.draw_forced, report.draw_passes):
        lines = [line for axes in draw(full).axes for line in axes.lines]
        styles = [line.get_linestyle() for line in lines if line.get_label().startswith("view ")]
        assert len(styles) == len(set(styles)) == records.VIEWS


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("lack", POOR)
def test_an_empty_picture_says_why(lack, name):
    record, empty, reason = POOR[lack]
    figure = PICTURES[name].draw(record)
    text = " ".join(text.get_text() for text in figure.texts)
    assert bool(figure.axes) == (name not in empty), text
    if not figure.axes:
        assert reason in text and len(text) > 20


def test_an_empty_picture_is_a_whole_png():
    assert png(report.draw_domains(Record())).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", PICTURES)
def test_unusual_numbers_are_drawn(name):
    """Zeros where an axis is logarithmic, a single look, names that mean something elsewhere."""
    zeros = records.changed(lambda value: 0.0)
    record = Record(zeros.about | {"domains": ["a$b$", "^{_"]}, zeros.lines[:1])
    PICTURES[name].draw(record).draw_without_rendering()  # warnings are errors


def test_a_gap_in_the_numbers_does_not_hide_the_rest(full):
    lines = [dict(line) for line in full.lines]
    lines[-1]["routing/weight_LE"] = [[None] * records.VIEWS] * records.PASSES
    found = report.compute_passes(Record(full.about, tuple(lines)))
    np.testing.assert_array_equal(found.mean_LE, lines[-2]["routing/weight_LE"])


def plotted(figure, label):
    """The points of the line with a label."""
    [line] = [x for axes in figure.axes for x in axes.lines if x.get_label() == label]
    return line.get_xdata(), line.get_ydata()


def test_weights_are_drawn_as_recorded(full):
    figure = report.draw_weights(full)
    steps, weight_SE = full.series("routing/train_E")
    for view in range(records.VIEWS):
        x, y = plotted(figure, view_name(view))
        np.testing.assert_array_equal(x, steps)
        np.testing.assert_array_equal(y, weight_SE[:, view])


def test_losses_are_drawn_beside_what_is_known(full):
    figure = report.draw_losses(full)
    np.testing.assert_allclose(plotted(figure, "validation"), [records.STEPS, [3.4, 2.9, 2.4]])
    assert set(plotted(figure, "unigram 3.000")[1]) == {3.0}
    assert report.compute_losses(full).known == {"unigram": 3, "bigram": 2.5, "least possible": 1}


def test_a_forced_view_is_drawn_against_the_clean_one(full):
    loss_SE = full.series("loss/forced_E")[1]
    _, excess = report.draw_forced(full).axes
    drawn_ES = [line.get_ydata() for line in excess.lines]
    np.testing.assert_allclose(drawn_ES, (loss_SE - loss_SE[:, :1]).T)


def test_passes_are_a_line_for_each_sequence_and_the_mean(full):
    figure = report.draw_passes(full)
    sample_SLE, mean_LE = full.last("routing/sample_SLE"), full.last("routing/weight_LE")
    for view, axes in enumerate(figure.axes):
        assert {line.get_color() for line in axes.lines[:-1]} == {view_style(view)["color"]}
        *thin, mean, _ = (line.get_ydata() for line in axes.lines)
        np.testing.assert_array_equal(thin, sample_SLE[:, :, view])
        np.testing.assert_array_equal(mean, mean_LE[:, view])


@pytest.mark.parametrize("name", ["dependence", "information"])
def test_what_routing_knows_is_drawn_beside_its_null(name, full):
    figure = PICTURES[name].draw(full)
    measure = {"dependence": "input_dependence", "information": "mutual_information"}[name]
    for label, suffix in (("trained", ""), ("null: never trained", "_null")):
        _, y = plotted(figure, label)
        np.testing.assert_array_equal(y, full.series(f"routing/{measure}{suffix}")[1])


def test_neighbouring_passes_differ_in_more_than_colour(full):
    [axes] = report.draw_entropy(full).axes
    marks = [line.get_marker() for line in axes.lines if line.get_label().startswith("pass ")]
    assert len(set(marks)) == len(marks) == records.PASSES


def test_attention_is_drawn_measure_by_measure(full):
    found = report.compute_attention(full)
    measures = (found.entropy_SL, found.gain_SL, found.outside_SL, found.partition_SL)
    names = ("attention_entropy", "softmax_gain", "out_of_range", "log_partition")
    for axes, value_SL, name in zip(report.draw_attention(full).axes, measures, names, strict=True):
        np.testing.assert_array_equal(value_SL, full.series(f"edge/{name}_L")[1])
        np.testing.assert_array_equal([line.get_ydata() for line in axes.lines], value_SL.T)


def test_domains_and_their_null_share_one_scale(full):
    trained, null, *_ = report.draw_domains(full).axes
    [left], [right] = trained.images, null.images
    np.testing.assert_array_equal(left.get_array(), full.last("routing/domain_DE"))
    np.testing.assert_array_equal(right.get_array(), full.last("routing/domain_null_DE"))
    assert left.get_clim() == right.get_clim()
    assert "0.1000" in trained.get_title(loc="left") and "0.0100" in null.get_title(loc="left")


def test_tables_are_drawn_by_x_upwards_and_y_to_the_right(full):
    for draw, name in (
        (report.draw_routing_table, "table/routing_XYE"),
        (report.draw_attention_table, "table/attention_XYM"),
    ):
        axes = [axes for axes in draw(full).axes if axes.images]
        table_XYK = full.last(name)
        assert len(axes) == table_XYK.shape[2]
        for k, one in enumerate(axes):
            np.testing.assert_array_equal(one.images[0].get_array(), table_XYK[:, :, k])
            assert one.images[0].origin == "lower"
            assert one.images[0].get_clim() == (table_XYK.min(), table_XYK.max())


def test_more_views_than_panels_are_drawn(full):
    lines = [dict(line) for line in full.lines]
    for line in lines:
        line["routing/sample_SLE"] = np.full((5, 3, 12), 1 / 12).tolist()
        line["routing/weight_LE"] = np.full((3, 12), 1 / 12).tolist()
    figure = report.draw_passes(Record(full.about | {"views": 12}, tuple(lines)))
    assert len(figure.axes) == 8 and "the first 8 of 12" in figure.get_suptitle()


def test_the_limits_of_the_dtype_are_drawn(full):
    found = report.compute_logits(full)
    assert found.limit == 88.72 and found.value_LQ.shape == (records.PASSES, 5)
    for axes, sign in zip(report.draw_logits(full).axes, (-1, 1), strict=True):
        heights = [set(line.get_ydata()) for line in axes.lines]
        assert {sign * 20.0} in heights and {sign * 88.72} in heights
        low, high = axes.get_ylim()
        assert low <= sign * 88.72 <= high


def test_gradients_are_by_tier(full):
    figure = report.draw_gradients(full)
    for k, tier in enumerate(full.about["tiers"]):
        y = plotted(figure, f"{tier} tier")[1]
        np.testing.assert_array_equal(y, full.series("edge/grad_tier_K")[1][:, k])


def test_the_lens_is_of_a_matrix_and_of_a_vector_and_shows_selected_weights_only(full):
    lenses = report.compute_lens(full)
    assert [lens.tensor for lens in lenses] == [records.TENSORS[0], records.TENSORS[2]]
    about = records.about()
    about["lens"][records.TENSORS[0]]["selected"][0] = [0, 0, 0.5, 0, 0, 0, 0, -0.5]
    assert "before training" in report.draw_lens(Record(about)).get_suptitle()
    figure = report.draw_lens(Record(about | {"as_of": 30}))
    assert "at step 30" in figure.get_suptitle()
    _, selected, *_ = figure.axes
    first = selected.lines[0]
    assert list(first.get_xdata()) == [2, 7] and list(first.get_ydata()) == [0.5, -0.5]


def test_an_unchanged_tensor_has_no_point(full):
    figure = report.draw_change(full)
    x, y = plotted(figure, "view 1")
    low, high = figure.axes[0].get_xlim()
    assert low < 0.01 and 1 < high, "whole decades"
    expected = [row[1] or math.nan for row in full.about["change_PE"]]
    np.testing.assert_array_equal(x, expected)
    assert list(y) == [0, 1, 2]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [
        records.TENSORS[0], records.TENSORS[1], f"{records.TENSORS[2]} (matrix)",
    ]  # fmt: skip


def test_bins_without_tokens_are_no_points(full):
    found = report.compute_confidence(full)
    assert found.error == 0.1 and found.calibration_K3.shape == (3, 3)
    [points] = report.draw_confidence(full).axes[1].collections
    assert np.ma.count(points.get_offsets()) == 4
