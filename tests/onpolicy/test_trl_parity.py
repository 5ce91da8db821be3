"""GRPO and its variants compute TRL's loss and gradient from the same rollout, and TRL's advantages from the same rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit.contract import Batch, LossOutput
from alignkit_grpo import GRPO, GRPOSettings
from alignkit_grpo.advantages import normalised_sum

from tests.helpers.engine import random_prompts, tiny_llama
from tests.helpers.onpolicy import rollouts

PASSES: dict[str, Any] = {"epochs": 2, "max_new_tokens": 8, "reward": "length", "num_generations": 4}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dapo": ({"clip_high": 0.28}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "grpo": ({"variant": "grpo"}, {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False}),
    "dr_grpo": ({"variant": "dr_grpo"}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "gspo": (
        {"variant": "gspo"},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    ),
    "gspo, no clipping": (
        {"variant": "gspo", "clip": 0.9, "clip_high": 9.0},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.9, "epsilon_high": 9.0},
    ),
    "cispo": ({"variant": "cispo", "clip_high": 0.05}, {"loss_type": "cispo", "epsilon_high": 1.05}),
    "masked": (
        {"mask_truncated": True, "reduction": "sequence"},
        {"loss_type": "grpo", "mask_truncated_completions": True},
    ),
    "masked tokens": ({"mask_truncated": True}, {"loss_type": "dapo", "mask_truncated_completions": True}),
    "entropy": ({"entropy_coef": 0.3}, {"loss_type": "dapo", "entropy_coef": 0.3}),
    "tis": (
        {"correction": "tis", "correction_cap": 1.1},
        {
            "loss_type": "dapo",
            "vllm_importance_sampling_mode": "token_truncate",
            "vllm_importance_sampling_clip_max": 1.1,
        },
    ),
    "icepop": (
        {"correction": "icepop", "correction_low": 0.9, "correction_cap": 1.1},
        {
            "loss_type": "dapo",
            "vllm_importance_sampling_mode": "token_mask",
            "vllm_importance_sampling_clip_min": 0.9,
            "vllm_importance_sampling_clip_max": 1.1,
        },
    ),
}


def prepared(settings: GRPOSettings) -> tuple[Any, Batch]:
    """Return a model that has moved since its rollout, and the rollout, as if another sampler had drawn it."""
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[2] += 0.3  # some answers end, some do not
    made = rollouts(model, settings, lambda answers: [a.answer_ids[0] % 7 / 7 for a in answers])
    sample = made.sample

    def sampled(*given: Any, **wanted: Any) -> Batch:
        batch = sample(*given, **wanted)
        noise = torch.Generator().manual_seed(1)
        own = made.score(batch).logps
        return batch.with_tokens(sampler=own + 0.2 * torch.randn(own.shape, generator=noise))

    if settings.correction != "none":
        made.sample = sampled  # type: ignore[method-assign]
    batch = GRPO(settings).align_prepare_batch(Batch(random_prompts(6)), made)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model, batch


def gradient(loss: torch.Tensor, model: Any) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def loss_of(output: LossOutput, batch: Batch) -> torch.Tensor:
    return torch.stack([term.sum * term.weight / max(batch.counts[term.per], 1) for term in output.terms]).sum()


def trainer(model: Any, folder: Path, beta: float = 0.0, **options: Any) -> Any:
    """Return TRL's trainer, which is not trained with; its loss is computed on a rollout that is given."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    words = {f"w{i}": i for i in range(model.config.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), pad_token="w0", eos_token="w2"
    )
    arguments = GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        max_completion_length=8,
        num_generations=4,
        per_device_train_batch_size=24,
        disable_dropout=True,
        bf16=False,
        gradient_checkpointing=False,
        **options,
    )
    made = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0 for _ in completions],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["w3"] * 24}),
        processing_class=tokenizer,
    )
    made.current_gradient_accumulation_steps = 1
    made.beta = beta  # after the beginning: it would load a reference model
    return made


