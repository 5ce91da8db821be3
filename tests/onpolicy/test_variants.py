"""Variants of grpo: the paper's values by name, which other settings override; importance weights and advantages by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit import settings
from alignkit.errors import ConfigError
from alignkit.onpolicy.settings import OnPolicySettings
from alignkit_grpo import GRPOSettings, group_advantages
from alignkit_grpo.advantages import later_sums
from alignkit_grpo.variants import VARIANTS
from alignkit_onpolicy import cispo_loss, clipped_loss, importance_weights


def resolved(*sets: str, **given: Any) -> dict[str, Any]:
    return dict(settings.resolve(method="grpo", sets=sets, **given).config.method.settings)


@pytest.mark.parametrize("data", [{}, {"model": "m", "data": "d"}], ids=["demo", "own data"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_sets_its_paper_s_values(variant: str, data: dict[str, str]) -> None:
    """They come before the demo's settings, and the configuration that a run writes repeats them."""
    found = resolved(f"variant={variant}", "reward=length", **data)
    aliases = {name: field.alias or name for name, field in GRPOSettings.model_fields.items()}
    assert {name: found[aliases[name]] for name in VARIANTS[variant]} == dict(VARIANTS[variant])
    assert GRPOSettings(**found).model_dump(by_alias=True)["variant"] == variant, "a run is repeated from its run.yaml"
    direct = GRPOSettings(variant=variant, reward="length").model_dump(by_alias=True)  # type: ignore[arg-type]
    assert direct == {**found, "max_new_tokens": 64}


@pytest.mark.parametrize("sets", [["beta=0.5", "clip=0.1"], ["kl_coef=0.5", "clip=0.1"]])
def test_other_settings_override_a_variant(sets: list[str]) -> None:
    found = resolved("variant=gspo", "reward=length", *sets)
    assert (found["beta"], found["clip"], found["clip_high"], found["importance"]) == (0.5, 0.1, 4e-4, "sequence")
    assert GRPOSettings(variant="dapo", num_generations=3, kl_coef=0.1).model_dump()["kl_coef"] == 0.1


def test_another_variant_replaces_that_of_a_run(tmp_path: Path) -> None:
    """The run.yaml of a run has every value of its variant; it is repeated as another one."""
    run = settings.resolve(method="grpo", model="m", data="d", sets=["variant=dapo", "reward=length", "top_k=3"])
    file = tmp_path / "run.yaml"
    file.write_text(settings.dump(run.config), encoding="utf-8")
    assert settings.resolve(file).config.method.settings == run.config.method.settings
    found = dict(settings.resolve(file, sets=["variant=gspo", "beta=0.2"]).config.method.settings)
    assert {
        key: found[key]
        for key in ("clip", "clip_high", "importance", "refill_rounds", "overlong_buffer", "beta", "top_k")
    } == {
        "overlong_buffer": 0.0,
        "clip": 3e-4,
        "clip_high": 4e-4,
        "importance": "sequence",
        "refill_rounds": 0,
        "beta": 0.2,
        "top_k": 3,
    }


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.variant.*dapo"):
        resolved("variant=gspoo", "reward=length")
    with pytest.raises(ConfigError, match=r"method\.variant"):
        resolved("variant=[gspo]", "reward=length")


def test_a_sequence_s_weight_is_gspo_s() -> None:
    """Equations 5 to 7 as printed, with their gradient."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 1, 5])
    sequence = torch.repeat_interleave(lengths)
    old = torch.randn(9, generator=draw)
    advantages = torch.tensor([1.0, -2.0, 0.5])
    ours = (old + 0.3 * torch.randn(9, generator=draw)).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    weights = importance_weights(ours - old, sequence, lengths, level="sequence")
    loss = (clipped_loss(weights, advantages[sequence], low=0.1, high=0.2) / lengths[sequence]).sum() / 3
    parts = zip((theirs - old).split([3, 1, 5]), advantages, strict=True)
    s = [(part.mean().exp(), a) for part, a in parts]
    expected = -torch.stack([torch.minimum(w * a, w.clamp(0.9, 1.2) * a) for w, a in s]).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_cispo_drops_no_token() -> None:
    """Its gradient is that of the log-probabilities, times a bounded weight; the clipped surrogate has none outside."""
    logps = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    log_ratios, advantages = torch.tensor([2.0, 0.1, -5.0]), torch.tensor([1.0, 1.0, -1.0])
    cispo_loss(log_ratios, advantages, logps, low=1.0, high=4.0).sum().backward()
    expected = -torch.tensor([5.0, torch.tensor(0.1).exp().item(), -torch.tensor(-5.0).exp().item()])
    torch.testing.assert_close(logps.grad, expected)


def test_baselines_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.5], [2.0, 2.0, 2.0]])
    greedy = group_advantages(rewards, baseline="greedy", scale="none", greedy=torch.tensor([0.5, 3.0]))
    torch.testing.assert_close(greedy, torch.tensor([[0.5, -0.5, 0.0], [-1.0, -1.0, -1.0]]))
    assert torch.equal(group_advantages(rewards, baseline="none", scale="whiten"), rewards)
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    torch.testing.assert_close(later_sums(values, torch.tensor([3, 1])), torch.tensor([6.0, 5.0, 3.0, 4.0]))
    assert later_sums(torch.empty(0), torch.empty(0, dtype=torch.long)).shape == (0,)


@pytest.mark.parametrize(("length", "expected"), [(10, 0.0), (15, 0.0), (16, 0.4), (18, 1.2), (20, 2.0)])
def test_overlong_answers_lose_dapo_s_penalty(length: int, expected: float) -> None:
    """Equation 13 with L_max = 20 and L_cache = 5, times 2."""
    given = OnPolicySettings(max_new_tokens=20, overlong_buffer=0.25, overlong_penalty=2.0, missing_end_penalty=7.0)
    assert given.length_penalty(length, ended=True) == pytest.approx(expected)
    assert given.length_penalty(length, ended=False) == pytest.approx(expected + 7.0)
