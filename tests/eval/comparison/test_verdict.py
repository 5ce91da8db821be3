"""The verdict of a comparison."""

from __future__ import annotations

from dataclasses import replace

from alignkit_eval.comparison.result import ContrastResult
from alignkit_eval.comparison.verdict import Judged, verdict_of


def found(arm: str, metric: str, diff: float, p: float) -> ContrastResult:
    about = {"p": p, "p_holm": p, "n": 100, "clusters": 50, "seeds": 3, "higher_is_better": True, "test": "t"}
    return ContrastResult(arm, "prefs", metric, diff, diff - 0.05, diff + 0.05, detectable=0.04, **about)  # type: ignore[arg-type]


def verdict(*contrasts: ContrastResult) -> tuple[str, str | None]:
    return verdict_of("A", ["A", "B"], contrasts, [Judged("A", c) for c in contrasts])


def test_a_winner_needs_sum_and_mean() -> None:
    both = verdict(found("B", "accuracy_sum", 0.1, 0.01), found("B", "accuracy_mean", 0.08, 0.02))
    assert both[1] == "B"
    assert both[0].startswith("B is better than A (accuracy sum +0.100 [+0.050, +0.150], p 0.010; accuracy mean")
    assert verdict(found("B", "accuracy_sum", -0.1, 0.01), found("B", "accuracy_mean", -0.1, 0.01))[1] == "A"
    one = verdict(found("B", "accuracy_sum", 0.1, 0.01), found("B", "accuracy_mean", 0.08, 0.2))
    assert one[1] is None
    assert "by one metric and not by the other" in one[0]
    against = verdict(found("B", "accuracy_sum", 0.1, 0.01), found("B", "accuracy_mean", -0.08, 0.01))
    assert against[1] is None
    assert "cannot be ranked: the metrics disagree" in against[0]
    neither = verdict(found("B", "accuracy_sum", 0.01, 0.6), found("B", "accuracy_mean", 0.01, 0.6))
    assert neither[1] is None
    assert "A do not differ significantly: undecided (" in neither[0]
    assert "minimum detectable difference (80 % power): 0.040" in neither[0]
    none = replace(found("B", "accuracy_mean", 0.01, 0.6), detectable=None)
    assert verdict(found("B", "accuracy_sum", 0.01, 0.6), none)[0].count("accuracy sum 0.040, accuracy mean none") == 1


def test_numbers_are_written_as_in_the_table() -> None:
    large = verdict(found("B", "accuracy_sum", 1157288.9, 0.01), found("B", "accuracy_mean", 24.0567, 0.02))
    assert "accuracy sum +1.16e+06 [+1.16e+06, +1.16e+06], p 0.010; accuracy mean +24.1 [+24.0, +24.1]" in large[0]


def test_the_verdict_says_no_more_than_the_table() -> None:
    """With p corrected over the deciding pairs alone, B would win; corrected over all contrasts, nothing is significant."""
    table = [found("B", "accuracy_sum", 0.1, 0.06), found("B", "accuracy_mean", 0.1, 0.06)]
    pairs = [Judged("A", found("B", metric, 0.1, 0.03)) for metric in ("accuracy_sum", "accuracy_mean")]
    text, winner = verdict_of("A", ["A", "B"], table, pairs)
    assert winner is None
    assert "do not differ significantly" in text


def test_the_best_of_three_beats_both_others() -> None:
    def pair(base: str, arm: str, diff: float, p: float) -> list[Judged]:
        return [Judged(base, found(arm, metric, diff, p)) for metric in ("accuracy_sum", "accuracy_mean")]

    to_baseline = [*pair("A", "B", 0.1, 0.01), *pair("A", "C", 0.2, 0.01)]
    table = [judged.contrast for judged in to_baseline]
    text, winner = verdict_of("A", ["A", "B", "C"], table, [*to_baseline, *pair("B", "C", 0.1, 0.01)])
    assert winner == "C"
    assert text.startswith("C is better than every other arm. B is better than A (")
    text, winner = verdict_of("A", ["A", "B", "C"], table, [*to_baseline, *pair("B", "C", 0.1, 0.2)])
    assert winner is None
    assert text.endswith("No arm is better than every other one.")
