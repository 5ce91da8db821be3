"""Rewards: functions, weights, invalid values, and reward models on causal models and encoders."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit import Answered, RewardModel, RunConfig, as_reward
from alignkit.config import ModelConfig
from alignkit.contract.batch import Example
from alignkit.contract.rewards import RewardSpec
from alignkit.demo import model_path
from alignkit.errors import ConfigError, DataError, ModelError, RunFailedError
from alignkit.models.load import build_classifier, build_model
from alignkit.models.paths import is_classifier
from alignkit.onpolicy.rewards import LoadedReward, open_rewards, score_answers
from alignkit.scoring.classifier import ClassifierPolicy
from alignkit.settings import check_config
from alignkit_eval import evaluate
from alignkit_eval.report.planned import plan_without_weights
from alignkit_reward import reward_loss
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.helpers.engine import Words, random_pairs
from tests.helpers.runs import short_run


def answered(text: str = "two plus two is four .", prompt: Any = "what is two plus two ?", **fields: Any) -> Answered:
    ids = list(range(3, 3 + len(text.split())))
    return Answered("row-1", prompt, text, [1, 5], [*ids, 2], True, Words(), fields)  # type: ignore[arg-type]


def opened(*specs: Any) -> list[LoadedReward]:
    return open_rewards([RewardSpec.model_validate(spec) for spec in specs])


def per_answer(prompt: Any, answer: str) -> float:
    return float(len(answer))


def in_trl_s_form(prompts: list[Any], completions: list[Any], solution: list[str], **others: Any) -> list[float]:
    assert len(others["completion_ids"]) == len(prompts)
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(text == wanted) for text, wanted in zip(texts, solution, strict=True)]


def no_number(prompt: Any, answer: str) -> Any:
    return math.nan


def too_few(completions: list[Any]) -> list[float]:
    return [1.0] * (len(completions) - 1)


# ------------------------------------------------------------------------------------------------ functions


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("length", -0.07),
        ({"name": "length", "target": 9, "scale": 2}, -1.0),
        ({"name": "regex", "pattern": r"\bfour\b"}, 1.0),
        ({"name": "regex", "pattern": "four", "whole": True}, 0.0),
        ({"name": "match", "column": "solution", "extract": r"is (\w+)"}, 1.0),
        ({"name": "match", "column": "answer"}, 0.0),
        ("alignkit.demo.world:quality", 1.0),
        ({"name": "function", "function": "tests.onpolicy.test_rewards:per_answer"}, 22.0),
    ],
)
def test_built_in_rewards(spec: Any, expected: float) -> None:
    (reward,) = opened(spec)
    assert reward([answered(solution="it is four", answer="five")]) == [pytest.approx(expected)]


@pytest.mark.parametrize(
    ("said", "right"), [("so 1,024.", True), ("so 1024.0", True), ("so 12", False), ("none", False)]
)
def test_numbers_match_as_numbers(said: str, right: bool) -> None:
    (reward,) = opened({"name": "match", "extract": r"[-\d.,]*\d", "compare": "number"})
    assert reward([answered(said, answer="#### 1024")]) == [float(right)]


def test_trl_s_functions_work_as_they_are() -> None:
    ask_all = as_reward(in_trl_s_form, "f")
    messages = ({"role": "user", "content": "q"},)
    assert list(ask_all([answered("yes", solution="yes"), answered("no", messages, solution="no")])) == [1.0, 1.0]


def test_weights_and_labels() -> None:
    rewards = opened({"name": "length", "weight": 2.0}, "length", {"name": "regex", "pattern": "four", "weight": -1})
    found = score_answers(rewards, [answered()])
    assert list(found.parts) == ["length", "length#2", "regex"]
    assert found.total == [pytest.approx(2 * -0.07 - 0.07 - 1.0)]


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (no_number, r"is not a finite number \(nan\) for 2 answers, row row-1"),
        (too_few, "returned 1 numbers for 2 answers"),
        (lambda prompt, answer: "good", "is not a finite number"),
        (lambda completions: None, "returned NoneType for 2 answers"),
        (lambda completions: "good!", "returned str for 2 answers"),
    ],
)
def test_what_is_no_number_stops_the_run(function: Any, says: str) -> None:
    with pytest.raises(RunFailedError, match=says):
        LoadedReward("f", 1.0, as_reward(function, "f"))([answered(), answered()])


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("lenght", 'did you mean "length"'),
        ("nowhere/model", "there is no reward model at nowhere/model"),
        ("no.such.module:f", "there is no function no.such.module:f"),
        ("alignkit.demo.world:nothing", "there is no function"),
        ("nowhere.py:f", "there is no function nowhere.py:f: No such file"),
        ({"name": "length", "tarhet": 3}, "tarhet"),
        ({"name": "regex", "pattern": "("}, "not a regular expression"),
        ({"name": "regex"}, "pattern"),
    ],
)
def test_what_cannot_be_a_reward(spec: Any, says: str) -> None:
    from alignkit.errors import AlignError

    with pytest.raises(AlignError, match=says):
        opened(spec)


def test_a_missing_column_is_named() -> None:
    (reward,) = opened("match")
    with pytest.raises(DataError, match="row row-1 has no column 'answer'"):
        reward([answered()])


def test_ppo_asks_for_a_reward(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method ppo needs a reward: --set reward=NAME"):
        short_run(tmp_path / "runs", "run", {"name": "ppo", "reward": []})
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


# ------------------------------------------------------------------------------------------------ reward models


def test_losses_by_hand() -> None:
    chosen, rejected = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])
    expected = torch.tensor([math.log(1 + math.exp(-1)), math.log(2)])
    torch.testing.assert_close(reward_loss(chosen, rejected), expected)
    torch.testing.assert_close(
        reward_loss(chosen, rejected, margins=torch.tensor([1.0, 0.0])), torch.full((2,), math.log(2))
    )
    smooth = reward_loss(chosen, rejected, label_smoothing=0.5)
    torch.testing.assert_close(smooth[0], torch.tensor(0.5 * (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1)))))


def encoder(path: Path) -> Path:
    """Save a tiny BERT with its own word-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = "[PAD] [CLS] [SEP] [UNK] a b c d e f good bad ?".split()
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **shape)).save_pretrained(path)  # type: ignore[arg-type]
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("kind", ["causal", "lora", "encoder"])
def test_a_reward_model_is_trained_saved_and_asked(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"{'abcdef'[i % 6]} ?", "chosen": " good", "rejected": " bad", "better": 2} for i in range(60)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps({**row, "prompt": f"{row['prompt']} {i}"}) + "\n" for i, row in enumerate(rows)))
    model: dict[str, Any] = {"name": str(encoder(tmp_path / "bert")) if kind == "encoder" else "demo"}
    if kind == "lora":
        model["lora"] = {"r": 4}
    run = short_run(
        tmp_path,
        "rm",
        {"name": "reward", "center": 0.01, "margin": "better"},
        model=model,
        data={"source": str(data), "max_length": 32},
        train={"max_steps": 40, "learning_rate": 3e-3, "save_strategy": "no"},
        eval={"suites": ["prefs", "perplexity"]},
        run={"plots": False},
    )
    assert set(run.evaluation["after"]) == {"prefs"}, "a reward model has no perplexity"
    prefs = run.evaluation["after"]["prefs"]
    assert prefs["accuracy_sum"]["value"] == 1.0
    assert prefs["accuracy_sum"] == prefs["accuracy_mean"]
    assert prefs["ece"]["value"] < 0.3
    assert is_classifier(str(run.directory / "model"))
    if kind != "lora":
        loaded, info = AutoModelForSequenceClassification.from_pretrained(
            run.directory / "model", output_loading_info=True
        )
        assert not info["missing_keys"]
        assert loaded.config.num_labels == 1
    card = (run.directory / "model" / "README.md").read_text()
    assert "ForSequenceClassification" in card
    # The policy's tokenizer differs from the reward model's: its texts are scored, not its tokens.
    policys = AutoTokenizer.from_pretrained(model_path() if kind == "encoder" else encoder(tmp_path / "other"))
    asked = [replace(answered(said, "a ? 7"), tokenizer=policys) for said in (" good", " bad", "")]
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "fresh"))  # its start model is loaded again, as a classifier
    (again,) = evaluate([run.directory], ["prefs", "perplexity"])
    assert again.results["prefs"].metrics["accuracy_ref"].value == prefs["accuracy_ref"]["value"]
    assert "perplexity" not in again.results
    good, bad, nothing = RewardModel(str(run.directory)).score(asked)
    assert good > bad + 1
    assert math.isfinite(nothing)
    (reward,) = opened(str(run.directory))
    assert reward.label == "rm"
    assert reward(asked[:2]) == [pytest.approx(good), pytest.approx(bad)]


