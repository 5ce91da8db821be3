"""Rollouts of GRPO that need no sampling: the answers and their rewards are those of the cell's rows, on every side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from alignkit.contract import Answered, Row
from alignkit.contract.batch import Example


def reward(answer: Sequence[int]) -> float:
    """Return a number that differs between answers: the mean token, on a scale of thousands."""
    return sum(answer) / len(answer) / 1000


def advantages(examples: Sequence[Example]) -> Any:
    """Return the advantages of all answers, ``[rows x answers]``, as the method computes them by default."""
    import torch
    from alignkit_grpo import group_advantages

    rewards = torch.tensor([[reward(answer) for answer in example.completions] for example in examples])
    return group_advantages(rewards, baseline="mean", scale="group").flatten()


def fixed_rollouts(settings: Any, examples: Sequence[Example], max_tokens: int) -> Any:
    """Return rollout parts whose sampler returns the completions of ``examples``."""
    from alignkit.models.generate import GeneratedAnswer
    from alignkit.onpolicy.rewards import LoadedReward
    from alignkit.onpolicy.rollouts import RolloutParts

    from bench.trl import tokenizer

    answers = {tuple(example.prompt): example.completions for example in examples}
    rows = [Row(i, example.id, "", (), example.id) for i, example in enumerate(examples)]

    def sample(prompts: Sequence[Sequence[int]], _seeds: Sequence[int] | None) -> list[GeneratedAnswer]:
        given: defaultdict[tuple[int, ...], int] = defaultdict(int)
        found = []
        for prompt in map(tuple, prompts):
            answer = list(answers[prompt][given[prompt]])
            found.append(GeneratedAnswer(answer[:-1], answer[-1]))
            given[prompt] += 1
        return found

    def judge(answered: Sequence[Answered]) -> list[float]:
        return [reward(answer.answer_ids) for answer in answered]

    return RolloutParts(
        settings=settings,
        sampler=sample,
        rewards=[LoadedReward("mean token", 1.0, judge)],
        tokenizer=tokenizer(),
        rows={"train": lambda: rows},
        max_tokens=max_tokens,
        seed=0,
    )
