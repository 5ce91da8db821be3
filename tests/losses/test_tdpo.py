"""Token-level DPO: losses of every token's distribution by policy and reference, read together in chunks."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from alignkit import Answers, Batch, Pairs, Scores, loss, settings
from alignkit.contract import registry
from alignkit.errors import AlignError, ConfigError, PluginError
from alignkit.scoring.distributions import HeadDistributions
from alignkit.training.checkpoints import last_checkpoint
from alignkit.training.session import Session
from alignkit_checks.no_effect import refuse_sharding
from alignkit_losses.scored import score
from alignkit_losses.settings import Term
from alignkit_losses.tokens import forward_kl

from tests.helpers.engine import StopAt, build_trainer, configuration, random_pairs, tiny_llama, weights
from tests.helpers.onpolicy import lora

LENGTHS = torch.tensor([4, 2, 1, 5])  # chosen and rejected of two pairs
N, H, V = 12, 6, 23
ROWS = random_pairs(16, longest=8)


def authors(logps: Any, reference: Any, kl: Any, beta: float, alpha: float, second: bool) -> torch.Tensor:
    """The loss as tdpo_loss of the paper's code has it, from sums over answers, chosen and rejected in turn."""
    margins = logps - reference
    margin, chosen, rejected = margins[::2] - margins[1::2], kl[::2], kl[1::2]
    z = margin - alpha * (rejected - chosen.detach()) if second else margin - (rejected - chosen)
    return -F.logsigmoid(beta * z)


def summed(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return torch.stack([part.sum() for part in values.split(lengths.tolist())])


@pytest.mark.parametrize("chunk", [1, 5, 512])
@pytest.mark.parametrize(("name", "options"), [("tdpo1", {}), ("tdpo", {}), ("tdpo", {"kl_weight": 1.7})])
def test_loss_and_gradient_are_the_papers_from_whole_logits(name: str, options: dict[str, float], chunk: int) -> None:
    torch.manual_seed(0)
    states, weight, other, other_weight = (
        torch.randn(n, H, dtype=torch.float64, requires_grad=True) for n in (N, V, N, V)
    )
    ids, answer = torch.randint(V, (N,)), torch.repeat_interleave(LENGTHS)
    mine, theirs = ((x @ w.T).log_softmax(-1) for x, w in ((states, weight), (other.detach(), other_weight.detach())))
    logps, reference = (full.gather(1, ids[:, None])[:, 0] for full in (mine, theirs))
    kl = (theirs.exp() * (theirs - mine)).sum(-1)
    sums = [summed(values, LENGTHS) for values in (logps, reference, kl)]
    expected = authors(*sums, beta=0.3, alpha=options.get("kl_weight", 0.5), second=name == "tdpo")

    found = registry.load(registry.find("align.losses", name))
    distributions = HeadDistributions(states, lambda x: x @ weight.T, chunk)
    values = distributions.map(found.of_tokens, HeadDistributions(other, lambda x: x @ other_weight.T, 7))
    sides = (Answers(sums[0][k::2], sums[1][k::2], LENGTHS[k::2]) for k in (0, 1))
    tokens = Scores(logps, answer, LENGTHS, logps[:0], ids[:0], 2)
    given = found(Pairs(*sides, tokens, of_tokens=values), beta=0.3, **options)
    torch.testing.assert_close(given, expected, atol=1e-9, rtol=1e-9)
    for a, b in zip(
        *(torch.autograd.grad(x.sum(), (states, weight), retain_graph=True) for x in (given, expected)), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)
    assert other.grad is None


def trainer(folder: Path, *callbacks: Any, adapter: bool = False, scorer: Any = "auto", **method: Any) -> Any:
    config = configuration(
        {"name": "dpo", "loss": "tdpo", "beta": 0.5, **method},
        max_steps=4, optim="adamw_torch", learning_rate=1e-2,
    )  # fmt: skip
    model = lora(tiny_llama()) if adapter else tiny_llama()
    made, _ = build_trainer(config, folder, ROWS, model=model, held_out=random_pairs(4, seed=1), scorer=scorer)
    for callback in callbacks:
        made.add_callback(callback)
    return made


def by_plain_forwards(model: Any, start: Any, rows: Any) -> torch.Tensor:
    sums = []
    for row in rows:
        for answer in row.completions:
            ids, after = torch.tensor([[*row.prompt, *answer]]), slice(len(row.prompt) - 1, -1)
            mine, theirs = (one(input_ids=ids).logits[0, after].log_softmax(-1) for one in (model, start))
            own, reference = (full.gather(1, torch.tensor(answer)[:, None]).sum() for full in (mine, theirs.detach()))
            sums.append(torch.stack([own, reference, forward_kl(mine, theirs.detach()).sum()]))
    return authors(*torch.stack(sums).unbind(1), beta=0.5, alpha=0.5, second=True).sum()


@pytest.mark.parametrize("adapter", [False, True])
def test_a_trained_policy_is_compared_with_the_start_and_its_head(adapter: bool, tmp_path: Path) -> None:
    """Also where the head has been trained, and however the step is cut; the policy is as it was afterwards."""
    made = trainer(tmp_path, adapter=adapter)
    start = copy.deepcopy(made.model)
    made.train()
    made.model.eval()
    before = weights(made.model)
    batch = made.steps.rows_of_step(0)

    def gradient(*cut: Batch) -> tuple[float, torch.Tensor]:
        made.model.zero_grad()
        total = 0.0
        for part in cut:
            (term,) = made.parts.session.compute_loss(made.parts.policy, part, 0.0).terms
            term.sum.backward()
            total += float(term.sum.detach())
        return total, torch.cat([p.grad.flatten() for p in made.model.parameters() if p.grad is not None])

    value, found = gradient(made.steps.prepare(batch, 0, 0.0))
    assert torch.equal(weights(made.model), before)
    again = gradient(*made.steps.prepare(batch, 0, 0.0).cut(3, 1000))
    made.model.zero_grad()
    expected = by_plain_forwards(made.model, start, batch.examples)
    expected.backward()
    slope = torch.cat([p.grad.flatten() for p in made.model.parameters() if p.grad is not None])
    for one, grad in ((value, found), again):
        assert one == pytest.approx(float(expected.detach()), rel=1e-5)
        torch.testing.assert_close(grad, slope, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", ["packed", "padded", "plain"])
@pytest.mark.parametrize("adapter", [False, True])
def test_equal_models_have_no_divergence_at_all_and_dpos_loss(adapter: bool, backend: Any, tmp_path: Path) -> None:
    losses = {"tdpo": 0.5, "tdpo1": 0.25, "sigmoid": 0.25}
    made = trainer(tmp_path, adapter=adapter, scorer=backend, loss=losses)
    batch = made.steps.prepare(made.steps.rows_of_step(0), 0, 0.0)
    _, of_tokens = score(made.parts.policy, batch, made.parts.session.method.terms)
    assert of_tokens.keys() == {"tdpo", "tdpo1"}
    assert not any(bool(values.any()) for values in of_tokens.values())
    assert made.evaluate()["eval_loss"] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-6)


@pytest.mark.parametrize("more", [{}, {"reference_update_every": 2, "reference_mix": 0.3}], ids=["", "tr_dpo"])
@pytest.mark.parametrize("adapter", [False, True])
def test_a_resumed_run_has_the_weights_of_a_whole_one(adapter: bool, more: dict[str, Any], tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", adapter=adapter, **more)
    whole.train()
    trainer(tmp_path / "cut", StopAt(2), adapter=adapter, **more).train()
    second = trainer(tmp_path / "cut", adapter=adapter, **more)
    second.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "cut")))
    assert torch.equal(weights(second.model), weights(whole.model))


