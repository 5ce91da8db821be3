"""The built-in plugins pass the conformance tests that third parties run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from alignkit.contract import registry
from alignkit.testing import (
    AttentionConformance,
    CommandConformance,
    LossConformance,
    MethodConformance,
    RewardConformance,
    RuleConformance,
    SuiteConformance,
)
from alignkit_distill import divergence
from alignkit_listwise import plackett_luce_loss
from alignkit_onpolicy import clipped_loss, kl_estimate
from alignkit_orpo.losses import odds_ratio_loss
from alignkit_ppo import clipped_policy_loss, clipped_value_loss
from alignkit_reward import reward_loss
from alignkit_unpaired import kto_loss

pytestmark = pytest.mark.slow

Pure = Sequence[tuple[Callable[..., torch.Tensor], Sequence[torch.Tensor]]]


def inputs(count: int, size: int = 5, low: float = -3.0, high: float = -0.1) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [(torch.rand(size, dtype=torch.float64) * (high - low) + low).requires_grad_() for _ in range(count)]


class TestSFT(MethodConformance):
    name = "sft"
    capabilities = frozenset({"no_margin"})


class TestORPO(MethodConformance):
    name = "orpo"
    settings = {"lambda": 1.0}

    def pure_losses(self) -> Pure:
        return [(odds_ratio_loss, inputs(2))]


class TestDPO(MethodConformance):
    name = "dpo"


class TestCPO(MethodConformance):
    name = "cpo"
    settings = {"loss": {"cpo": 0.8, "simpo": {"weight": 0.2, "beta": 1.0}, "nll": 1}}


class TestSimPO(MethodConformance):
    name = "simpo"


class TestKTO(MethodConformance):
    name = "kto"
    settings = {"beta": 0.5}
    steps = 60

    def pure_losses(self) -> Pure:
        labels = torch.tensor([True, False, True, False, True])
        return [(lambda r: kto_loss(r, labels, 0.3, beta=0.5), inputs(1))]


class TestListwiseDPO(MethodConformance):
    name = "listwise-dpo"

    def pure_losses(self) -> Pure:
        ratings = torch.tensor([[3.0, 1.0, 2.0, 2.0, float("nan")]])
        return [(lambda r: plackett_luce_loss(r[None], ratings), inputs(1))]


class TestBCO(LossConformance):
    name = "bco"
    settings = {"beta": 0.1}


class TestPPO(MethodConformance):
    name = "ppo"
    settings = {"epochs": 2, "minibatches": 1}

    def pure_losses(self) -> Pure:
        return [
            (lambda r, a: clipped_policy_loss(r, a, clip=0.2), inputs(2, low=-1.0, high=1.0)),
            (lambda v, o, r: clipped_value_loss(v, o, r, clip=0.2), inputs(3, low=-1.0, high=1.0)),
        ]


class TestGRPO(MethodConformance):
    name = "grpo"
    settings = {"num_generations": 4, "beta": 0.01}

    def pure_losses(self) -> Pure:
        return [
            (lambda r, a: clipped_loss(r, a, low=0.2, high=0.3), inputs(2, low=-1.0, high=1.0)),
            (lambda p, q: kl_estimate(p - q, "k3"), inputs(2)),
        ]


class TestOnlineDPO(MethodConformance):
    name = "online-dpo"
    settings = {"num_generations": 4}


class TestRAFT(MethodConformance):
    name = "raft"
    settings = {"num_generations": 4}


class TestDistill(MethodConformance):
    name = "distill"
    settings = {"teacher": "demo", "lmbda": 0.5}
    capabilities = frozenset({"no_margin"})

    def pure_losses(self) -> Pure:
        student, teacher = (part.view(2, 4).log_softmax(1).detach() for part in inputs(2, size=8))
        return [
            (partial(divergence, teacher=teacher, beta=beta), [student.requires_grad_()]) for beta in (0.0, 0.5, 1.0)
        ]


class TestTRLORPO(MethodConformance):
    name = "trl-orpo"
    capabilities = frozenset({"external"})


class TestPrefs(SuiteConformance):
    name = "prefs"


class TestPerplexity(SuiteConformance):
    name = "perplexity"


class TestGenerate(SuiteConformance):
    name = "generate"
    settings = {"prompts": 6, "max_new_tokens": 8}


class TestLength(RewardConformance):
    name = "length"
    settings = {"target": 5}


class TestRegex(RewardConformance):
    name = "regex"
    settings = {"pattern": "four"}


class TestMatch(RewardConformance):
    name = "match"
    fields = {"answer": "two plus two is four ."}


class TestTextRules(RuleConformance):
    name = "text"


COMMANDS = [entry.name for entry in registry.entries("align.commands") if entry.built_in]


@pytest.mark.parametrize("command", COMMANDS)
class TestCommands(CommandConformance):
    @pytest.fixture(autouse=True)
    def _named(self, command: str) -> None:
        self.name = command  # type: ignore[misc]  # a plugin's own test sets it on the class


def test_reward_model_losses() -> None:
    assert torch.autograd.gradcheck(lambda w, l: reward_loss(w, l, label_smoothing=0.1), tuple(inputs(2)))


# ------------------------------------------------------------------------------------------------ faults are found

FAULTY: dict[str, tuple[str, str]] = {
    "mean": ("logps.mean()", "test_the_cut_into_micro_batches_changes_nothing"),
    "sign": ("-logps.view(0) if False else scores.split(scores.sums())[0].sum()", "test_it_learns"),
    "noise": (
        "(logps * (1 + int.from_bytes(__import__('os').urandom(2), 'big'))).sum()",
        "test_the_same_seed_gives_the_same_loss",
    ),
    "order": ("(logps * torch.arange(len(logps))).sum()", "test_the_order_of_rows_changes_nothing"),
    "detached": (
        "(logps.detach() * (w := torch.ones((), requires_grad=True))).sum()",
        "test_the_loss_is_finite_and_reaches_the_policy",
    ),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_faults_are_found(site: Any, tmp_path: Any, fault: str) -> None:
    expression, test = FAULTY[fault]
    site.install(
        "align-faulty",
        f"""
        import torch
        from pydantic import Field
        from alignkit import LossOutput, LossTerm, Method, Settings, hookimpl

        class FaultySettings(Settings):
            strength: float = Field(1.0, description="of the fault")

        class Faulty(Method[FaultySettings]):
            name, paper, rows, settings_type = "faulty", "none", "preference", FaultySettings

            @hookimpl
            def align_compute_loss(self, policy, batch):
                scores = policy.score(batch.examples)
                logps = scores.logps
                return LossOutput([LossTerm("faulty", {expression}, "rows")])
        """,
        faulty="align_faulty:Faulty",
    )

    class Checked(MethodConformance):
        name = "faulty"

    check = getattr(Checked(), test)
    arguments = (tmp_path, 3) if "micro" in test else (tmp_path,)
    with pytest.raises(AssertionError) as caught:
        check(*arguments)
    assert len(str(caught.value)) > 30, "the failure says what is wrong"


def test_a_metric_under_a_name_of_the_engine_s_is_found(site: Any, tmp_path: Any) -> None:
    site.install(
        "align-faulty",
        """
        from pydantic import Field
        from alignkit import LossOutput, LossTerm, Method, Metric, Settings, hookimpl

        class FaultySettings(Settings):
            strength: float = Field(1.0, description="of the fault")

        class Faulty(Method[FaultySettings]):
            name, paper, rows, settings_type = "faulty", "none", "preference", FaultySettings

            @hookimpl
            def align_compute_loss(self, policy, batch):
                total = policy.score(batch.examples).logps.sum()
                return LossOutput([LossTerm("faulty", total, "rows")], {"tokens": Metric(total.detach(), "rows")})
        """,
        faulty="align_faulty:Faulty",
    )

    class Checked(MethodConformance):
        name = "faulty"

    with pytest.raises(AssertionError, match="the engine logs tokens itself"):
        Checked().test_what_it_logs(tmp_path)


COMMAND = """
import click
from alignkit import Command

