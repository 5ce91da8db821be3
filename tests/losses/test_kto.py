"""kto: answers with labels, pairs used as such, and what TRL computes from the same log-probabilities."""

from __future__ import annotations

import doctest
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import alignkit_unpaired.kto
import pytest
import torch
from alignkit import Example, Scores
from torch.nn.utils.rnn import pad_sequence

from tests.helpers.engine import build_trainer, configuration, random_answers, tiny_llama
from tests.helpers.runs import align

KINDS = ["kto", "apo_zero_unpaired"]
WEIGHTS = {"desirable_weight": 0.7, "undesirable_weight": 1.3}


def trainer(folder: Path, loss: str, rows: list[Example] | None = None, **train: Any) -> Any:
    """A trainer of ten rows a step, whose policy is less certain than the reference: the estimate of the KL is positive."""
    config = configuration(
        {"name": "kto", "loss": loss, "beta": 0.3, **WEIGHTS}, **{"per_device_train_batch_size": 10, **train}
    )
    start = tiny_llama()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    made, _ = build_trainer(config, folder, rows or random_answers(10), model=start)
    made.model.load_state_dict(tiny_llama().state_dict())
    return made


class Known(torch.nn.Module):
    """A model whose log-probabilities are given, for the answers (tokens 1) and for those of the KL (tokens 2)."""

    def __init__(self, own: torch.Tensor, others: torch.Tensor) -> None:
        super().__init__()
        self.logps = {1: own, 2: others}

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        logps = self.logps[int(input_ids[0, 0])]
        return SimpleNamespace(log_probs=logps, entropy=logps * 0, mean_logits=logps * 0)


def padded(scores: Scores) -> torch.Tensor:
    return pad_sequence(list(scores.logps.split(scores.lengths.tolist())), batch_first=True)


def trl(made: Any, loss: str) -> float:
    """Return the loss of TRL's KTOTrainer from this policy's log-probabilities of the step's rows."""
    from trl.trainer.kto_trainer import KTOTrainer

    rows = made.steps.rows_of_step(0).examples
    others = [replace(row, completions=rows[i - 1].completions) for i, row in enumerate(rows)]
    policy = made.parts.policy
    policy.model = made.model
    own, reference = (policy.score(rows, grad=False, reference=kept) for kept in (False, True))
    of_kl, reference_of_kl = (policy.score(others, grad=False, reference=kept) for kept in (False, True))
    model = Known(padded(own), padded(of_kl))
    same = lambda x: x
    inputs: dict[str, Any] = {
        "label": torch.tensor([row.fields["label"] for row in rows]),
        "ref_logps": reference.sums(),
        "ref_KL_logps": reference_of_kl.sums(),
    }
    for prefix, token in (("", 1), ("KL_", 2)):
        shape = len(rows), model.logps[token].shape[1] + 1
        inputs[f"{prefix}input_ids"] = torch.full(shape, token)
        inputs[f"{prefix}attention_mask"] = inputs[f"{prefix}completion_mask"] = torch.ones(shape)
    own_trainer: Any = SimpleNamespace(
        model=model, calculate_KL=loss == "kto", loss_type=loss, beta=0.3, **WEIGHTS, precompute_ref_logps=True,
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=same), aux_loss_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    own_trainer._compute_kl_logps = lambda *given: KTOTrainer._compute_kl_logps(own_trainer, *given)
    return float(KTOTrainer._compute_loss(own_trainer, model, inputs, return_outputs=False))


@pytest.mark.parametrize("loss", KINDS)
def test_the_loss_of_a_step_is_trls_for_any_cut(loss: str, tmp_path: Path) -> None:
    made = trainer(tmp_path, loss)
    expected = trl(made, loss)
    assert made.training_step(made.model, {}).item() == pytest.approx(expected, abs=1e-5)
    pieces = trainer(tmp_path, loss, per_device_train_batch_size=1, gradient_accumulation_steps=10)
    assert pieces.training_step(pieces.model, {}).item() == pytest.approx(expected, abs=1e-5)


def test_the_kl_is_that_of_every_prompt_with_the_answer_of_another_row(tmp_path: Path) -> None:
    made = trainer(tmp_path, "kto")
    batch = made.steps.batch(0, 0.0)
    rows, policy = batch.examples, made.parts.policy
    others = [replace(row, completions=rows[i - 1].completions) for i, row in enumerate(rows)]
    own, reference = (policy.score(others, grad=False, reference=kept).sums() for kept in (False, True))
    assert batch.shared["kl"] == pytest.approx(max(float((own - reference).mean()), 0), rel=1e-4)
    assert batch.shared["kl"] > 0
    assert batch.counts["good"] + batch.counts["bad"] == 10


def test_pairs_and_labelled_answers_may_be_mixed(tmp_path: Path) -> None:
    """A pair is a good and a bad answer."""
    pairs = [{"prompt": f"what is {i} ?", "chosen": f" {i} .", "rejected": " no ."} for i in range(12)]
    answers = [{"prompt": f"who is {i} ?", "completion": f" {i} .", "label": i % 2 == 0} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*pairs, *answers]))
    sets = "train.max_steps=2 eval.suites=[] eval.samples=0 run.plots=false data.eval_split=0 data.check.enabled=false"
    words = [word for text in sets.split() for word in ("--set", text)]
    done = align(
        "run", "--method", "kto", "--data", "rows.jsonl", "--model", "demo", "--name", "k", *words, cwd=tmp_path
    )
    assert "36 unpaired rows read, 36 kept" in done.stdout + done.stderr
    first = json.loads((tmp_path / "runs/k/metrics.jsonl").read_text().splitlines()[0])
    assert first["loss/kto"] == pytest.approx(0.5)
    assert {"kl", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"} <= first.keys()


def test_doctests() -> None:
    result = doctest.testmod(alignkit_unpaired.kto)
    assert result.attempted > 0
    assert result.failed == 0
