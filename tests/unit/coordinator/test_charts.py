"""Charts by value: ticks, numbers, positions of points, text alternatives."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from coordinator.report.render.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    WIDTH,
    Axis,
    Line,
    Part,
    bars,
    heat,
    labels,
    number,
    plot,
    stacks,
    ticks,
)

X = np.array([0.0, 1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("low", "high", "every", "expected"),
    [
        (0, 10, None, [0, 2, 4, 6, 8, 10]),
        (0.13, 0.42, None, [0.15, 0.2, 0.25, 0.3, 0.35, 0.4]),
        (-3, 3, None, [-3, -2, -1, 0, 1, 2, 3]),
        (0, 167, 24, [0, 24, 48, 72, 96, 120, 144]),
        (1, 4, 1, [1, 2, 3, 4]),
        (1, 24, 1, [4, 8, 12, 16, 20, 24]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, every: float | None, expected: list[float]) -> None:
    assert ticks(low, high, 7 if every else 6, every) == pytest.approx(expected)


def test_ticks_of_counts_are_integers() -> None:
    assert ticks(0, 3, 7, least=1) == [0, 1, 2, 3]
    assert ticks(1, 160, 7, least=1) == [50, 100, 150]


@pytest.mark.parametrize("low, high", [(0, 1e-9), (-1e6, 1e6), (5, 5), (3.99, 4.01)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert len(found) <= 7
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234.6, "1,235"), (0.5, "0.5"), (0.125, "0.125"), (350.2, "350"), (1e-5, "1e-05"), (float("nan"), "–")],
)
def test_numbers_are_formatted_for_labels(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([175.9, 176.0, 176.1], ["175.9", "176.0", "176.1"]),
        ([0, 500, 1000], ["0", "500", "1,000"]),
        ([-0.25, 0, 0.25], ["-0.25", "0.00", "0.25"]),
        ([0, 200_000, 400_000], ["0", "200k", "400k"]),
        ([500_000, 1_000_000], ["0.5M", "1.0M"]),
        ([], []),
    ],
)
def test_tick_labels_are_distinct(values: list[float], expected: list[str]) -> None:
    assert labels(values) == expected


def test_curve_passes_its_values_and_breaks_at_nan() -> None:
    text = plot("t", Axis("x"), Axis("y", zero=True), [Line("a", X, np.array([0.0, 1.0, np.nan, 2.0]))])
    chart = ET.fromstring(text)
    path = next(element for element in chart.iter("path")).attrib["d"]
    runs = [[tuple(map(float, point.split(","))) for point in run.split()] for run in path.split("M")[1:]]
    assert [len(run) for run in runs] == [2, 1]
    assert runs[0][0] == (LEFT, HEIGHT - BOTTOM)
    assert runs[1][0][0] == WIDTH - RIGHT
    assert runs[0][1][1] > runs[1][0][1]  # 2 is above 1


def test_single_value_is_centred() -> None:
    chart = ET.fromstring(plot("t", Axis("x"), Axis("y"), [Line("a", np.array([4.0]), np.array([1.0]))]))
    dot = next(chart.iter("circle")).attrib
    assert float(dot["cx"]) == (LEFT + WIDTH - RIGHT) / 2


def test_chart_has_its_title_as_text_alternative() -> None:
    for text in (
        plot('a "b" <c>', Axis("x"), Axis("y")),
        bars('a "b" <c>', "u", [("one", 1.0, "1", "0")]),
        heat('a "b" <c>', ["one"], [[5] * 12], ["2024"]),
        stacks('a "b" <c>', ["one"], Axis("y"), [Part("p", np.array([1.0]))]),
    ):
        chart = ET.fromstring(text)
        assert chart.attrib["role"] == "img"
        assert chart.attrib["aria-label"] == 'a "b" <c>'


def test_equal_months_are_drawn_as_one_cell() -> None:
    text = heat("t", ["demand"], [[5] * 11 + [0]], ["2024"])
    widths = [float(width) for width in re.findall(r'class="h\d" x="[\d.]+" y="6" width="([\d.]+)"', text)]
    assert len(widths) == 2
    assert widths[0] == pytest.approx(11 * widths[1], abs=1)


def test_stacked_parts_are_adjacent() -> None:
    parts = [Part("a", np.array([0.6])), Part("b", np.array([0.4]), "1")]
    chart = ET.fromstring(stacks("t", ["one"], Axis("y", zero=True), parts, top=1.0))
    low, high = [{name: float(rect.attrib[name]) for name in ("y", "height")} for rect in chart.iter("rect")]
    assert high["y"] + high["height"] == pytest.approx(low["y"], abs=0.15)
    assert low["height"] / high["height"] == pytest.approx(1.5, abs=0.02)


def test_bars_are_proportional() -> None:
    chart = ET.fromstring(bars("t", "MB", [("one", 10.0, "10", "0"), ("two", 5.0, "5", "0")]))
    wide = [float(rect.attrib["width"]) for rect in chart.iter("rect")]
    assert wide[0] == pytest.approx(2 * wide[1], abs=0.2)