@pytest.mark.parametrize(
    ("name", "sets", "message"),
    [
        ("cpo", ["loss=tdpo"], "loss tdpo needs a reference: use --method dpo"),
        ("dpo", ["loss=tdpo2"], "method.loss: loss tdpo2 is tdpo here"),
        ("dpo", ["loss=tdpo", "kl_weight=-1"], "method.kl_weight must be at least 0, not -1"),
    ],
)  # fmt: skip
def test_what_it_cannot_be_set_with_is_refused(name: str, sets: list[str], message: str) -> None:
    with pytest.raises(AlignError) as refused:
        settings.resolve(method=name, model="m", data="d", sets=sets)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("name", "losses", "strategy", "message"),
    [
        ("dpo", "tdpo", "run.strategy=fsdp", "method dpo cannot be combined with run.strategy fsdp: loss tdpo reads the"),
        ("dpo", "{ipo: 1, tdpo1: 1}", "run.strategy=zero3", "cannot be combined with run.strategy zero3: loss tdpo1"),
        ("dpo", "tdpo", "train.fsdp=full_shard", "cannot be combined with run.strategy fsdp: loss tdpo"),
        ("online-dpo", "tdpo", "run.strategy=fsdp", "method online-dpo cannot be combined with run.strategy fsdp"),
        ("dpo", "tdpo", "run.strategy=zero2", None),
        ("dpo", "ld-dpo", "run.strategy=fsdp", None),
    ],
)  # fmt: skip
def test_a_sharded_model_is_refused_before_it_is_loaded(name: str, losses: str, strategy: str, message: Any) -> None:
    sets = [f"loss={losses}", strategy, *(["reward=length"] if name == "online-dpo" else [])]
    config = settings.resolve(method=name, model="m", data="d", sets=sets).config
    with nullcontext() if message is None else pytest.raises(ConfigError, match=message):
        refuse_sharding(config, Session.open(config).method)


def test_a_function_of_distributions_with_another_shape_is_refused(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    mine = loss("A loss for tests", of_tokens=lambda own, other: own)(lambda pairs: pairs.of_tokens)
    with pytest.raises(PluginError, match=r"loss mine must return one number per token, a tensor of shape \[\d+\]"):
        score(made.parts.policy, Batch(ROWS[:2]), [Term("mine", mine, 1.0, {})])
