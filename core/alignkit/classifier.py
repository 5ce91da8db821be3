"""Reward models: sequence classifiers with one output, on causal language models and on encoders.

Trained by the engine and evaluated by the harness like any policy: what :class:`ClassifierPolicy` returns as the
log-probability of a completion is its reward, one number a completion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from alignkit.config import ModelConfig
from alignkit.data.cache import tokenizer_content
from alignkit.data.render import render
from alignkit.data.rows import Row
from alignkit.data.tokens import Encoder, TokenRules
from alignkit.errors import DataError, RunFailedError
from alignkit.models import LoadedModel, build_classifier
from alignkit.types import Example, Scores

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from alignkit.rewards import Answered
    from alignkit.scoring.policy import ModelPolicy


class ClassifierPolicy:
    """A sequence classifier as a :class:`~alignkit.types.Policy`: a completion has one score, its reward.

    The stock forward decides which position is read (a causal model's last token that is not padding, an encoder's
    first), so that a saved model gives the same rewards wherever it is loaded.
    """

    classifier = True

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def score(
        self,
        examples: Sequence[Example],
        *,
        prompt: bool = False,
        grad: bool = True,
        values: bool = False,
        entropy: bool = False,
        temperature: float = 1.0,
        reference: bool = False,
    ) -> Scores:
        """Return the reward of every completion as its only log-probability, ``[S]``; see the class."""
        import torch

        from alignkit.scoring.backends import evaluating

        if prompt or values or entropy or reference:
            raise NotImplementedError(
                "a reward model has rewards alone: no prompts' scores, values, entropy or reference"
            )
        rows = [[*example.prompt, *completion] for example in examples for completion in example.completions]
        if not rows:
            raise DataError("there is nothing to score: the batch has no rows")
        inputs = self._padded(rows)
        if grad:
            logits = self.model(**inputs).logits
        else:
            data_parallel = isinstance(self.model, torch.nn.parallel.DistributedDataParallel)
            model: Any = self.model.module if data_parallel else self.model
            with evaluating(model):
                logits = model(**inputs).logits
        rewards = logits[:, 0].float()
        count = len(rows)
        return Scores(
            logps=rewards,
            sequence=torch.arange(count, device=rewards.device),
            lengths=torch.ones(count, dtype=torch.long, device=rewards.device),
            prompt_logps=rewards.new_zeros(0),
            prompt_row=torch.zeros(0, dtype=torch.long, device=rewards.device),
            rows=len(examples),
        )

    def _padded(self, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        import torch

        first = next(self.model.parameters())
        config: Any = getattr(self.model, "module", self.model).config
        pad, width = config.get_text_config().pad_token_id, max(map(len, rows))
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=first.device)  # (B, T)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=first.device)
        return {"input_ids": ids, "attention_mask": mask}


def policy_of(loaded: LoadedModel, config: ModelConfig, device: torch.device) -> ModelPolicy | ClassifierPolicy:
    """Put a model on its device and return what scores with it."""
    from alignkit.scoring.policy import ModelPolicy
    from alignkit.scoring.scorer import install

    if config.quantization is None:
        loaded.model.to(device)
    if loaded.classifier:
        return ClassifierPolicy(loaded.model)
    return ModelPolicy(loaded.model, install(loaded.model, config.scorer, device=device))


@dataclass
class RewardModel:
    """A trained reward model by its path, asked about answers of any policy."""

    path: str
    max_length: int = 1024
    tokens_per_batch: int = 8192

    @cached_property
    def _loaded(self) -> LoadedModel:
        import torch

        loaded = build_classifier(ModelConfig(name=self.path))
        loaded.model.to("cuda" if torch.cuda.is_available() else "cpu").eval().requires_grad_(False)
        return loaded

    @cached_property
    def _encoders(self) -> dict[bool, Encoder]:
        """By whether an answer has ended: what makes tokens of texts that were said with another tokenizer."""
        mine = self._loaded.tokenizer
        return {ended: Encoder(mine, TokenRules(self.max_length, append_eos=ended)) for ended in (False, True)}

    def score(self, answers: Sequence[Answered]) -> list[float]:
        """Return the reward of every answer.

        A policy with the same tokenizer is scored on the very tokens it said; the texts of another one are tokenised
        as the data of a run is, conversations by the reward model's own chat template.
        """
        from alignkit.reference import by_length

        examples = list(self._examples(answers))
        policy = ClassifierPolicy(self._loaded.model)
        rewards = [0.0] * len(examples)
        for rows in by_length(examples, self.tokens_per_batch):
            found = policy.score([examples[i] for i in rows], grad=False).logps.tolist()
            for i, reward in zip(rows, found, strict=True):
                rewards[i] = reward
        return rewards

    def _examples(self, answers: Sequence[Answered]) -> Iterator[Example]:
        mine = self._loaded.tokenizer
        contents: dict[int, bool] = {}
        for answer in answers:
            theirs = answer.tokenizer
            if id(theirs) not in contents:
                contents[id(theirs)] = tokenizer_content(theirs) == tokenizer_content(mine)
            if contents[id(theirs)]:
                yield Example(answer.id, answer.prompt_ids, (answer.answer_ids,))
            else:
                yield self._tokenised(answer, mine)

    def _tokenised(self, answer: Answered, tokenizer: PreTrainedTokenizerBase) -> Example:
        turn: Any = answer.answer
        if not isinstance(answer.prompt, str):
            turn = ({"role": "assistant", "content": answer.answer},)
        row = Row(0, answer.id, answer.prompt, (turn,), "")
        rendered = render(row, tokenizer, answer.id)
        found = self._encoders[answer.ended].encode([rendered])[0]
        if found.unusable is not None:  # an answer without words: the prompt, and the end
            ids = list(tokenizer(rendered.prompt)["input_ids"])[-self.max_length + 1 :]
            end = tokenizer.eos_token_id
            if not ids or end is None:
                raise RunFailedError(f"the reward model {self.path} cannot read row {answer.id}: {found.unusable}")
            return Example(answer.id, ids, ([end],))
        prompt, completion = found.parts
        return Example(answer.id, prompt, (completion,))
