"""What an evaluation leaves out or cuts is said: unusable rows, rows longer than ``data.max_length`` or the model's positions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from alignkit.errors import ConfigError, DataError
from alignkit.models.positions import position_limit
from alignkit_eval.comparison.compare import compare
from alignkit_eval.evaluation.evaluate import Evaluation, evaluate

from tests.helpers.eval import BOS, EOS, POSITIONED, byte_tokenizer, save_positioned
from tests.helpers.runs import align


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of one token per byte, with 64 learned or rotary positions."""
    return save_positioned(tmp_path_factory.mktemp("models"))


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair(number: int, prompt: str = "a prompt", chosen: str = "yes", rejected: str = "no") -> dict[str, str]:
    return {"id": str(number), "prompt": f"{number} {prompt}", "chosen": chosen, "rejected": rejected}


def said(evaluation: Evaluation, suite: str) -> list[str]:
    return [str(omission) for omission in evaluation.results[suite].left_out]


def test_unusable_rows_are_bounded_and_said(tmp_path: Path) -> None:
    data = written(tmp_path / "rows.jsonl", [pair(0), pair(1), pair(2, rejected="yes"), pair(3)])
    command = ("eval", "demo", "--suite", "prefs", "--data", data, "--output", tmp_path / "out")
    refused = align(*command, cwd=tmp_path)
    assert refused.returncode == 2
    assert "1 of 4 rows cannot be used (data.max_dropped allows 2%)" in refused.stderr
    allowed = align(*command, "--set", "data.max_dropped=0.5", cwd=tmp_path)
    assert allowed.returncode == 0
    said = " ".join(allowed.stderr.split())
    assert "prefs: n 3; products float32; 1 of 4 rows left out" in said
    assert "1 of 4 rows left out: chosen and rejected are the same (first: rows.jsonl:3)" in said
    stored = json.loads((tmp_path / "out/demo/eval/prefs.json").read_text())
    assert [(o["what"], o["n"], o["of"]) for o in stored["left_out"]] == [("rows", 1, 4)]


def test_equal_rows_of_a_source_with_unusable_ones_do_not_take_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    both = [
        written(tmp_path / f"{n}.jsonl", [pair(0), pair(1), *more])
        for n, more in (("a", [pair(2, "", "x", "x")]), ("b", []))
    ]
    sets = ["data.max_dropped=1"]
    found = [evaluate(["demo"], ["prefs"], data=data, sets=sets, output=tmp_path)[0] for data in (*both, both[0])]
    assert [len(said(evaluation, "prefs")) for evaluation in found] == [1, 0, 1]
    assert [evaluation.results["prefs"].provenance["cached"] for evaluation in found] == [False, False, True]


def test_columns_that_no_suite_uses_are_named_also_those_of_one_row(tmp_path: Path) -> None:
    data = written(tmp_path / "rows.jsonl", [pair(0), pair(1), {**pair(2), "mood": "good"}])
    for suites, named in (["prefs", "perplexity"], "mood"), (["generate"], "chosen, mood, rejected"):
        heard: list[str] = []
        evaluate(["demo"], suites, data=data, output=tmp_path, say=heard.append)
        assert f"demo: {data}: columns that are part of neither prompts nor answers: {named}" in heard


@pytest.mark.parametrize("kind", POSITIONED)
def test_every_suite_stays_within_the_positions_and_says_what_it_cut(models: Path, kind: str, tmp_path: Path) -> None:
    data = written(tmp_path / "rows.jsonl", [pair(0), pair(1, prompt="long " * 20), pair(2, chosen="many " * 20)])
    model = str(models / kind)
    suites = ["prefs", "perplexity", "generate", "kl"]
    sets = ["eval.settings.generate.max_new_tokens=16", f"eval.settings.kl.against={model}"]
    (found,) = evaluate([model], suites, data=data, sets=sets, output=tmp_path)
    assert said(found, "prefs") == [
        "2 of 3 prompts truncated on the left to fit the model's 64 positions",
        "1 of 6 completions truncated on the right to fit the model's 64 positions",
    ]
    assert said(found, "kl")[0] == said(found, "prefs")[0]
    assert said(found, "generate") == [
        "1 of 3 prompts truncated on the left to fit the model's 64 positions",
        "1 of 3 prompts cut on the left to fit the model's 64 positions with 16 new tokens",
    ]
    assert said(found, "perplexity") == []
    assert found.results["perplexity"].notes == [
        "texts longer than 64 tokens are scored in windows, each token once: 2 of 3"
    ]
    assert [item["tokens"] for item in found.results["perplexity"].items] == [4, 4, 101]


