"""Perplexity of long texts: windows with BOS, the procedure of transformers' documentation, and per word and byte as in lm-eval."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from alignkit import SuiteResult
from alignkit.__main__ import main
from alignkit.errors import ConfigError
from alignkit.rundir.evaluations import read_evaluation
from alignkit_eval.suites.documents import Text, document_rows, windows
from alignkit_eval.suites.perplexity import PerplexitySettings, PerplexitySuite
from lm_eval.api.metrics import bits_per_byte, weighted_perplexity
from lm_eval.api.task import ConfigurableTask

from tests.helpers.eval import (
    BOS,
    ReferencePolicy,
    byte_tokenizer,
    save_positioned,
    target,
    tiny_model,
    token_logps,
)

TEXT = "a first sentence of it, and a second one. \n Then some more of it."


def scored(path: Path, *texts: str, **settings: object) -> SuiteResult:
    file = path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    suite = PerplexitySuite(PerplexitySettings(text=str(file), **settings))  # type: ignore[arg-type]
    return suite.evaluate(target(ReferencePolicy(tiny_model()), []))


def test_every_window_begins_with_bos_and_scores_each_token_once() -> None:
    tokenizer = byte_tokenizer()
    for length, stride in product(range(1, 13), (None, 1, 2, 3, 9)):
        text = "abcdefghijkl"[:length]
        [row] = document_rows([Text("d", "d", text)], tokenizer)
        assert row is not None
        parts = windows(row, 4, stride, [BOS])
        assert [t for part in parts for t in part.completions[0]] == tokenizer(text)["input_ids"]
        assert all(part.prompt[0] == BOS and part.tokens <= 4 for part in parts)
        whole, at = tokenizer(text)["input_ids"], 0
        for part in parts:
            at += len(part.completions[0])
            assert [*part.prompt[1:], *part.completions[0]] == whole[max(0, at - 3) : at], "as much context as fits"


def test_the_procedure_of_transformers_documentation(tmp_path: Path) -> None:
    # https://huggingface.co/docs/transformers/perplexity: windows begin `stride` tokens apart and score what is new. With a last
    # window that is full, as here, they are the same windows.
    model, length, stride = tiny_model(), 24, 7
    text = TEXT[: length + 3 * stride]
    tokens = torch.tensor([byte_tokenizer()(text)["input_ids"]])
    total, count, before = 0.0, 0, 0
    for begin in range(0, tokens.shape[1], stride):
        end = min(begin + length, tokens.shape[1])
        labels = tokens[:, begin:end].clone()
        labels[:, : -(end - before)] = -100
        with torch.no_grad():
            loss = model(tokens[:, begin:end], labels=labels).loss
        n = int((labels != -100).sum()) - labels.shape[0] * (begin == 0)
        total, count, before = total + float(loss) * n, count + n, end
        if end == tokens.shape[1]:
            break
    result = scored(tmp_path, text, max_length=length, stride=stride, bos="none")
    assert [item["tokens"] for item in result.items] == [count] == [len(text) - 1]
    assert result.metrics["perplexity"].value == pytest.approx(math.exp(total / count), rel=1e-5)


def test_words_and_bytes_are_those_of_lm_eval(tmp_path: Path) -> None:
    texts = [TEXT, "d\u00e9j\u00e0 vu", "one  two\tthree"]
    result = scored(tmp_path, *texts)
    for key, count, metric in (
        ("word_perplexity", ConfigurableTask.count_words, weighted_perplexity),
        ("byte_perplexity", ConfigurableTask.count_bytes, weighted_perplexity),
        ("bits_per_byte", ConfigurableTask.count_bytes, bits_per_byte),
    ):
        pairs = [(-item["nll"], count(text)) for item, text in zip(result.items, texts, strict=True)]
        assert result.metrics[key].value == pytest.approx(metric(pairs), rel=1e-12), key
    contrasts = {contrast.metric for contrast in result.contrasts}
    assert contrasts == {"perplexity", "bits_per_byte"}, "no further test of the same log-likelihoods"


def test_bos_by_hand(tmp_path: Path) -> None:
    model, tokens = tiny_model(), byte_tokenizer()(TEXT[:11])["input_ids"]
    parts = [
        ([BOS], tokens[:7]),
        ([BOS, *tokens[4:7]], tokens[7:11]),
    ]  # length 8: 7 tokens, then 3 of context and 4 new ones
    expected = -sum(float(token_logps(model, prompt, new).double().sum()) for prompt, new in parts)
    (item,) = scored(tmp_path, TEXT[:11], max_length=8, bos="every").items
    assert item["nll"] == pytest.approx(expected)
    assert item["tokens"] == 11
    (unscored,) = scored(tmp_path, TEXT[:11], bos="none").items
    assert unscored["nll"] == pytest.approx(-float(token_logps(model, tokens[:1], tokens[1:]).double().sum()))


def test_settings_that_cannot_be_followed(tmp_path: Path) -> None:
    said = scored(tmp_path, TEXT, max_length=16, stride=40).notes
    assert "stride 40 is longer than these windows: they advance by 15, with one token of context" in said
    with pytest.raises(ValueError, match="bos: none has no effect without text"):
        PerplexitySettings(bos="none")
    with pytest.raises(ValueError, match="bos: every needs a max_length of 3 or more"):
        PerplexitySettings(text="demo", bos="every", max_length=2)
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    where = replace(target(ReferencePolicy(tiny_model()), []), tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="bos: every: the tokenizer of test has no BOS or EOS token"):
        PerplexitySuite(PerplexitySettings(text="demo", bos="every")).evaluate(where)


def test_documents_longer_than_the_model_through_align_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(save_positioned(tmp_path))
    (tmp_path / "texts.txt").write_text(TEXT.replace("\n", " ") * 3 + "\n")
    sets = ["text=texts.txt", "stride=10", "bos=every"]
    wanted = [part for one in sets for part in ("--set", f"perplexity.{one}")]
    assert main(["eval", "learned", "--suite", "perplexity", *wanted, "--output", "out"]) == 0
    result = read_evaluation(tmp_path / "out" / "learned" / "eval", "perplexity")
    assert result.items[0]["tokens"] == len(TEXT.encode()) * 3, "every token, though the model has 64 positions"
    assert result.settings["bos"] == "every"
    assert {"word_perplexity", "byte_perplexity"} <= result.metrics.keys()
    assert any("scored in windows" in note for note in result.notes)
