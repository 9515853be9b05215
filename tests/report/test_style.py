"""Pictures can be read without colour, and say why they are empty."""

from itertools import combinations, pairwise

import pytest

from prismatic.report.style import explain, png, styled, view_style


def test_no_two_views_look_alike():
    looks = [view_style(view) for view in range(56)]
    assert all(a != b for a, b in combinations(looks, 2))
    # Neighbours must differ where colour is lost.
    lines = [look["linestyle"] for look in looks]
    assert all(a != b for a, b in pairwise(lines))


def test_a_styled_function_returns_its_figure():
    @styled
    def draw(figure, values, label):
        figure.subplots().plot(values, label=label)

    figure = draw([1, 2, 3], label="loss")
    (line,) = figure.axes[0].lines
    assert list(line.get_ydata()) == [1, 2, 3] and line.get_label() == "loss"
    assert png(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("reason", ["no domains", "x" * 300])
def test_an_empty_figure_says_why(reason):
    figure = styled(explain)(reason)
    assert [text.get_text() for text in figure.texts] == [reason]
    assert png(figure).startswith(b"\x89PNG")
