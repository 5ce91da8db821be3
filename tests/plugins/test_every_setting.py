"""Every setting of the built-in methods changes training: a table of all of them, so that a new one needs a row."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from alignkit import settings
from alignkit.config import ModelConfig
from alignkit.contract import Batch, registry
from alignkit.errors import ConfigError
from alignkit.models.load import build_classifier
from alignkit.scoring.classifier import ClassifierPolicy

from tests.helpers.engine import (
    build_trainer,
    configuration,
    random_answers,
    random_pairs,
    random_prompts,
    random_rankings,
    weights,
)

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


class Row(NamedTuple):
    value: Any
    beside: dict[str, Any] = {}
    """Other settings that the setting needs."""


ONCE = {"epochs": 1}
"""The policy has left the reference from the second rollout on."""
SAMPLED = {
    "max_new_tokens": Row(3),
    "temperature": Row(0.3),
    "top_p": Row(0.2),
    "top_k": Row(2),
    "epochs": Row(2),
    "minibatches": Row(2),
    "missing_end_penalty": Row(3.0),
    "overlong_buffer": Row(0.9),
    "overlong_penalty": Row(5.0, {"overlong_buffer": 0.9}),
    "entropy_coef": Row(0.5),
    "clip": Row(1e-4, {"epochs": 3}),
}
"""Settings of every method that samples answers."""
RANKED = {key: row for key, row in SAMPLED.items() if key not in ("clip", "entropy_coef")}
RANKED["overlong_penalty"] = Row(1e-3, {"overlong_buffer": 0.9})
"""Settings of methods that learn from the order of rewards."""

ROWS: dict[str, dict[str, Row]] = {
    "sft": {"nll_scope": Row("full"), "nll_reduction": Row("sequence")},
    "dpo": {
        "beta": Row(0.7),
        "loss": Row("ipo"),
        "label_smoothing": Row(0.3),
        "ratio": Row("mean"),
        "alpha": Row(1.0),
        "reference_update_every": Row(1, {"beta": 5.0}),
        "reference_mix": Row(1.0, {"beta": 5.0, "reference_update_every": 1}),
    },
    "cpo": {"beta": Row(0.7), "loss": Row("nll"), "label_smoothing": Row(0.3), "alpha": Row(0.0)},
    "simpo": {"beta": Row(0.7), "gamma": Row(0.1), "loss": Row("cpo"), "alpha": Row(1.0)},
    "kto": {
        "loss": Row("apo_zero_unpaired", {"beta": 5.0, "desirable_weight": 0.0}),
        "beta": Row(0.7),
        "desirable_weight": Row(0.5),
        "undesirable_weight": Row(0.5),
    },
    "listwise-dpo": {"beta": Row(0.7), "alpha": Row(1.0)},
    "orpo": {
        "lambda": Row(1.0),
        "lambda_schedule": Row("linear"),
        "lambda_start": Row(0.05, {"lambda_schedule": "linear"}),
        "lambda_warmup": Row(0.9, {"lambda_schedule": "warmup"}),
        "weighting": Row("convex"),
        "convention": Row("trl"),
        "nll_scope": Row("full"),
        "nll_reduction": Row("sequence"),
    },
    "ppo": SAMPLED
    | {
        "beta": Row(5.0, ONCE),
        "kl_estimator": Row("k3", {**ONCE, "beta": 5.0}),
        "kl_target": Row(1e-6, {**ONCE, "beta": 5.0}),
        "kl_horizon": Row(10.0, {**ONCE, "kl_target": 1e-6, "beta": 5.0}),
        "value_clip": Row(1e-4, {"epochs": 3, "value_coef": 5.0}),
        "value_coef": Row(5.0),
        "gamma": Row(0.1),
        "lambda": Row(0.0),
        "whiten_rewards": Row(value=True),
        "whiten_advantages": Row(value=False),
        "critic": Row("separate"),
    },
    "raft": RANKED | {"num_generations": Row(2)},
    "online-dpo": RANKED
    | {
        "num_generations": Row(3),
        "refill_rounds": Row(2),
        "loss": Row("hinge"),
        "beta": Row(0.7),
        "alpha": Row(1.0),
        "label_smoothing": Row(0.3),
        "ratio": Row("mean"),
    },
    "distill": {
        key: SAMPLED[key] for key in ("max_new_tokens", "temperature", "top_p", "top_k", "epochs", "minibatches")
    }
    | {
        "lmbda": Row(0.5),
        "beta": Row(1.0),
        "teacher_top_k": Row(3),
        "teacher_dtype": Row("bfloat16"),
    },
    "grpo": SAMPLED
    | {
        "variant": Row("dr_grpo"),
        "num_generations": Row(2),
        "refill_rounds": Row(2, {"num_generations": 2}),
        "per_reward": Row(value=True, beside={"missing_end_penalty": 0.5}),
        "kl_estimator": Row("k2", {"beta": 5.0, "epochs": 3}),
        "importance": Row("sequence", {"epochs": 3}),
        "surrogate": Row("cispo", {"epochs": 3}),
        "mask_truncated": Row(value=True),
        "baseline": Row("leave_one_out"),
        "scale": Row("none"),
        "beta": Row(5.0),
        "kl_in": Row("reward", {"beta": 5.0}),
        "clip_high": Row(0.5, {"epochs": 3, "clip": 1e-4}),
        "reduction": Row("sequence"),
    },
}

ELSEWHERE = {"rewards": "tests/onpolicy", "stop": "tests/onpolicy", "sampler": "vLLM and a GPU"}
ELSEWHERE |= dict.fromkeys(("correction", "correction_cap", "correction_low"), "tests/onpolicy/test_correction.py")
ELSEWHERE |= {"samples_per_batch": "tests/models/test_seeded.py: it changes memory and speed, and no answer"}
ELSEWHERE |= dict.fromkeys(("teacher", "teacher_logps"), "tests/onpolicy/test_distill.py")
"""Settings shown by other tests."""
REFUSED = {"distill": {"missing_end_penalty", "overlong_buffer", "overlong_penalty"}}
"""Settings of all methods that sample which have no effect on one of them."""


ROWS_OF: dict[str, Any] = {
    "kto": random_answers,
    "listwise-dpo": random_rankings,
    "distill": partial(random_pairs, longest=8),
}


@cache
def trained(method: str, given: tuple[tuple[str, Any], ...]) -> torch.Tensor:
    """Return the weights after a few steps."""
    sampled = "max_new_tokens" in ROWS[method]
    base = {"reward": "length", "max_new_tokens": 6} if sampled else {}
    base |= {"teacher": "demo", "lmbda": 1.0} if method == "distill" else {}
    config = configuration({"name": method, **base, **dict(given)}, max_steps=3, per_device_train_batch_size=4)
    kind = ROWS_OF.get(method, random_prompts if sampled else partial(random_pairs, longest=8))
    rows = kind(12)
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        trainer, _ = build_trainer(config, Path(folder), rows)
        trainer.train()
        return weights(trainer.model)


@pytest.mark.parametrize("method", ROWS)
def test_every_setting_has_a_row(method: str) -> None:
    fields = registry.load_method(method)[1].settings_type.model_fields
    assert set(ROWS[method]) | REFUSED.get(method, set()) == {
        field.alias or name for name, field in fields.items() if name not in ELSEWHERE
    }


@pytest.mark.parametrize(("method", "setting"), [(method, key) for method, rows in ROWS.items() for key in rows])
def test_the_setting_changes_training(method: str, setting: str) -> None:
    row = ROWS[method][setting]
    beside = tuple(row.beside.items())
    without, with_it = trained(method, beside), trained(method, (*beside, (setting, row.value)))
    assert with_it.shape != without.shape or not torch.equal(with_it, without)


@pytest.mark.parametrize(
    ("method", "sets", "message"),
    [
        ("orpo", ["lambda_start=0.5"], "lambda_start has no effect with lambda_schedule: constant"),
        ("orpo", ["lambda_warmup=0.5"], "lambda_warmup has no effect without lambda_schedule: warmup"),
        ("ppo", ["kl_horizon=5", "reward=length"], "kl_horizon has no effect without kl_target"),
        ("grpo", ["kl_in=reward", "reward=length"], "kl_in has no effect without beta"),
        ("grpo", ["clip=0.5", "reward=length"], "surrogate have no effect where every rollout is trained on once"),
        ("grpo", ["importance=sequence", "reward=length"], "have no effect where every rollout is trained on once"),
        ("grpo", ["epsilon_high=0.3", "reward=length"], "unknown key method.epsilon_high: here it is called clip_high"),
        ("grpo", ["kl_estimator=k2", "reward=length"], "kl_estimator has no effect without beta"),
        ("grpo", ["kl_estimator=k1", "beta=1", "reward=length"], "k1 has no gradient on average"),
        ("grpo", ["num_generations=1", "reward=length"], "compares the answers to a prompt: set num_generations to 2"),
        (
            "grpo",
            ["variant=remax", "refill_rounds=1", "reward=length"],
            "refill_rounds compares the answers to a prompt",
        ),
        ("ppo", ["correction_cap=2", "reward=length"], "correction_cap has no effect with correction: none"),
        ("grpo", ["correction=tis", "correction_low=0.1", "reward=length"], "correction_low has no effect without"),
        ("ppo", ["overlong_penalty=2", "reward=length"], "overlong_penalty has no effect without overlong_buffer"),
        ("trl-grpo", ["reward_weights=[1]"], "unknown key method.reward_weights: here it is called reward"),
    ],
)
def test_a_setting_that_changes_nothing_is_refused(method: str, sets: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        settings.resolve(method=method, data="d", model="m", sets=sets)
    assert message in str(refused.value)


REWARD = {"margin": "gap", "center": 0.5, "label_smoothing": 0.2}


def test_every_setting_of_the_reward_method_changes_its_loss() -> None:
    method = registry.load_method("reward")[1]
    assert {*REWARD} == {*method.settings_type.model_fields}
    policy = ClassifierPolicy(build_classifier(ModelConfig()).model)
    batch = Batch([replace(example, fields={"gap": 2.0}) for example in random_pairs(4, longest=6)])

    def loss(**given: Any) -> float:
        terms = method(method.settings_type(**given)).align_compute_loss(policy, batch).terms  # type: ignore[attr-defined]
        return sum(float(term.sum) * term.weight for term in terms)

    assert len({loss(), *(loss(**{key: value}) for key, value in REWARD.items())}) == 1 + len(REWARD)
