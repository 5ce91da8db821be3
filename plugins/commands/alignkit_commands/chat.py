"""Chat with one model, several models side by side, or their majority vote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignkit.config import ModelConfig
from alignkit.contract import LoadedModel, Message
from alignkit.errors import ConfigError, ModelError
from alignkit.models.generate import generate
from alignkit.models.load import build_model
from alignkit.models.weights import switch_off_dropout


@dataclass(frozen=True)
class Sampling:
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class ChatModel:
    """Model that answers conversations. Its name is a run, model or adapter directory, a hub id, or ``demo``."""

    def __init__(self, target: str) -> None:
        import torch

        self.name = Path(target).name or target
        self.loaded: LoadedModel = build_model(ModelConfig(name=target, dtype="float32"))
        if self.loaded.classifier:
            raise ModelError(f"{target} is a reward model: it scores answers and cannot generate them")
        switch_off_dropout(self.loaded.model)
        self.loaded.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def answer(self, messages: Sequence[Message], sampling: Sampling, *, raw: bool = False) -> str:
        """Return the answer to a conversation; with ``raw`` to the last message's text alone, without a chat template."""
        return self.answers([messages], sampling, raw=raw)[0]

    def answers(
        self, conversations: Sequence[Sequence[Message]], sampling: Sampling, *, raw: bool = False
    ) -> list[str]:
        tokenizer = self.loaded.tokenizer
        prompts = [self._ids(messages, raw) for messages in conversations]
        found = generate(self.loaded.model, tokenizer, prompts, **asdict(sampling))
        return [tokenizer.decode(answer.tokens, skip_special_tokens=True).strip() for answer in found]

    def _ids(self, messages: Sequence[Message], raw: bool) -> list[int]:
        tokenizer: Any = self.loaded.tokenizer
        if raw or not tokenizer.chat_template:
            ids = list(tokenizer(str(messages[-1]["content"]))["input_ids"])
            if ids and ids[-1] == tokenizer.eos_token_id:
                ids.pop()  # some tokenizers append the end token to every text
        else:
            turns = [dict(message) for message in messages]
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if not ids:
            raise ConfigError("the prompt is empty")
        return ids


def vote(answers: Sequence[str]) -> tuple[str, int]:
    """Return the most frequent answer (the first one in a tie) and its count.

    >>> vote(["yes .", "no .", "no ."])
    ('no .', 2)
    """
    normalised = [" ".join(answer.split()) for answer in answers]
    (winner, count), *_ = Counter(normalised).most_common(1)
    return answers[normalised.index(winner)], count


def each_answer(
    models: Sequence[ChatModel], prompts: Sequence[str], sampling: Sampling, *, raw: bool
) -> Iterator[list[str]]:
    """Yield the answers of all models to each prompt; each model generates for all prompts at once."""
    conversations = [({"role": "user", "content": prompt},) for prompt in prompts]
    columns = [model.answers(conversations, sampling, raw=raw) for model in models]
    yield from (list(row) for row in zip(*columns, strict=True))
