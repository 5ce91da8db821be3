"""The evaluated model in lm-eval, which counts the requests that lm-eval cuts to the model's positions."""

from __future__ import annotations

from typing import Any

from alignkit import Omission, Target
from alignkit.errors import RunFailedError
from alignkit.models.positions import position_limit


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
            return super()._loglikelihood_tokens(requests, *args, **options)

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
