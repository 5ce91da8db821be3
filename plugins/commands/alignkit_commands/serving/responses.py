"""Responses in the form of OpenAI's API."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from alignkit.errors import ConfigError

from alignkit_commands.serving.generating import Answer, Token, Wanted, answers, scored, streamed
from alignkit_commands.serving.requests import Chat, Completion
from alignkit_commands.serving.served import Served


def respond(served: Served, request: Chat | Completion) -> dict[str, Any]:
    """Return the whole response to a request."""
    prompts = _prompts(served, request)
    wanted = _wanted(request)
    repeated = [prompt for prompt in prompts for _ in range(request.n)]
    seeds = _seeds(request, len(repeated))
    if wanted.limit == 0:
        found = [Answer([], "", "length") for _ in repeated]
    else:
        found = answers(served, repeated, seeds, wanted)
    choices = [_choice(served, request, number, answer, repeated[number]) for number, answer in enumerate(found)]
    return {**_head(request), "choices": choices, "usage": _usage(prompts, found)}


def respond_in_pieces(served: Served, request: Chat | Completion) -> Iterator[dict[str, Any]]:
    """Yield the chunks of a streamed response; raises ``ConfigError`` for what cannot be streamed."""
    prompts = _prompts(served, request)
    if len(prompts) * request.n > 1:
        raise ConfigError("stream: one answer to one prompt can be streamed")
    if isinstance(request, Completion) and (request.echo or request.max_tokens == 0):
        raise ConfigError("echo and max_tokens 0 cannot be streamed")
    return _pieces(served, request, prompts[0])


def _pieces(served: Served, request: Chat | Completion, prompt: list[int]) -> Iterator[dict[str, Any]]:
    chat = isinstance(request, Chat)
    head = _head(request, chunk=True)
    if chat:
        yield {**head, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    for piece in streamed(served, prompt, _seeds(request, 1)[0], _wanted(request)):
        if isinstance(piece, str):
            body: dict[str, Any] = {"delta": {"content": piece}} if chat else {"text": piece, "logprobs": None}
            yield {**head, "choices": [{"index": 0, **body, "finish_reason": None}]}
            continue
        end: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        end["logprobs"] = _logprobs(served, request, piece, [])  # of the whole answer
        yield {**head, "choices": [{"index": 0, **end, "finish_reason": piece.reason}]}
        if (request.stream_options or {}).get("include_usage"):
            yield {**head, "choices": [], "usage": _usage([prompt], [piece])}


def _prompts(served: Served, request: Chat | Completion) -> list[list[int]]:
    if isinstance(request, Chat):
        return [served.chat_ids([message.model_dump() for message in request.messages])]
    found = [served.prompt_ids(prompt) for prompt in request.prompts]
    size = served.model.get_input_embeddings().weight.shape[0]
    for ids in found:
        if not ids:
            raise ConfigError("prompt: it is empty")
        if min(ids) < 0 or max(ids) >= size:
            raise ConfigError(f"prompt: token ids are 0 to {size - 1:,}")
    if not found:
        raise ConfigError("prompt: it is empty")
    return found


def _wanted(request: Chat | Completion) -> Wanted:
    if isinstance(request, Chat):
        limit, top = request.max_completion_tokens or request.max_tokens, request.top_logprobs
    else:
        limit, top = request.max_tokens, request.logprobs or 0
    return Wanted(limit, request.temperature, request.top_p, request.stop, top)


def _seeds(request: Chat | Completion, count: int) -> list[int]:
    first = request.chosen_seed
    return [first + number for number in range(count)]


def _head(request: Chat | Completion, *, chunk: bool = False) -> dict[str, Any]:
    chat = isinstance(request, Chat)
    kind = ("chat.completion.chunk" if chunk else "chat.completion") if chat else "text_completion"
    mark = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
    return {"id": mark, "object": kind, "created": int(time.time()), "model": request.model}


def _usage(prompts: Sequence[Sequence[int]], found: Sequence[Answer]) -> dict[str, int]:
    asked, answered = sum(map(len, prompts)), sum(len(answer.tokens) for answer in found)
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


def _choice(
    served: Served, request: Chat | Completion, number: int, answer: Answer, prompt: Sequence[int]
) -> dict[str, Any]:
    if isinstance(request, Chat):
        logprobs = _logprobs(served, request, answer, [])
        message = {"role": "assistant", "content": answer.text}
        return {"index": number, "message": message, "logprobs": logprobs, "finish_reason": answer.reason}
    echoed: list[Token] = []
    text = answer.text
    if request.echo:
        text = served.tokenizer.decode(prompt) + text
        echoed = scored(served, prompt, request.logprobs or 0) if request.logprobs is not None else []
    logprobs = _logprobs(served, request, answer, echoed)
    return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": answer.reason}


def _logprobs(
    served: Served, request: Chat | Completion, answer: Answer, echoed: Sequence[Token]
) -> dict[str, Any] | None:
    def text(token: int) -> str:
        return str(served.tokenizer.decode([token]))

    if isinstance(request, Chat):
        if not request.logprobs:
            return None

        def shown(token: int, logp: float | None) -> dict[str, Any]:
            return {"token": text(token), "logprob": logp, "bytes": list(text(token).encode())}

        content = [
            {**shown(one.id, one.logp), "top_logprobs": [shown(*pair) for pair in one.top]} for one in answer.tokens
        ]
        return {"content": content, "refusal": None}
    if request.logprobs is None:
        return None
    tokens = [*echoed, *answer.tokens]
    texts = [text(one.id) for one in tokens]
    offsets = [sum(map(len, texts[:number])) for number in range(len(texts))]
    tops = [{text(token): value for token, value in one.top} if one.logp is not None else None for one in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [one.logp for one in tokens],
        "top_logprobs": tops,
        "text_offset": offsets,
    }
