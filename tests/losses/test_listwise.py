"""listwise-dpo: the likelihood of whole rankings, from rated and ranked rows."""

from __future__ import annotations

import doctest
import itertools
import json
import math
from pathlib import Path
from typing import Any

import alignkit_listwise.method
import pytest
import torch
from alignkit import Example
from alignkit.errors import DataError
from alignkit_listwise import plackett_luce_loss
from alignkit_listwise.method import ratings

from tests.helpers.data import load_all, write_jsonl
from tests.helpers.engine import build_trainer, configuration, random_pairs, random_rankings
from tests.helpers.runs import align
from tests.helpers.scoring import assert_same_gradients, gradients


def probability(rewards: list[float]) -> float:
    """Return the probability of choosing the answers in this order, one after the other."""
    chances = torch.tensor(rewards, dtype=torch.float64).exp()
    return float(torch.stack([chances[i] / chances[i:].sum() for i in range(len(rewards))]).prod())


@pytest.mark.parametrize("count", [2, 3, 5])
def test_it_is_the_likelihood_of_the_ranking_among_all_permutations(count: int) -> None:
    """Probabilities of all orders sum to 1, and the loss is that of the order of the ratings."""
    rewards = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    orders = list(itertools.permutations(range(count)))
    assert sum(probability([float(rewards[i]) for i in order]) for order in orders) == pytest.approx(1, abs=1e-12)
    for order in orders:
        given = torch.empty(count, dtype=torch.float64)
        given[list(order)] = torch.arange(count, 0, -1, dtype=torch.float64)
        (loss,) = plackett_luce_loss(rewards[None], given[None])
        assert float(torch.exp(-loss)) == pytest.approx(probability([float(rewards[i]) for i in order]), abs=1e-9)


def test_equal_ratings_are_not_compared() -> None:
    """Each answer comes first among itself and those rated lower, in the orders of these answers."""
    rewards = [0.3, -0.5, 1.1, 0.2]
    given = [5, 3, 3, 1]
    expected = 0.0
    for i in range(4):
        among = [j for j in range(4) if j == i or given[j] < given[i]]
        first = [order for order in itertools.permutations(among) if order[0] == i]
        expected -= math.log(sum(probability([rewards[j] for j in order]) for order in first))
    ranked = torch.tensor([rewards, [*rewards[:3], 0.0]], dtype=torch.float64, requires_grad=True)
    ties = torch.tensor([given, [2, 1, 1, float("nan")]], dtype=torch.float64)
    losses = plackett_luce_loss(ranked, ties)
    assert losses[0].item() == pytest.approx(expected, abs=1e-9)
    short = plackett_luce_loss(ranked[1:, :3], ties[1:, :3])
    assert losses[1].item() == pytest.approx(short.item(), abs=1e-12)
    assert torch.autograd.grad(losses.sum(), ranked)[0][1, 3] == 0
    assert torch.autograd.gradcheck(lambda x: plackett_luce_loss(x, ties), ranked)


def trainer(folder: Path, rows: list[Example], method: Any, **train: Any) -> Any:
    """A trainer of all rows a step, whose policy has left the reference."""
    config = configuration(method, **{"per_device_train_batch_size": len(rows), **train})
    made, _ = build_trainer(config, folder, rows)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return made


def step(made: Any) -> tuple[float, dict[str, torch.Tensor]]:
    return made.training_step(made.model, {}).item(), gradients(made.model)


def test_with_two_answers_it_is_dpo(tmp_path: Path) -> None:
    rows = random_pairs(6, longest=8)
    (loss, found), (expected, wanted) = (
        step(trainer(tmp_path, rows, {"name": name, "beta": 0.3, "alpha": 0.5})) for name in ("listwise-dpo", "dpo")
    )
    assert loss == pytest.approx(expected, abs=1e-6)
    assert_same_gradients(found, wanted)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_cut_into_micro_batches_changes_nothing(alpha: float, tmp_path: Path) -> None:
    """Rows of two to five answers, with ties."""
    rows, method = random_rankings(8), {"name": "listwise-dpo", "beta": 0.3, "alpha": alpha}
    assert {len(row.completions) for row in rows} == {2, 3, 4, 5}
    assert any(len(set(ratings(row))) < len(row.completions) for row in rows)
    loss, found = step(trainer(tmp_path, rows, method))
    cut = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    again, other = step(trainer(tmp_path, rows, method, **cut))
    assert again == pytest.approx(loss, abs=1e-6)
    assert_same_gradients(other, found)


