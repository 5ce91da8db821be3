"""The forest plot of a comparison, numeric axes, and tooltips."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alignkit import Estimate
from alignkit_eval.comparison.result import Arm, Comparison, ContrastResult, Cost
from alignkit_eval.report import tables
from alignkit_eval.report.forest import forest
from alignkit_eval.report.parts import Page
from alignkit_eval.report.plots import _against_setting, axis_positions, comparison_figures
from alignkit_eval.report.render import render


def contrast(metric: str, diff: float, **about: object) -> ContrastResult:
    suite = "prefs" if metric.startswith("accuracy") else "perplexity"
    numbers = {"low": diff - 0.1, "high": diff + 0.1, "p": 0.01, "p_holm": 0.02, "n": 80, "clusters": 40, "seeds": 1}
    fixed = {"detectable": 0.1, "higher_is_better": suite == "prefs", "test": "cluster sign-flip", "baseline": "A"}
    return ContrastResult("B", suite, metric, diff, **(numbers | fixed | about))  # type: ignore[arg-type]


def compared(*contrasts: ContrastResult) -> Comparison:
    metrics = {
        "prefs": {"accuracy_sum": Estimate(0.6, 0.5, 0.7)},
        "perplexity": {"perplexity": Estimate(2.0, 1.9, 2.1)},
    }
    arms = [Arm(n, (Path(n),), (0,), {"method": "orpo", "lambda": v}, Cost(), metrics) for n, v in (("A", 0), ("B", 5))]
    return Comparison("A", tuple(arms), contrasts, "verdict", None)


OBJECTIVE = contrast("accuracy_sum", 0.2, deciding=True, margin=0.03)
GUARD = contrast("perplexity", 0.5, guard=True, margin=0.05, log=True)


def test_the_forest_has_the_objective_and_the_guards_with_their_differences() -> None:
    (section,) = forest(compared(contrast("bits_per_byte", 0.0), GUARD, OBJECTIVE))
    (figure,) = section.figures
    first, second, *rest = figure.alt.partition("intervals. ")[2].split("; ")
    assert (section.title, rest) == ("Paired differences from A", [])
    assert first == "B, accuracy (sum): +0.200 [+0.100, +0.300], better"
    assert second == "B, perplexity: +0.500 [+0.400, +0.600], worse"
    assert figure.source.startswith("data:image/svg+xml;base64,")
    (alone,) = forest(compared(contrast("bits_per_byte", 0.0, low=None, high=None)))
    assert "bits per byte: +0.000" in alone.figures[0].alt
    assert list(forest(compared())) == []


def test_a_page_of_two_questions_with_tooltips_and_numeric_axes() -> None:
    several = replace(OBJECTIVE, seeds=3, models=replace(OBJECTIVE, low=0.15), seeds_needed=4)
    comparison = compared(several, GUARD)
    table = tables.of_models(comparison)
    assert table is not None
    assert table.rows[0][6].text == "4"
    assert tables.of_models(compared(OBJECTIVE)) is None
    assert tables.arms(comparison).rows[0][1].text == "1 seed"
    sections = [*forest(comparison), tables.contrasts(comparison), table, *comparison_figures(comparison)]
    page = render(Page("title", "", "verdict", [], sections))
    assert page.index("Paired differences from A") < page.index("Plots")
    assert 'title="Share of held-out pairs whose chosen completion has the higher log-probability' in page


@pytest.mark.parametrize("value", [5.0, 50.0])
def test_a_swept_number_has_a_numeric_axis(value: float) -> None:
    arms = [replace(arm, settings={"lambda": x}) for arm, x in zip(compared().arms, (0.0, value), strict=True)]
    assert axis_positions([*arms, replace(arms[0], settings={})], "lambda") == (
        [0.0, value, value + 0.15 * value],
        {0.0: "0", value: f"{value:g}", value + 0.15 * value: "none"},
    )


@pytest.mark.parametrize("values", [(None, 64), (None, 64, 128), ("auto", 0.5, 0.9)])
def test_a_setting_that_is_a_number_in_some_arms_only_is_drawn(values: tuple[Any, ...]) -> None:
    """As reference_update_every of dpo: with one number by arm, with several on their axis, the others beside it."""
    (first, *_) = compared().arms
    arms = tuple(replace(first, name=str(value), settings={"every": value}) for value in values)
    assert list(comparison_figures(replace(compared(), arms=arms)))
    if len(values) == 3:
        beyond, numbers = values[2] + 0.15 * (values[2] - values[1]), [float(value) for value in values[1:]]
        assert axis_positions(arms, "every")[0] == [beyond, *numbers]


@pytest.mark.parametrize(
    ("values", "asked", "scale"),
    [
        ((1e-6, 1e-4, 1e-1), [], "log"),
        ((0.1, 1.0, 5.0), [], "linear"),
        ((0.1, 1.0, 5.0), ["lambda"], "log"),
        ((0.0, 1.0, 5.0), ["lambda"], "symlog"),
        ((0.0, 1.0, 1e6), [], "linear"),
    ],
)
def test_a_swept_number_has_a_logarithmic_axis_over_decades_or_where_asked(
    values: tuple[float, ...], asked: list[str], scale: str, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"config": {"run": {"log_axes": asked}}}))
    first = replace(compared().arms[0], runs=(tmp_path,))
    arms = [replace(first, settings={"lambda": value}) for value in values]
    assert _against_setting(arms, "prefs", "accuracy_sum", "accuracy").axes[0].get_xscale() == scale
