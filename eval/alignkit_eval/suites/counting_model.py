"""The evaluated model in lm-eval: several processes share its requests, and those cut to the model's positions are counted."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

from alignkit import Omission, Target
from alignkit.errors import RunFailedError
from alignkit.models.positions import position_limit
from alignkit.system.together import shared, sharers


def counting_model(target: Target, batch_size: int) -> Any:
    """Return lm-eval's ``HFLM`` of a target, with the method ``left_out()``. Importing lm-eval takes seconds."""
    from lm_eval.models.huggingface import HFLM

    class CountingModel(HFLM):  # type: ignore[misc]
        """Counts the requests whose context is cut on the left."""

        requests = cut = 0

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **options: Any) -> Any:
            self.requests += len(requests)
            self.cut += sum(len(context) + len(answer) > self.max_length + 1 for _, context, answer in requests)
            longest = max((len(answer) for *_, answer in requests), default=0)
            if longest > self.max_length:
                raise RunFailedError(
                    f"lm-eval: an answer of {longest} tokens does not fit into the {self.max_length} positions of {target.name}"
                )
            if sharers() == 1:
                return super()._loglikelihood_tokens(requests, *args, **options)
            groups = _grouped(tuple(context + answer[:-1]) for _, context, answer in requests)  # lm-eval runs each once

            def work(which: list[int]) -> Iterator[list[Any]]:
                mine = [requests[i] for number in which for i in groups[number]]
                found = iter(HFLM._loglikelihood_tokens(self, mine, *args, **options))
                yield from ([next(found) for _ in groups[number]] for number in which)

            sizes = [sum(map(len, requests[group[0]][1:])) for group in groups]
            return _in_order(groups, shared("log-likelihoods", sizes, work))

        def generate_until(self, requests: Any, *args: Any, **options: Any) -> Any:
            """Share out the batches that lm-eval makes; answers that are sampled are sampled by every process alike."""
            if sharers() == 1 or any(request.args[1].get("do_sample") for request in requests):
                return super().generate_until(requests, *args, **options)
            batches = []
            for kind in _grouped(str(request.args[1]) for request in requests):
                kind.sort(key=lambda i: (-len(self.tok_encode(requests[i].args[0])), requests[i].args[0]))
                batches += [kind[first : first + batch_size] for first in range(0, len(kind), batch_size)]
            counts = self.requests, self.cut

            def work(which: list[int]) -> Iterator[tuple[Any, int, int]]:
                for number in which:
                    self.requests = self.cut = 0
                    mine = [requests[i] for i in batches[number]]
                    yield HFLM.generate_until(self, mine, *args, **options), self.requests, self.cut

            texts, read, cut = zip(*shared("answers", list(map(len, batches)), work), strict=True)
            self.requests, self.cut = counts[0] + sum(read), counts[1] + sum(cut)
            return _in_order(batches, texts)

        def tok_batch_encode(
            self, strings: Any, *args: Any, left_truncate_len: int | None = None, **options: Any
        ) -> Any:
            self.requests += len(strings)
            if left_truncate_len is not None:
                self.cut += sum(len(self.tok_encode(text)) > left_truncate_len for text in strings)
            return super().tok_batch_encode(strings, *args, left_truncate_len=left_truncate_len, **options)

        def left_out(self) -> list[Omission]:
            why = f"cut on the left to fit the model's {self.max_length} positions"
            return [Omission("requests", self.cut, self.requests, why)] if self.cut else []

    model = target.policy.model
    return CountingModel(model, tokenizer=target.tokenizer, batch_size=batch_size, max_length=position_limit(model))


def _grouped(keys: Iterable[Hashable]) -> list[list[int]]:
    """Return the positions of equal keys."""
    groups: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _in_order(groups: Sequence[Sequence[int]], results: Sequence[Sequence[Any]]) -> list[Any]:
    """Return the results of groups of positions, in the order of the positions."""
    found = {
        i: result
        for group, values in zip(groups, results, strict=True)
        for i, result in zip(group, values, strict=True)
    }
    return [found[i] for i in range(len(found))]