def test_padding_changes_no_reward() -> None:
    loaded = build_classifier(ModelConfig())
    policy, pairs = ClassifierPolicy(loaded.model), random_pairs(5)
    together = policy.score(pairs, grad=False).logps
    alone = torch.cat([policy.score([pair], grad=False).logps for pair in pairs])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert together.shape == (10,)


def test_a_new_head_follows_the_seed() -> None:
    pairs: Sequence[Example] = random_pairs(3)
    scores = [
        ClassifierPolicy(build_classifier(ModelConfig(), seed=s).model).score(pairs, grad=False).logps
        for s in (1, 1, 2)
    ]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def test_a_policy_with_the_same_tokenizer_is_scored_on_its_own_tokens(tmp_path: Path) -> None:
    loaded = build_classifier(ModelConfig())
    loaded.model.save_pretrained(tmp_path / "rm")
    loaded.tokenizer.save_pretrained(tmp_path / "rm")
    tokenizer = build_model(ModelConfig()).tokenizer
    said = Answered("r", "ignored", "ignored too", [1, 9, 8], [7, 6, 4], True, tokenizer)
    expected = ClassifierPolicy(loaded.model).score([Example("r", [1, 9, 8], ([7, 6, 4],))], grad=False).logps
    assert RewardModel(str(tmp_path / "rm")).score([said]) == [pytest.approx(float(expected))]


def test_methods_but_reward_refuse_a_reward_model(tmp_path: Path) -> None:
    loaded = build_classifier(ModelConfig())
    loaded.model.save_pretrained(tmp_path / "rm")
    loaded.tokenizer.save_pretrained(tmp_path / "rm")
    with pytest.raises(ModelError, match="is a reward model, but method sft trains language models"):
        short_run(tmp_path, "run", "sft", model={"name": str(tmp_path / "rm")})
    sections = {"model": {"name": str(tmp_path / "rm")}, "data": {"source": "demo", "limit": 20}}
    planned = plan_without_weights(check_config(RunConfig.model_validate({"method": "reward", **sections})))
    assert planned.loaded.classifier  # it is that method's own model


def test_a_margin_that_is_no_number_is_named(tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match="the margin column 'better' is None"):
        short_run(tmp_path, "rm", {"name": "reward", "margin": "better"}, eval={"suites": []})
