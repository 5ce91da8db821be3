"""Answers with the log-probabilities of their tokens, as a whole or while they are generated."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import Queue
from typing import Any

from alignkit.errors import ConfigError
from alignkit.models.generate import end_tokens, generate

from alignkit_commands.serving.served import Served

MOST = 1024
"""Tokens of an answer where the client sets no limit."""


@dataclass
class Token:
    """A token with its log-probability under the model, before temperature, and the most likely ones (token, its own)."""

    id: int
    logp: float | None
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass
class Answer:
    """A completion: its tokens without the end token, and why it ended."""

    tokens: list[Token]
    text: str
    reason: str
    cut: int | None = None
    """Characters of the text before a stop text, where one ended it."""


class _Recorder:
    """The model, with the log-probabilities of what it generates written down; ends when :attr:`cancelled` is set."""

    def __init__(self, model: Any, top: int, each: Callable[[int], None] | None, options: dict[str, Any]) -> None:
        self._model, self._top, self._each, self._options = model, top, each, options
        self.cancelled = threading.Event()
        self.rows: list[list[Token]] = []
        """Tokens of every prompt, in the order of the prompts."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, *, logits_processor: list[Any], input_ids: Any, **options: Any) -> Any:
        import torch

        rows: list[list[Token]] = [[] for _ in range(len(input_ids))]
        self.rows += rows
        last: list[Any] = []

        def settle(tokens: Any) -> None:
            for row, token, logps in zip(rows, tokens.tolist(), last.pop(), strict=True):
                best = torch.topk(logps, self._top) if self._top else ((), ())
                top = [(int(one), float(value)) for value, one in zip(*best, strict=True)]
                row.append(Token(token, float(logps[token]), top))
            if self._each is not None:
                self._each(int(tokens[0]))

        def record(ids: Any, logits: Any) -> Any:
            if last:
                settle(ids[:, -1])
            last.append(torch.log_softmax(logits.float(), dim=-1))
            return logits

        def stop(ids: Any, *_: Any, **__: Any) -> Any:
            return torch.full((len(ids),), self.cancelled.is_set(), device=ids.device, dtype=torch.bool)

        processors = [logits_processor[0], record, *logits_processor[1:]]
        output = self._model.generate(
            input_ids=input_ids, logits_processor=processors, stopping_criteria=[stop], **options, **self._options
        )
        if last:
            settle(output[:, -1])
        return output


@dataclass(frozen=True)
class Wanted:
    """How prompts are answered."""

    limit: int | None
    temperature: float
    top_p: float
    stop: Sequence[str]
    top: int = 0


def answers(
    served: Served,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    wanted: Wanted,
    each: Callable[[int], None] | None = None,
    started: Callable[[_Recorder], None] = lambda recorder: None,
) -> list[Answer]:
    """Return an answer per prompt; ``each`` is called with each token of the first one, ``started`` before."""
    limit = _room(served, prompts, wanted.limit)
    options = {"stop_strings": list(wanted.stop), "tokenizer": served.tokenizer} if wanted.stop else {}
    with served.in_use() as model:
        recorder = _Recorder(model, wanted.top, each, options)
        started(recorder)
        found = generate(
            recorder,  # type: ignore[arg-type]
            served.tokenizer,
            prompts,
            max_new_tokens=limit,
            temperature=wanted.temperature,
            top_p=wanted.top_p,
            seed=list(seeds),
        )
    return [
        _answer(served, one.tokens, row[: len(one.tokens)], one.ended, wanted.stop)
        for one, row in zip(found, recorder.rows, strict=True)
    ]


def _answer(served: Served, ids: list[int], tokens: list[Token], ended: bool, stop: Sequence[str]) -> Answer:
    text = served.tokenizer.decode(ids, skip_special_tokens=True)
    places = [at for word in stop if (at := text.find(word)) >= 0]
    if not places:
        return Answer(tokens, text, "stop" if ended else "length")
    kept = len(tokens)
    while kept and len(served.tokenizer.decode(ids[: kept - 1], skip_special_tokens=True)) >= min(places):
        kept -= 1
    return Answer(tokens[:kept], text[: min(places)], "stop", min(places))


def _room(served: Served, prompts: Sequence[Sequence[int]], limit: int | None) -> int:
    longest, positions = max(map(len, prompts)), served.positions
    if not min(map(len, prompts)):
        raise ConfigError("the prompt is empty")
    if limit is not None or positions is None:
        return MOST if limit is None else limit
    if longest >= positions:
        raise ConfigError(f"the prompt has {longest:,} tokens, and model {served.name} has {positions:,} positions")
    return min(MOST, positions - longest)


def streamed(served: Served, prompt: Sequence[int], seed: int, wanted: Wanted) -> Iterator[str | Answer]:
    """Yield pieces of the answer's text while it is generated, then the answer; generation ends when the iterator is closed."""
    pieces: Queue[str | Answer | BaseException] = Queue()
    recorders: list[_Recorder] = []
    ids: list[int] = []
    sent = 0
    held = max((len(word) for word in wanted.stop), default=1) - 1
    special = {*served.tokenizer.all_special_ids, *end_tokens(served.model, served.tokenizer)}

    def each(token: int) -> None:
        nonlocal sent
        if token in special:
            return
        ids.append(token)
        text = served.tokenizer.decode(ids, skip_special_tokens=True)
        if text.endswith("�"):  # half a character
            return
        until = min([len(text) - held, *(at for word in wanted.stop if (at := text.find(word)) >= 0)])
        if until > sent:
            pieces.put(text[sent:until])
            sent = until

    def work() -> None:
        try:
            (answer,) = answers(served, [prompt], [seed], wanted, each, recorders.append)
            if len(answer.text) > sent:
                pieces.put(answer.text[sent:])
            pieces.put(answer)
        except BaseException as error:
            pieces.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            piece = pieces.get()
            if isinstance(piece, BaseException):
                raise piece
            yield piece
            if isinstance(piece, Answer):
                return
    finally:
        for recorder in recorders:
            recorder.cancelled.set()
        thread.join()


def scored(served: Served, ids: Sequence[int], top: int) -> list[Token]:
    """Return the tokens of a prompt with their log-probabilities given those before; the first one has none."""
    import torch

    with served.in_use() as model, torch.no_grad():
        device = next(model.parameters()).device
        logps = torch.log_softmax(model(input_ids=torch.tensor([list(ids)], device=device)).logits[0].float(), dim=-1)
    found = [Token(ids[0], None)]
    for token, row in zip(ids[1:], logps[:-1], strict=True):
        best = torch.topk(row, top) if top else ((), ())
        pairs = [(int(one), float(value)) for value, one in zip(*best, strict=True)]
        found.append(Token(int(token), float(row[token]), pairs))
    return found