RATED = {"prompt": "sky?", "answers": ["red", "blue", "green", "grey"], "ratings": [1, 5, 3, 3]}


def rankings(folder: Path, *rows: dict[str, Any], **data: Any) -> Any:
    return load_all("ranked", source=str(write_jsonl(folder / "rows.jsonl", list(rows))), **data)


def test_rated_answers_are_ranked_best_first(tmp_path: Path) -> None:
    data = rankings(tmp_path, RATED, {"prompt": "sea?", "chosen": "wet", "rejected": ["dry", "hot"]}, {"prompt": "sun?", "chosen": "hot", "rejected": "cold"})  # fmt: skip
    assert [row.answers for row in data.train_rows] == [("blue", "green", "grey", "red"), ("wet", "dry", "hot"), ("hot", "cold")]  # fmt: skip
    assert [ratings(example) for example in data.train] == [[5, 3, 3, 1], [1, 0, 0], range(2, 0, -1)]
    assert [len(example.completions) for example in data.train] == [4, 3, 2]
    assert data.train.lengths().tolist() == [example.tokens for example in data.train]
    assert not data.report.sources[0].unread


def test_rows_of_one_prompt_are_a_ranking(tmp_path: Path) -> None:
    """Of the same place in the source as the pairs made of them, so that the same prompts are held out."""
    answers = [("sky?", "blue", 5), ("sea?", "wet", 3), ("sky?", "red", 1), ("sky?", "grey", 3), ("sea?", "dry", 3)]
    rows = [{"prompt": prompt, "completion": text, "rating": rating} for prompt, text, rating in answers]
    data = rankings(tmp_path, *rows, pairs="all", max_dropped=0.5)
    (row,) = data.train_rows
    assert row.answers == ("blue", "grey", "red")
    dropped = data.report.sources[0].dropped
    assert {why: (rows.count, rows.first.rpartition(":")[2]) for why, rows in dropped.items()} == {
        "no two answers to the prompt have different ratings": (1, "2")
    }
    pairs = load_all(source=str(tmp_path / "rows.jsonl"), pairs="all", max_dropped=0.5).train_rows
    assert [pair.answers for pair in pairs] == [("blue", "red"), ("blue", "grey"), ("grey", "red")]
    assert {pair.position for pair in pairs} == {row.position}