COMMAND = Command("align_faulty:faulty", "A command with a fault.")

@click.command()
@click.option("--size", help="Of the fault.")
def faulty(size):
    "Have a fault."
"""
FAULTY_COMMANDS = {
    "heavy": (COMMAND + "import torch", "test_help_exits_with_0"),
    "heavy declaration": ("import torch" + COMMAND, "test_align_help_shows_its_summary"),
    "long summary": (COMMAND.replace("with a fault.", "with\\na fault."), "test_align_help_shows_its_summary"),
    "mute option": (COMMAND.replace(', help="Of the fault."', ""), "test_its_help_is_complete"),
    "mute command": (COMMAND.replace('"Have a fault."', "pass"), "test_its_help_is_complete"),
    "any option": (
        COMMAND.replace("click.command()", "click.command(context_settings={'ignore_unknown_options': True})")
        .replace("(size)", "(size, rest)")
        .replace("def faulty", "@click.argument('rest', nargs=-1)\ndef faulty"),
        "test_an_unknown_option_exits_with_2",
    ),
}


@pytest.mark.parametrize("fault", FAULTY_COMMANDS)
def test_faults_of_commands_are_found(site: Any, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    source, test = FAULTY_COMMANDS[fault]
    site.install("align-faulty", source, group="commands", faulty="align_faulty:COMMAND")
    monkeypatch.setenv("PYTHONPATH", str(site.path))

    class Checked(CommandConformance):
        name = "faulty"

    for check in [name for name in vars(CommandConformance) if name.startswith("test_")]:
        if check == test:
            with pytest.raises(AssertionError, match=r"torch was imported|summary must be one line|help|expected 2"):
                getattr(Checked(), check)()
        elif not fault.startswith("heavy"):
            getattr(Checked(), check)()


class TestBlocks(AttentionConformance):
    name = "blocks"


class TestSDPA(AttentionConformance):
    name = "sdpa"
