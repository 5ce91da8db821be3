"""Edge cases of every suite: a model that returns NaN, no items, one item, one cluster, only ties."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit.config import ModelConfig
from alignkit.errors import DataError, ModelError, NoRowsError
from alignkit.models.load import build_model
from alignkit_eval.comparison.compare import compare
from alignkit_eval.evaluation.evaluate import evaluate
from alignkit_eval.report import comparison_report

from tests.helpers.runs import align

SUITES = ["prefs", "perplexity", "generate", "lm-eval"]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model with NaN in its head: argmax over its log-likelihoods is always the first choice."""
    path = tmp_path_factory.mktemp("models") / "nan"
    loaded = build_model(ModelConfig(name="demo"))
    with torch.no_grad():
        loaded.model.lm_head.weight.fill_(math.nan)
    loaded.model.save_pretrained(path)
    loaded.tokenizer.save_pretrained(path)
    return path


def source(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair(name: str, **about: Any) -> dict[str, Any]:
    return {"id": name, "prompt": f"what pet does {name} have ?", "chosen": "a cat .", "rejected": "a dog .", **about}


@pytest.mark.parametrize("suite", [*SUITES, "kl"])
def test_a_model_of_nan_fails_loudly(broken: Path, suite: str, tmp_path: Path) -> None:
    rows = source(tmp_path / "rows.jsonl", [pair("Mia"), pair("Leo")])
    sets = ["eval.settings.lm-eval.tasks=demo_facts", "eval.settings.kl.against=demo"]
    with pytest.raises(ModelError, match="LlamaForCausalLM cannot be scored: its logits are NaN"):
        evaluate([broken], [suite], data=rows, sets=sets, output=tmp_path)


@pytest.mark.parametrize("suite", ["prefs", "perplexity", "generate"])
def test_one_item_and_one_cluster(suite: str, tmp_path: Path) -> None:
    for name, rows in (("item", [pair("Mia")]), ("cluster", [pair("Mia", cluster="c"), pair("Leo", cluster="c")])):
        data = source(tmp_path / f"{name}.jsonl", rows)
        sets = ["eval.settings.perplexity.text=null"]
        (found,) = evaluate(["demo"], [suite], data=data, sets=sets, output=tmp_path / name)
        result = found.results[suite]
        assert (result.n, result.clusters) == (len(rows), 1)
        assert all(math.isfinite(e.value) and e.low is None for e in result.metrics.values())


def test_one_cluster_and_nothing_but_ties_in_a_comparison(tmp_path: Path) -> None:
    data = source(tmp_path / "rows.jsonl", [pair("Mia", cluster="c"), pair("Leo", cluster="c")])
    directories = []
    for name in ("a", "b"):  # the same model twice: every item a tie between them
        (found,) = evaluate(["demo"], ["prefs"], data=data, output=tmp_path / name)
        directories.append(found.directory.rename(tmp_path / f"model-{name}"))
    comparison = compare(directories)
    assert {c.p for c in comparison.contrasts} == {None}
    assert comparison.winner is None
    assert "do not differ significantly" in comparison.verdict
    page = comparison_report(comparison, tmp_path / "page.html").read_text()
    assert ">nan<" not in page.lower()
    two = source(tmp_path / "two.jsonl", [pair("Mia"), pair("Leo")])
    ties = []
    for name in ("c", "d"):
        (found,) = evaluate(["demo"], ["prefs"], data=two, output=tmp_path / name)
        ties.append(found.directory.rename(tmp_path / f"model-{name}"))
    for c in compare(ties).contrasts:
        assert (c.diff, c.p, c.outcome) == (0.0, 1.0, "undecided")
        assert c.low is not None
        assert -1 <= c.low == -(c.high or 0.0) <= 0


def test_an_empty_source_is_one_clear_sentence(tmp_path: Path) -> None:
    empty = source(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match=r"empty\.jsonl"):
        evaluate(["demo"], ["prefs"], data=empty, output=tmp_path)
    done = align("eval", "demo", "--data", empty, "--suite", "prefs", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    texts = source(tmp_path / "texts.jsonl", [{"text": "Mia has a cat ."}])
    with pytest.raises(NoRowsError, match="nothing could be evaluated: suite prefs is skipped"):
        evaluate(["demo"], ["prefs"], data=texts, output=tmp_path)
    (found,) = evaluate(
        ["demo"], ["perplexity"], data=texts, sets=["eval.settings.perplexity.text=null"], output=tmp_path
    )
    assert found.results["perplexity"].n == 1
