"""WPO: the weights of pairs against whole distributions, TRL, and plain forwards of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from alignkit import Answers, Pairs, Scores, settings
from alignkit.contract import registry
from alignkit.errors import AlignError
from alignkit.scoring.distributions import HeadDistributions
from alignkit.training.session import Session
from alignkit_checks.no_effect import refuse_sharding
from alignkit_losses.settings import Term

from tests.helpers.engine import build_trainer, configuration, random_pairs, tiny_llama
from tests.losses.table import nls
from tests.losses.test_formulas import LENGTHS, Known, trl

ROWS = random_pairs(16, longest=8)
ALIGNMENTS = ("sampled", "greedy", "none")


def usual(full: Any, alignment: str) -> Any:
    """The probability that a token's is compared with, from distributions ``[n, V]`` as numpy."""
    return {"sampled": (full**2).sum(-1), "greedy": full.max(-1), "none": np.ones(len(full))}[alignment]


def halves(values: np.ndarray) -> list[list[np.ndarray]]:
    """Values of tokens by row and answer."""
    parts = np.split(values, LENGTHS.reshape(-1).cumsum()[:-1])
    return [parts[i : i + 2] for i in range(0, len(parts), 2)]


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_value_and_gradient_are_those_of_the_closed_form_and_of_trl(alignment: str) -> None:
    lengths = torch.tensor(LENGTHS.reshape(-1))
    count = int(lengths.sum())
    torch.manual_seed(0)
    states, weight = (torch.randn(n, 6, dtype=torch.float64, requires_grad=True) for n in (count, 23))
    ids, reference = torch.randint(23, (count,)), -torch.rand(count, dtype=torch.float64) * 4
    logps = (states @ weight.T).log_softmax(-1).gather(1, ids[:, None])[:, 0]

    full = (states @ weight.T).softmax(-1).detach().numpy()
    own, other = logps.detach().numpy(), reference.numpy()
    sums = [[x.sum() for x in row] for row in halves(own - other)]
    means = [[x.mean() for x in row] for row in halves(own - np.log(usual(full, alignment)))]
    expected = [np.exp(w + l) * nls(0.1 * (a - b)) for (w, l), (a, b) in zip(means, sums, strict=True)]

    found = registry.load(registry.find("align.losses", "wpo"))
    call = Term("wpo", found, 1.0, {"beta": 0.1, "alignment": alignment}).of_tokens()
    assert call is not None
    of_tokens = HeadDistributions(states, lambda x: x @ weight.T, 5).map(call)
    assert not of_tokens.requires_grad
    answers = [torch.stack([part.sum() for part in x.split(lengths.tolist())]) for x in (logps, reference)]
    sides = (Answers(answers[0][k::2], answers[1][k::2], lengths[k::2]) for k in (0, 1))
    tokens = Scores(logps, torch.repeat_interleave(lengths), lengths, logps[:0], ids[:0], len(LENGTHS))
    values = found(Pairs(*sides, tokens, of_tokens=of_tokens), alignment=alignment)
    assert values.tolist() == pytest.approx(expected, rel=1e-12)
    gradient = torch.autograd.grad(values.sum(), states, retain_graph=True)[0]
    weights = values.detach() / -F.logsigmoid(0.1 * torch.tensor([a - b for a, b in sums]))
    margins = answers[0][::2] - answers[1][::2] - answers[0][1::2] + answers[1][1::2]
    without = torch.autograd.grad((weights * -F.logsigmoid(0.1 * margins)).sum(), states)[0]
    torch.testing.assert_close(gradient, without, atol=1e-12, rtol=1e-12)  # none through the weights

    if alignment != "greedy":  # TRL has the paper's other alignment alone
        squares = None if alignment == "none" else halves(np.log(usual(full, alignment)))
        models = {"model": Known(halves(own), squares), "ref_model": Known(halves(other))}
        mean = trl(loss_types=["sigmoid"], use_weighting=True, **models)
        assert values.mean().item() == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"alignment": "greedy"}, {"alignment": "none"}])
def test_a_run_has_the_weights_of_plain_forwards(options: dict[str, Any], tmp_path: Path) -> None:
    """By default the paper's; the reference is read as log-probabilities alone, which are cached."""
    config = configuration({"name": "dpo", "loss": "wpo", **options}, max_steps=2, learning_rate=1e-2)
    made, _ = build_trainer(config, tmp_path, ROWS, model=tiny_llama(), held_out=random_pairs(4, seed=1))
    assert "start" not in made.parts.session.method.needs
    made.train()
    made.model.eval()
    batch = made.steps.prepare(made.steps.rows_of_step(0), 0, 0.0)
    (term,) = made.parts.session.compute_loss(made.parts.policy, batch, 0.0).terms
    expected = 0.0
    for row, reference in zip(batch.examples, batch.columns["reference"], strict=True):
        log_weight, ratios = 0.0, []
        split = np.split(np.asarray(reference, np.float64), [len(row.completions[0])])
        for answer, by_reference in zip(row.completions, split, strict=True):
            with torch.no_grad():
                logits = made.model(input_ids=torch.tensor([[*row.prompt, *answer]])).logits[0]
            full = logits[len(row.prompt) - 1 : -1].double().softmax(-1).numpy()
            own = np.log(full[range(len(answer)), list(answer)])
            log_weight += (own - np.log(usual(full, options.get("alignment", "sampled")))).mean()
            ratios.append((own - by_reference).sum())
        expected += np.exp(log_weight) * nls(0.1 * (ratios[0] - ratios[1]))
    assert float(term.sum.detach()) == pytest.approx(expected, rel=1e-5)


def test_it_can_be_sharded_and_another_alignment_is_refused() -> None:
    config = settings.resolve(method="dpo", model="m", data="d", sets=["loss=wpo", "run.strategy=fsdp"]).config
    refuse_sharding(config, Session.open(config).method)
    with pytest.raises(AlignError, match=r"method\.alignment must be one of sampled, greedy or none"):
        settings.resolve(method="dpo", model="m", data="d", sets=["loss=wpo", "alignment=sample"])
