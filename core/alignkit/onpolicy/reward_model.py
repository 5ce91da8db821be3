"""A trained reward model as a reward."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from alignkit.config import ModelConfig
from alignkit.contract import Answered, Example, LoadedModel, Row, by_length
from alignkit.data.table.cache import tokenizer_content
from alignkit.data.tokenise.render import render
from alignkit.data.tokenise.rules import Encoder, TokenRules, truncate
from alignkit.errors import RunFailedError
from alignkit.models.load import build_classifier
from alignkit.models.positions import position_limit
from alignkit.scoring.classifier import ClassifierPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@cache
def _warn_cut(path: str, limit: int) -> None:
    logger.warning(
        "answers of more than %d tokens, the positions of the reward model %s, are cut before it judges them",
        limit,
        path,
    )


@dataclass
class RewardModel:
    """Trained reward model, loaded from ``path`` when first used; scores answers of any policy."""

    path: str
    max_length: int = 1024
    tokens_per_batch: int = 8192

    @cached_property
    def _loaded(self) -> LoadedModel:
        import torch

        loaded = build_classifier(ModelConfig(name=self.path, dtype="float32"))
        loaded.model.to("cuda" if torch.cuda.is_available() else "cpu").eval().requires_grad_(False)
        return loaded

    @cached_property
    def _encoders(self) -> dict[bool, Encoder]:
        """Encoders of texts from a policy with another tokenizer, by whether the answer ended."""
        own = self._loaded.tokenizer
        return {ended: Encoder(own, TokenRules(self._limit, append_eos=ended)) for ended in (False, True)}

    @cached_property
    def _limit(self) -> int:
        return min(self.max_length, position_limit(self._loaded.model) or self.max_length)

    def _fitted(self, example: Example) -> Example:
        """Return a row cut to the model's positions, as data is: the prompt on the left, then the answer on the right."""
        limit = position_limit(self._loaded.model)
        if limit is None or example.tokens <= limit:
            return example
        _warn_cut(self.path, limit)
        cut = truncate([*example.prompt], tuple([*ids] for ids in example.completions), limit)
        return Example(example.id, cut.prompt, cut.completions)

    def score(self, answers: Sequence[Answered]) -> list[float]:
        """Return the reward of every answer.

        If the policy has the same tokenizer, its tokens are scored as they are. Otherwise its texts are tokenised like the
        data of a run, conversations with the reward model's chat template.
        """
        examples = list(self._examples(answers))
        policy = ClassifierPolicy(self._loaded.model)
        rewards: dict[int, float] = {}
        for rows in by_length(examples, self.tokens_per_batch):
            scores = policy.score([examples[i] for i in rows], grad=False)
            rewards.update(zip(rows, scores.logps.tolist(), strict=True))
        return [rewards[i] for i in range(len(examples))]

    def _examples(self, answers: Sequence[Answered]) -> Iterator[Example]:
        own = self._loaded.tokenizer
        others = {id(answer.tokenizer): answer.tokenizer for answer in answers}
        same = {key: tokenizer_content(other) == tokenizer_content(own) for key, other in others.items()}
        for answer in answers:
            if same[id(answer.tokenizer)]:
                yield self._fitted(Example(answer.id, answer.prompt_ids, (answer.answer_ids,)))
            else:
                yield self._tokenised(answer, own)

    def _tokenised(self, answer: Answered, tokenizer: PreTrainedTokenizerBase) -> Example:
        is_text = isinstance(answer.prompt, str)
        turn: Any = answer.answer if is_text else ({"role": "assistant", "content": answer.answer},)
        row = Row(0, answer.id, answer.prompt, (turn,), "")
        rendered = render(row, tokenizer, answer.id)
        found = self._encoders[answer.ended].encode([rendered])[0]
        if found.unusable is not None:  # an empty answer: score the prompt and the end token
            ids = list(tokenizer(rendered.prompt)["input_ids"])[-self._limit + 1 :]
            end = tokenizer.eos_token_id
            if not ids or end is None:
                raise RunFailedError(f"the reward model {self.path} cannot read row {answer.id}: {found.unusable}")
            return Example(answer.id, ids, ([end],))
        if found.prompt_lost or found.completion_lost:
            _warn_cut(self.path, self._limit)
        prompt, completion = found.parts
        return Example(answer.id, prompt, (completion,))
