"""The perplexity suite against hand-computed cases, a plain forward pass, and exact byte counts."""

import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from alignkit import Example, SuiteResult, Target
from alignkit.errors import ConfigError, DataError, RunFailedError
from alignkit_eval.suites.documents import Text, document_rows, read_documents, windows
from alignkit_eval.suites.perplexity import PerplexitySettings, PerplexitySuite, completion_size
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.helpers.eval import (
    BOS,
    EOS,
    ReferencePolicy,
    TablePolicy,
    byte_tokenizer,
    random_pairs,
    target,
    tiny_model,
    token_logps,
)

TEXTS = ["a plain text", "déjà vu: naïve café", "x", "雪が降る"]


def evaluate(where: Target, **settings: object) -> SuiteResult:
    return PerplexitySuite(PerplexitySettings(**settings)).evaluate(where)  # type: ignore[arg-type]


def completion(name: str, text: str, **more: object) -> Example:
    tokens = byte_tokenizer()(text)["input_ids"]
    return Example(name, [BOS, 65], (tokens,), cluster=name, **more)  # type: ignore[arg-type]


def test_metrics_by_hand() -> None:
    # Total NLL 1 + 2 + 3 + 4 = 10 over 3 + 1 tokens, e^2.5 (the mean of the two texts' own values would be (e^2 + e^4) / 2).
    # "abc" and "d" are 4 bytes.
    rows = [completion("p", "abc"), completion("q", "d")]
    result = evaluate(target(TablePolicy({("p", 0): [-1.0, -2.0, -3.0], ("q", 0): [-4.0]}), rows))
    assert result.metrics["perplexity"].value == pytest.approx(math.exp(10 / 4))
    assert result.metrics["bits_per_byte"].value == pytest.approx(10 / math.log(2) / 4)
    assert list(result.items) == [
        {"id": "p", "cluster": "p", "nll": 6.0, "bits": 6.0 / math.log(2), "tokens": 3, "bytes": 3, "words": 1},
        {"id": "q", "cluster": "q", "nll": 4.0, "bits": 4.0 / math.log(2), "tokens": 1, "bytes": 1, "words": 1},
    ]
    assert (result.n, result.clusters, result.suite) == (2, 2, "perplexity")


def test_the_interval_is_the_exponential_of_the_ratios() -> None:
    # r = (3 + 5) / (2 + 2) = 2; residuals 3 - 4 = -1 and 5 - 4 = 1; variance = 2/1 * (1 + 1) / 4^2 = 1/4, se 1/2.
    # With one degree of freedom t(.975) = tan(pi * .475).
    rows = [completion("p", "ab"), completion("q", "cd")]
    result = evaluate(target(TablePolicy({("p", 0): [-1.0, -2.0], ("q", 0): [-2.0, -3.0]}), rows))
    half = math.tan(math.pi * 0.475) / 2
    # 2 - half is negative, and a negative log-likelihood is not.
    assert result.metrics["perplexity"] == pytest.approx((math.exp(2), 1, math.exp(2 + half)))
    ends = [r / math.log(2) for r in (2, 0, 2 + half)]
    assert result.metrics["bits_per_byte"] == pytest.approx(ends)


def test_a_single_document_has_no_interval() -> None:
    result = evaluate(target(TablePolicy({("p", 0): [-1.0]}), [completion("p", "a")]))
    assert result.metrics["perplexity"] == (pytest.approx(math.e), None, None)


def test_bytes_are_those_of_the_scored_text() -> None:
    tokens = [*byte_tokenizer()("né")["input_ids"], EOS]
    rows = [
        Example("end", [BOS], (tokens,)),
        Example("masked", [BOS], (tokens,), masks=([True, False, False, False],)),
        Example("behind a prompt", [BOS, *tokens[:1]], (tokens[1:],)),
    ]
    result = evaluate(target(ReferencePolicy(tiny_model()), rows))
    assert [(item["tokens"], item["bytes"]) for item in result.items] == [(4, 3), (1, 1), (3, 2)]


