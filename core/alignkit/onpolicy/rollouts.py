"""Rollouts: answers sampled from the policy, with their rewards and scores, kept while they are trained on."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from alignkit.contract import Answered, Batch, Example, Policy, Row, Scores, by_length
from alignkit.models.seeded import answer_seeds
from alignkit.onpolicy.rewards import LoadedReward, score_answers
from alignkit.onpolicy.samplers import Sampler
from alignkit.onpolicy.settings import OnPolicySettings
from alignkit.scoring.in_step import EXCHANGE
from alignkit.scoring.ranks import by_row, joined
from alignkit.system.distributed import each_rank
from alignkit.system.together import gathered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass
class RolloutParts:
    """Everything that sampling and scoring rollouts needs."""

    settings: OnPolicySettings
    sampler: Sampler
    rewards: Sequence[LoadedReward]
    tokenizer: PreTrainedTokenizerBase
    rows: Mapping[str, Callable[[], Sequence[Row]]]
    """Rows of the prompts, as text or messages, by split (``train``, ``eval``)."""
    max_tokens: int
    """Maximum number of tokens scored at once."""
    seed: int


@dataclass
class ModelRollouts:
    """Rollouts handed to ``align_prepare_batch``; see :class:`~alignkit.contract.types.Rollouts`."""

    parts: RolloutParts
    policy: Policy
    number: int
    """Number of the rollout, from 0; the run's seed, it and a row's place among those of all processes decide the answers."""
    training: bool = True
    rank: int = 0
    world_size: int = 1
    draw: Callable[[int, Sequence[int]], Batch] | None = None
    """Returns those at some positions among the next rows of the run, given how many are taken."""
    drawn: int = 0
    spent: dict[str, int] = field(default_factory=lambda: {"sampled": 0, "scored": 0})
    """Tokens sampled, and tokens scored without gradient."""

    def sample(self, batch: Batch, n: int = 1, *, greedy: bool = False) -> Batch:
        """Return the rows with ``n`` sampled answers each and their columns; see :class:`~alignkit.contract.types.Rollouts`."""
        self._meet()
        prompts = [list(example.prompt) for example in batch.examples for _ in range(n)]
        # They are dealt out one by one.
        places = batch.columns.get("place", range(self.rank, len(batch) * self.world_size, self.world_size))
        key = self.parts.seed, self.number, int(self.training)
        seeds = [seed for place in places for seed in answer_seeds((*key, place), n)]
        answers = self.parts.sampler(prompts, None if greedy else seeds)
        self.spent["sampled"] += sum(map(len, prompts)) + sum(len(answer.completion) for answer in answers)
        of_row = [slice(i, i + n) for i in range(0, len(answers), n)]
        groups = [answers[row] for row in of_row]
        examples = [
            replace(example, completions=tuple(answer.completion for answer in group), masks=None)
            for example, group in zip(batch.examples, groups, strict=True)
        ]
        rows = self.parts.rows["train" if self.training else "eval"]() if examples else []
        answered = [
            Answered(
                id=example.id,
                prompt=rows[example.index].prompt,
                answer=self.parts.tokenizer.decode(answer.tokens, skip_special_tokens=True),
                prompt_ids=example.prompt,
                answer_ids=answer.completion,
                ended=answer.ended,
                tokenizer=self.parts.tokenizer,
                fields=example.fields,
                place=rows[example.index].place,
            )
            for example, group in zip(examples, groups, strict=True)
            for answer in group
        ]
        found, penalty = score_answers(self.parts.rewards, answered), self.parts.settings.length_penalty
        parts = found.parts.items()
        ended = [float(answer.ended) for answer in answers]
        total = [r - penalty(len(a.completion), ended=a.ended) for r, a in zip(found.total, answers, strict=True)]
        flat = {"reward": total, "ended": ended} | {f"reward/{name}": values for name, values in parts}
        first = self.parts.rewards and self.training and self.number == self.drawn == 0
        if first and len(total) > 1 and len(set(total)) == 1:
            text = "every answer of the first rollout got the reward %g, so there is nothing to learn from"
            logger.warning(text, total[0])
        columns: dict[str, list[Any]] = {name: [values[row] for row in of_row] for name, values in flat.items()}
        if answers and all(answer.logps is not None for answer in answers):
            columns["sampler"] = [torch.tensor([p for answer in group for p in answer.logps or ()]) for group in groups]
        judged = {f"judged/{name}": [n - sum(map(math.isnan, values[row])) for row in of_row] for name, values in parts}
        counts: Mapping[str, Sequence[int]] = {**batch.row_counts, **judged}
        return replace(batch, examples=examples, columns={**batch.columns, **columns}, row_counts=counts)

    def further(self, wanted: Sequence[bool]) -> Batch:
        """Return a further prompt for each marked row, with the ``place`` that decides its answers: the same on any number of ranks."""
        self._meet()
        counts = [int(count) for (count,) in each_rank(len(wanted))]
        marks = each_rank(*wanted, *[False] * (max(counts) - len(wanted)))
        ranks = [rank for row in zip(*marks, strict=True) for rank, mark in enumerate(row) if mark]
        mine = [i for i, rank in enumerate(ranks) if rank == self.rank]
        first, self.drawn = sum(counts) + self.drawn, self.drawn + len(ranks)
        assert self.draw is not None
        return self.draw(len(ranks), mine).with_column("place", [first + i for i in mine])

    def _meet(self) -> None:
        if meeting := getattr(self.policy, "meeting", None):
            meeting.wait(EXCHANGE)

    def score(self, batch: Batch, *, reference: bool = False, values: bool = False, entropy: bool = False) -> Scores:
        """Return the scores of every answer, in the order of the rows, without gradient and in host memory."""
        examples, rows = batch.examples, dict[int, tuple[Any, ...]]()
        wanted: dict[str, Any] = {"values": values, "entropy": entropy, "reference": reference}
        wanted["temperature"] = getattr(self.parts.settings, "temperature", 1.0)
        for which in by_length(examples, self.parts.max_tokens):
            scored = [examples[i] for i in which]
            rows.update(zip(which, by_row(self.policy.score(scored, grad=False, **wanted), scored), strict=True))
        self.spent["scored"] += sum(example.tokens for example in examples)
        return joined([rows[i] for i in range(len(examples))], torch.device("cpu"))

    def reference_weights(self) -> Any:
        """Return every trained weight and the reference's; see :class:`~alignkit.contract.types.Rollouts`."""
        policy: Any = self.policy
        return policy.start.weights()

    def total(self, *values: float | torch.Tensor) -> list[float]:
        """Return each number summed over all processes."""
        self._meet()
        return [sum(column) for column in zip(*each_rank(*map(float, values)), strict=True)]

    def gather(self, values: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """Return the values of all processes in the order of the rows before they were dealt out, and which are this one's."""
        if meeting := getattr(self.policy, "meeting", None):
            meeting.wait(EXCHANGE)
        found = gathered("the values of a step", values)
        order = sorted((i, rank) for rank, own in enumerate(found) for i in range(len(own)))
        mine = [place for place, (_, rank) in enumerate(order) if rank == self.rank]
        return torch.stack([found[rank][i] for i, rank in order]), mine


def moments(values: torch.Tensor, rollouts: Any) -> tuple[float, float]:
    """Return the mean and variance of ``values [N]`` over the rollouts of all processes."""
    count, total, squares = rollouts.total(len(values), values.double().sum(), values.double().square().sum())
    mean = total / max(count, 1)
    return mean, max(squares / max(count, 1) - mean**2, 0.0)


def whiten(values: torch.Tensor, rollouts: Any, *, shift_mean: bool = True) -> torch.Tensor:
    """Return ``values [N]`` scaled to variance 1 and (with ``shift_mean``) mean 0 over the rollouts of all processes.

    There is one value per token or answer, and none for padding.
    """
    mean, variance = moments(values, rollouts)
    white: torch.Tensor = (values - mean) / (variance + 1e-8) ** 0.5
    return white if shift_mean else white + mean


def buffer_state(batch: Batch) -> dict[str, Any]:
    """Return a prepared batch as plain lists and tensors."""
    return {
        "index": [example.index for example in batch.examples],
        "completions": [[list(completion) for completion in e.completions] for e in batch.examples],
        "masks": [example.masks for example in batch.examples],
        "columns": {name: list(values) for name, values in batch.columns.items()},
        "shared": dict(batch.shared),
        "row_counts": {name: list(values) for name, values in batch.row_counts.items()},
    }


def restored_buffer(state: Mapping[str, Any], rows: Sequence[Example]) -> Batch:
    """Return the batch of a :func:`buffer_state`, with prompts from the run's rows."""
    examples = [
        replace(rows[index], completions=tuple(completions), masks=masks)
        for index, completions, masks in zip(state["index"], state["completions"], state["masks"], strict=True)
    ]
    return Batch(examples, state["columns"], state["shared"], state["row_counts"])
