"""Training curves of a run."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from alignkit.rundir.metrics import MetricsLog
from alignkit_eval.report.curves import draw, figures


def test_plots_are_drawn_for_what_was_logged_and_nothing_else(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert draw(tmp_path) == []
    for step in range(1, 6):
        log.append(
            {"step": step, "loss": 1.0 / step, "loss/nll": math.nan if step == 2 else 0.9, "learning_rate": 1e-4}
        )
        log.append({"step": step, "eval_rewards/accuracies": 0.5})
    paths = draw(tmp_path)
    assert [path.name for path in paths] == ["loss.png", "accuracy.png", "learning_rate.png"]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(path.name for path in paths)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_the_plots_show_the_logged_values(tmp_path: Path) -> None:
    from alignkit_eval.report.curves import PLOTS, _curves

    records = [{"step": s, "loss": 2.0 - s, "loss/odds_ratio": 0.1 * s} for s in (1, 2)] + [
        {"step": 2, "eval_loss": 9.0}
    ]
    curves = _curves(PLOTS[0], records)
    assert [(c.label, c.steps, c.values, c.held_out) for c in curves] == [
        ("loss", [1, 2], [1.0, 0.0], False),
        ("loss, held out", [2], [9.0], True),
        ("odds ratio", [1, 2], [0.1, 0.2], False),
    ]
    assert curves[0].colour == curves[1].colour != curves[2].colour


def test_a_long_run_is_drawn_without_touching_pyplot(tmp_path: Path) -> None:
    import sys

    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(200):
        log.append({"step": step, "loss": random.Random(step).random()})
    had = "matplotlib.pyplot" in sys.modules
    assert [path.name for path in draw(tmp_path)] == ["loss.png"]
    assert ("matplotlib.pyplot" in sys.modules) == had


def scales(directory: Path) -> dict[str, str]:
    return {plot.name: figure.axes[0].get_yscale() for plot, figure in figures(directory)}


def test_a_curve_over_many_decades_has_a_logarithmic_axis_and_others_where_asked(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1, 9):
        shares = {"rewards/accuracies": 10.0**-step, "kl": 0.1 * (step - 1)}
        log.append(
            {"step": step, "loss": 1.0 / step, "grad_norm": 10.0 ** (step / 2), "reward": -(10.0**step)} | shares
        )
    free = {"loss": "linear", "grad_norm": "log", "reward": "linear", "accuracy": "linear", "kl": "linear"}
    assert scales(tmp_path) == free, "a share of pairs and negative values never by themselves"
    (tmp_path / "run.json").write_text(json.dumps({"config": {"run": {"log_axes": ["loss", "kl", "reward"]}}}))
    assert scales(tmp_path) == free | {"loss": "log", "kl": "symlog", "reward": "symlog"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in draw(tmp_path))


def test_ticks_are_plain_text_beside_their_power_of_ten(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1, 4):
        sizes = {"loss": 0.5 * step, "learning_rate": 1e-4 * step, "grad_norm": 1e6 * step}
        log.append({"step": step, "kl": 12345678.1 + step / 10, **sizes})
    said = {}
    for plot, figure in figures(tmp_path):
        figure.draw_without_rendering()
        axis = figure.axes[0].yaxis
        said[plot.name] = axis.get_offset_text().get_text()
        assert not any("$" in label.get_text() for label in axis.get_ticklabels()), "a formula, which takes a parser"
    ten = "\u00d710"
    assert said == {"loss": "", "learning_rate": f"{ten}⁻⁴", "grad_norm": f"{ten}⁶", "kl": f"+1.2345678{ten}⁷"}