def test_the_space_before_a_completion_counts() -> None:
    # Tokenizers with a word-boundary mark drop the space before the first word they decode.
    words = Tokenizer(models.WordLevel({"▁one": 0, "▁two": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    assert tokenizer.decode([1]) == "two"
    assert completion_size(Example("x", [0], ([1],)), tokenizer) == (len(b" two"), 1)


def test_only_the_first_completion_of_a_row_is_scored() -> None:
    pairs = random_pairs(4)
    firsts = [example.narrow(0) for example in pairs]
    policy = ReferencePolicy(tiny_model())
    assert evaluate(target(policy, pairs)).items == evaluate(target(policy, firsts)).items


def test_neither_order_nor_batches_change_anything() -> None:
    policy, rows = ReferencePolicy(tiny_model()), [example.narrow(0) for example in random_pairs(15)]
    expected = evaluate(target(policy, rows))
    result = evaluate(target(policy, rows[::-1]), tokens_per_batch=20)
    assert list(result.items) == list(expected.items)[::-1]
    for name, estimate in expected.metrics.items():
        assert result.metrics[name] == pytest.approx(estimate, rel=1e-9)


def test_a_score_that_is_not_finite_fails() -> None:
    rows = [completion("p", "ab"), completion("q", "cd")]
    with pytest.raises(RunFailedError, match=r"'perplexity'.* 1 of 2 rows \(q\)"):
        evaluate(target(TablePolicy({("p", 0): [-1.0, -2.0], ("q", 0): [-2.0, math.nan]}), rows))


def test_a_diverged_model_has_infinite_perplexity_and_finite_bits() -> None:
    result = evaluate(target(TablePolicy({("p", 0): [-1000.0]}), [completion("p", "a")]))
    assert result.metrics["perplexity"].value == math.inf
    assert result.metrics["bits_per_byte"].value == pytest.approx(1000 / math.log(2))


def test_no_rows_is_an_error() -> None:
    with pytest.raises(DataError, match="no held-out completion rows"):
        evaluate(target(TablePolicy({}), []))


# ------------------------------------------------------------------------------------------------- plain documents


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


def test_plain_documents_are_scored_from_their_first_token(texts: Path) -> None:
    model = tiny_model()
    result = evaluate(target(ReferencePolicy(model), []), text=str(texts))
    for text, item in zip(TEXTS, result.items, strict=True):
        tokens = byte_tokenizer()(text)["input_ids"]
        assert item["nll"] == pytest.approx(-token_logps(model, [BOS], tokens).double().sum().item(), rel=1e-9)
        assert item["tokens"] == item["bytes"] == len(text.encode())
    total, tokens = sum(i["nll"] for i in result.items), sum(i["tokens"] for i in result.items)
    assert result.metrics["perplexity"].value == pytest.approx(math.exp(total / tokens))
    # One byte per token: bits per byte is the binary logarithm of the perplexity.
    assert result.metrics["bits_per_byte"].value == pytest.approx(math.log2(result.metrics["perplexity"].value))
    assert result.clusters == 4


def test_windows_score_every_token_once_and_never_exceed_their_length() -> None:
    tokenizer = byte_tokenizer()
    for length, stride in product(range(1, 12), (None, 1, 2, 3, 9)):
        text = "abcdefghijk"[:length]
        [row] = document_rows([Text("d", "d", text)], tokenizer)
        assert row is not None
        parts = windows(row, 4, stride)
        assert [t for w in parts for t in w.completions[0]] == tokenizer(text)["input_ids"]
        assert all(w.prompt and w.tokens <= 4 for w in parts)
        assert parts[0].prompt == [BOS]
        whole = [BOS, *tokenizer(text)["input_ids"]]
        at = 0
        for part in parts:
            at += len(part.completions[0])
            assert [*part.prompt, *part.completions[0]] == whole[max(0, at + 1 - 4) : at + 1], "as much context as fits"


def test_windows_of_a_row_keep_prompt_and_mask() -> None:
    row = Example("r", [*range(10)], ([*range(10, 30)],), masks=([i % 5 == 0 for i in range(20)],))
    parts = windows(row, 8, 3)
    scored = [t for w in parts for t, on in zip(w.completions[0], w.masks[0], strict=True) if on]  # type: ignore[index,arg-type]
    assert scored == [10, 15, 20, 25]
    assert all(w.tokens <= 8 for w in parts)
    assert windows(row, None) == windows(row, 30) == [row]


def test_a_tokenizer_without_special_tokens_leaves_the_first_token_unscored() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    [row] = document_rows([Text("d", "d", "abc")], tokenizer)
    assert row is not None
    assert (len(row.prompt), len(row.completions[0])) == (1, 2)
    assert document_rows([Text("d", "d", "a")], tokenizer) == [None]


def test_documents_of_one_token_that_cannot_be_scored_are_left_out(texts: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    where = replace(target(ReferencePolicy(tiny_model()), []), tokenizer=tokenizer)
    result = evaluate(where, text=str(texts))
    assert [item["id"] for item in result.items] == ["1", "2", "4"]
    assert [str(o) for o in result.left_out] == ["1 of 4 documents left out: no token can be scored (first: 3)"]


def test_reading_jsonl_and_txt(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": "one\u2028two"}\n\n{"text": "three", "id": 7, "cluster": "c"}\n', encoding="utf-8")
    assert read_documents(str(lines)) == [Text("1", "1", "one\u2028two"), Text("7", "c", "three")]
    plain = tmp_path / "a.txt"
    plain.write_bytes(b"first line\r\nsecond\r\n \r\n\r\nanother\n")
    assert read_documents(str(plain)) == [Text("1", "1", "first line\nsecond"), Text("2", "2", "another")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", '{"text": "a"}\n{"text": 3}\n', r't\.jsonl:2: the key "text"'),
        ("t.jsonl", '{"text": "a"}\nnot json\n', r"t\.jsonl:2: invalid JSON"),
        ("t.jsonl", "[1]\n", r"t\.jsonl:1: expected a JSON object"),
        ("t.txt", " \n\n", "has no documents"),
        ("t.csv", "text\na\n", r"must be a \.jsonl or \.txt"),
    ],
)
def test_texts_that_cannot_be_used(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_documents(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.txt"):
        read_documents(str(tmp_path / "nowhere.txt"))