def test_ranks_are_ratings_of_which_the_lowest_is_the_best(tmp_path: Path) -> None:
    """In lists, under another name, and in rows of their own; beside ratings, which come first, they are another column."""
    ranked = {"prompt": "sky?", "answers": ["red", "blue", "green", "grey"], "ranks": [4, 1, 2, "2"]}
    other = {**ranked, "prompt": "sea?", "ratings": [9, 1, 2, 3]}
    data = rankings(tmp_path, ranked, other)
    assert [row.answers for row in data.train_rows] == [
        ("blue", "green", "grey", "red"),
        ("red", "grey", "green", "blue"),
    ]
    assert [ratings(example) for example in data.train] == [[-1, -2, -2, -4], [9, 3, 2, 1]]
    renamed = [{"prompt": "sky?", "answers": ["red", "blue"], "place": [2, 1]}]
    (row,) = rankings(tmp_path, *renamed, columns={"ranks": "place"}).train_rows
    assert row.answers == ("blue", "red")
    answers = [("sky?", "blue", {"rank": 1}), ("sky?", "red", {"rank": 3}), ("sky?", "grey", {"rank": 2})]
    rated = [("sky?", "pink", {"rating": 0}), ("sky?", "teal", {"rating": 1})]  # not compared with the ranked ones
    rows = [{"prompt": prompt, "completion": text, **by} for prompt, text, by in answers + rated]
    assert [row.answers for row in rankings(tmp_path, *rows, pairs="all").train_rows] == [
        ("blue", "grey", "red"),
        ("teal", "pink"),
    ]
    (pair,) = load_all(source=str(write_jsonl(tmp_path / "rows.jsonl", [ranked]))).train_rows
    assert pair.answers == ("blue", "red")


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ([1, 2], r"rows\.jsonl:1: \"answers\" and \"ranks\" are 4 and 2 long, expected two lists of equal length"),
        ([1, 2, 3, "last"], r"rows\.jsonl:1: the rank is 'last', expected a number"),
    ],
)
def test_ranks_that_are_none_are_named(ranks: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        rankings(tmp_path, {"prompt": "sky?", "answers": ["red", "blue", "green", "grey"], "ranks": ranks})


def test_conversations_are_ranked(tmp_path: Path) -> None:
    turn = lambda role, text: {"role": role, "content": text}
    prompt = [turn("user", "sky?")]
    answers = [[*prompt, turn("assistant", text)] for text in ("red", "blue", "grey")]
    data = rankings(tmp_path, {"prompt": prompt, "answers": answers, "ratings": [1, 3, 2]})
    (row,) = data.train_rows
    assert [answer[0]["content"] for answer in row.answers] == ["blue", "grey", "red"]
    assert row.prompt == (*prompt,)


def test_what_cannot_be_ranked_is_named(tmp_path: Path) -> None:
    many = {"prompt": "n?", "answers": [f"a{i}" for i in range(33)], "ratings": list(range(33))}
    rows = [RATED, {**RATED, "ratings": [2, 2, 2, 2]}, many, {**RATED, "answers": ["red"] * 4}]
    dropped = rankings(tmp_path, *rows, max_dropped=0.9).report.sources[0].dropped
    assert {why: rows.first.rpartition(":")[2] for why, rows in dropped.items()} == {
        "no two answers to the prompt have different ratings": "2",
        "more than 32 answers": "3",
        "chosen and rejected are the same": "4",
    }


def test_a_run_trains_on_rankings(tmp_path: Path) -> None:
    rows = [{"prompt": f"what is {i} ?", "answers": [f" {i} .", " no .", " yes ."], "ratings": [9, 1, i % 2]} for i in range(24)]  # fmt: skip
    write_jsonl(tmp_path / "rows.jsonl", rows)
    sets = "train.max_steps=2 eval.suites=prefs eval.samples=0 run.plots=false data.eval_split=0.2"
    words = [word for text in sets.split() for word in ("--set", text)]
    options = ["--method", "listwise-dpo", "--data", "rows.jsonl", "--model", "demo", "--name", "l"]
    done = align("run", *options, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "24 ranked rows read, 24 kept" in done.stdout + done.stderr
    first = json.loads((tmp_path / "runs/l/metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == first["loss/plackett_luce"] > 0.6
    assert {"rewards/best_first", "rewards/margins", "logps/chosen"} <= first.keys()
    assert json.loads((tmp_path / "runs/l/run.json").read_text())["evaluation"]["after"]["prefs"]


def test_a_cleaned_copy_has_the_same_rankings(tmp_path: Path) -> None:
    """Under the columns' names in the source; a dropped ranking is kept beside it in the same form."""
    rows = [{"q": f"what is {i} ?", "a": [f" {i} .", " no .", " yes ."], "s": [9, i, 4]} for i in range(3)]
    write_jsonl(tmp_path / "rows.jsonl", [*rows, rows[0]])
    columns = "{prompt: q, answers: a, ratings: s}"
    (tmp_path / "run.yaml").write_text(
        f"method: listwise-dpo\nmodel: demo\ndata: {{source: rows.jsonl, columns: {columns}}}\n"
    )
    done = align("data", "check", "run.yaml", "--fix", "clean.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    read = lambda name: [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
    assert read("clean.jsonl")[1] == {"q": "what is 1 ?", "a": [" 1 .", " yes .", " no ."], "s": [9, 4, 1]}
    assert [row["row"] for row in read("clean.jsonl.dropped.jsonl")] == read("clean.jsonl")[:1]
    kept = ["--set", "data.source=clean.jsonl"]
    assert "3 ranked rows read, 3 kept" in align("run", "run.yaml", "--dry-run", *kept, cwd=tmp_path).stderr


def test_doctests() -> None:
    result = doctest.testmod(alignkit_listwise.method)
    assert result.attempted > 0
    assert result.failed == 0