def inputs(batch: Batch, *, masked: bool) -> dict[str, torch.Tensor]:
    """Return a rollout as TRL's loss takes it: prompts padded on the left, answers on the right."""
    answers = [(e.prompt, c) for e in batch.examples for c in e.completions]
    lengths = [len(answer) for _, answer in answers]
    ended = [bool(end) for row in batch.columns["ended"] for end in row]
    width, longest = max(len(prompt) for prompt, _ in answers), max(lengths)
    left = lambda values: torch.stack([torch.tensor([0] * (width - len(v)) + list(v)) for v in values])
    right = lambda values: torch.stack(
        [torch.cat([torch.as_tensor(v), torch.zeros(longest - len(v), dtype=torch.as_tensor(v).dtype)]) for v in values]
    )
    flat = lambda name: right(torch.cat([*batch.columns[name]]).split(lengths))
    mask = right([torch.full((n,), int(end or not masked)) for n, end in zip(lengths, ended, strict=True)])
    found = {
        "prompt_ids": left([prompt for prompt, _ in answers]),
        "prompt_mask": left([[1] * len(prompt) for prompt, _ in answers]),
        "completion_ids": right([torch.tensor(answer) for _, answer in answers]),
        "completion_mask": mask,
        "advantages": flat("advantages")[:, 0],
        "old_per_token_logps": flat("logps"),
        "num_items_in_batch": mask.sum(),
    }
    if "reference" in batch.columns:
        found["ref_per_token_logps"] = flat("reference")
    if "correction" in batch.columns:
        found["sampling_per_token_logps"] = flat("sampler")
    return found


def ratio(arguments: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return TRL's importance sampling ratio of a token (``_generate_and_score_completions``)."""
    difference = (given["old_per_token_logps"] - given["sampling_per_token_logps"]) * given["completion_mask"]
    found, low, high = (
        difference.exp(),
        arguments.vllm_importance_sampling_clip_min,
        arguments.vllm_importance_sampling_clip_max,
    )
    if arguments.vllm_importance_sampling_mode == "token_truncate":
        return found.clamp(min=low, max=high)
    return found.masked_fill((found < low) | (found > high), 0.0)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_trl_s(tmp_path: Path, name: str) -> None:
    ours, theirs = CASES[name]
    settings = GRPOSettings(**{**PASSES, **ours})
    model, batch = prepared(settings)
    from alignkit.scoring.policy import ModelPolicy

    output = GRPO(settings).align_compute_loss(ModelPolicy(model), batch)
    loss = loss_of(output, batch)
    found = gradient(loss, model)
    made = trainer(model, tmp_path, **theirs)
    model.train()
    given = inputs(batch, masked=settings.mask_truncated)
    if settings.correction != "none":
        made.use_vllm, given["importance_sampling_ratio"] = True, ratio(made.args, given)
        assert (
            given["importance_sampling_ratio"].max()
            <= 1.1
            < (given["old_per_token_logps"] - given["sampling_per_token_logps"]).exp().max()
        )
    expected = made._compute_loss(model, given)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-4)
    wanted = gradient(expected, model)
    assert wanted.norm() > 1e-3
    torch.testing.assert_close(found, wanted, atol=1e-5 * float(wanted.norm()), rtol=1e-3)
    clipped = float(output.metrics["clip_fraction"].sum)
    assert (clipped > 0) == (name != "gspo, no clipping")


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_are_trl_s(scale: str) -> None:
    settings = GRPOSettings(**{**PASSES, "scale": scale})
    _, batch = prepared(settings)
    rewards = torch.tensor([*batch.columns["reward"]])
    spread = rewards.std(1, keepdim=True) if scale == "group" else rewards.flatten().std()
    expected = (rewards - rewards.mean(1, keepdim=True)) / (1.0 if scale == "none" else spread + 1e-4)
    found = torch.stack([values[0] for row in batch.columns["advantages"] for values in [row]])
    torch.testing.assert_close(found, expected[:, 0])


def test_gdpo_is_trl_s_normalise_then_sum() -> None:
    draw = torch.Generator().manual_seed(0)
    rewards = torch.rand(2, 5, 4, generator=draw)
    rewards[0, 1, 2] = torch.nan
    weights = torch.tensor([1.0, 0.3])
    grouped = rewards.permute(1, 2, 0)
    apart = grouped - torch.nanmean(grouped, dim=1, keepdim=True)
    deviation = torch.stack([torch.stack([g[~g.isnan()].std() for g in row.T]) for row in grouped])[:, None]
    expected = (apart / (deviation + 1e-4) * weights).nansum(-1)
    torch.testing.assert_close(normalised_sum(rewards, weights), expected)