def test_a_long_text_is_scored_whole(models: Path, tmp_path: Path) -> None:
    text = "".join(chr(97 + i * i % 26) for i in range(900))
    data = written(tmp_path / "text.jsonl", [{"text": text}])
    model = hf.AutoModelForCausalLM.from_pretrained(models / "rotary").eval()
    tokens = [BOS, *byte_tokenizer()(text)["input_ids"], EOS]
    expected, at = 0.0, 1
    with torch.no_grad():
        while at < len(tokens):  # windows of 48 tokens whose ends are 24 apart
            end = min(len(tokens), max(48, at + 24))
            begin = max(0, end - 48)
            logps = model(torch.tensor([tokens[begin:end]])).logits[0, :-1].log_softmax(-1)
            expected -= sum(float(logps[i - begin - 1, tokens[i]]) for i in range(at, end))
            at = end
    (found,) = evaluate(
        [str(models / "rotary")], ["perplexity"], data=data, sets=["data.max_length=48"], output=tmp_path
    )
    (item,) = found.results["perplexity"].items
    assert item["tokens"] == 901, "every byte and the end token"
    assert item["nll"] == pytest.approx(expected, rel=1e-5)
    assert found.results["perplexity"].metrics["perplexity"].value == pytest.approx(math.exp(expected / 901), rel=1e-5)


def test_more_new_tokens_than_positions_are_refused(models: Path, tmp_path: Path) -> None:
    data = written(tmp_path / "rows.jsonl", [pair(0)])
    with pytest.raises(ConfigError, match=r"generate.max_new_tokens is 64, and learned has 64 positions"):
        evaluate([str(models / "learned")], ["generate"], data=data, output=tmp_path)


def test_a_comparison_says_what_was_cut_where_it_differs(models: Path, tmp_path: Path) -> None:
    data = written(tmp_path / "rows.jsonl", [pair(0), pair(1, prompt="long " * 20)])
    found = [evaluate([str(models / kind)], ["prefs"], data=data, output=tmp_path)[0] for kind in POSITIONED]
    cut = "suite prefs: 1 of 2 prompts truncated on the left to fit the model's 64 positions"
    assert cut in compare([evaluation.directory for evaluation in found]).notes
    (demo,) = evaluate(["demo"], ["prefs"], data=data, output=tmp_path)
    notes = compare([found[0].directory, demo.directory]).notes
    assert "suite prefs: demo: nothing was left out or cut" in notes


def test_a_broken_limit_of_dropped_rows_names_the_setting(tmp_path: Path) -> None:
    data = written(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": c} for c in ("x", "", "y")])
    with pytest.raises(DataError, match=r"1 of 3 rows cannot be used \(data.max_dropped allows 2%\)"):
        evaluate(["demo"], ["perplexity"], data=data, output=tmp_path)


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (hf.GPT2Config(n_positions=77), 77),
        (hf.LlamaConfig(max_position_embeddings=99), 99),
        (hf.BloomConfig(), None),
        (hf.MambaConfig(), None),
        (hf.FalconConfig(alibi=True), None),
        (
            hf.Qwen2Config(
                rope_parameters={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
            ),
            131072,
        ),
        (hf.LlamaConfig(max_position_embeddings=4096, rope_parameters={"rope_type": "linear", "factor": 4.0}), 16384),
    ],
)
def test_positions_of_architectures(config: Any, limit: int | None) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = config

    assert position_limit(Model()) == limit
