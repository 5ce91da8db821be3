"""Several samples of a prompt in the generate suite: seeds, diversity, and pass@k by hand and by brute force."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
from alignkit.__main__ import main
from alignkit.rundir.evaluations import read_evaluation
from alignkit_eval.statistics import clustered_proportion
from alignkit_eval.suites.samples import add_to_samples, measured_samples, pass_at, sample_seeds, self_bleu

from tests.eval.suites.test_generate import run, target
from tests.helpers.eval import tiny_model


@pytest.mark.parametrize("n", [1, 2, 5])
def test_pass_at_k_is_the_share_of_all_draws_with_a_correct_one(n: int) -> None:
    for correct in range(n + 1):
        for k in range(1, n + 1):
            draws = list(combinations([i < correct for i in range(n)], k))
            assert pass_at(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_self_bleu_by_hand() -> None:
    assert self_bleu(["a b c d", "a b c d", "a b c d"]) == pytest.approx(1)
    assert self_bleu(["a b", "c d"]) < 0.6
    # Two of three words and one of two pairs are shared, of three orders the last has none and is smoothed to 1/2:
    # (2/3 * 1/2 * 1/2) ** (1/3), both ways.
    assert self_bleu(["a b c", "a b d"]) == pytest.approx((2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3))
    assert self_bleu(["", ""]) == 0


def test_metrics_of_samples_are_means_over_prompts_with_intervals_by_prompt() -> None:
    values = {"p": [1.0, 0.0, 1.0], "q": [0.0, 0.0, 0.5], "r": [1.0, None, None]}
    items = [
        {"id": f"{p}#{i}", "cluster": p, "answer": f"{p} {min(i, 1)}", "reward/ok": value}
        for p, judged in values.items()
        for i, value in enumerate(judged)
    ]
    add_to_samples(items, [[1, 2], [1, 3], [1, 3]] * 3, 3, [1, 2], passing=1.0)
    metrics, contrasts = measured_samples(items)
    assert metrics["samples_different"].value == pytest.approx(2 / 3)
    assert metrics["samples_distinct_1"].value == pytest.approx(3 / 6)
    assert metrics["samples_distinct_2"].value == pytest.approx(2 / 3)
    assert metrics["pass@1/ok"].value == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert metrics["pass@2/ok"].value == pytest.approx((1 + 0) / 2), "r has one judged sample"
    assert metrics["pass@1/ok"] == clustered_proportion([x for x in (2 / 3, 0, 1) for _ in range(3)], "pppqqqrrr")
    assert [c.metric for c in contrasts] == [
        "self_bleu",
        "samples_distinct_1",
        "samples_distinct_2",
        "samples_different",
        "pass@1/ok",
    ]


def test_every_sample_has_a_seed_and_more_samples_change_none() -> None:
    model = tiny_model()
    one, three = (run(target(model), temperature=1.0, samples=n, seed=4) for n in (1, 3))
    assert [i["answer"] for i in three.items[::3]] == [i["answer"] for i in one.items]
    assert [item["seed"] for item in three.items] == sample_seeds(4, 5, 3)
    assert len({item["seed"] for item in three.items}) == 15
    assert "self_bleu" not in one.metrics


def test_through_align_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = ["prompts=3", "samples=3", "temperature=1", "max_new_tokens=8", "pass_from=0.5"]
    wanted = [part for one in sets for part in ("--set", f"generate.{one}")]
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "demo", "--suite", "generate", *wanted, "--output", "out"]) == 0
    result = read_evaluation(tmp_path / "out" / "demo" / "eval", "generate")
    assert result.n == 9
    passed = [[item["quality"] >= 0.5 for item in result.items[i : i + 3]] for i in (0, 3, 6)]
    assert result.metrics["pass@1"].value == pytest.approx(sum(map(sum, passed)) / 9)
    assert result.metrics["pass@3"].value == pytest.approx(sum(map(any, passed)) / 3)
    assert "pass@k: a sample passes with a value of 0.5 or more" in result.notes
    assert {"pass@1", "pass@3", "self_bleu"} <= {contrast.metric for contrast in result.contrasts}
