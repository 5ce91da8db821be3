"""Reference log-probabilities: computed once with the policy at step 0 and cached on disk per token.

The cache key is (token ids, start model, how they are computed) and does not depend on beta or lambda, so that a sweep computes them once.
On resume the policy is rebuilt from its start weights before the checkpoint is loaded, so the same code serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alignkit.contract import Example, Need, Policy, by_length
from alignkit.scoring.critic import is_critics
from alignkit.system.cache import ContentCache
from alignkit.system.files import digest
from alignkit.system.sharded import local, reshard
from alignkit.system.together import shared_limit

_CACHE = ContentCache("reference", ".npy")


class ReferenceLogps(Sequence[NDArray[np.float32]]):
    """Per-token log-probabilities of each row's completions, concatenated; ``logps[i]`` is ``[scored tokens of row i]``."""

    def __init__(self, flat: NDArray[np.float32], lengths: Sequence[int]) -> None:
        self.flat = flat
        self.offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        if self.offsets[-1] != len(flat):
            raise ValueError(f"{len(flat)} log-probabilities for {self.offsets[-1]} tokens")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        return self.flat[self.offsets[index] : self.offsets[index + 1]]


def keeps_start(needs: Collection[Need]) -> bool:
    """Whether a method with these needs scores with the policy of step 0 during training."""
    return "start" in needs or ("reference" in needs and "reward" in needs)


class StartWeights:
    """Copy of the trainable weights at step 0, which can be swapped in: the reference of on-policy methods.

    Frozen weights are shared with the policy, so that with LoRA the reference costs only a copy of the adapter.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        reshard(model)
        self._model = model
        trained = [p for name, p in model.named_parameters() if p.requires_grad and not is_critics(name)]
        self._pairs = [(parameter, local(parameter).clone()) for parameter in trained]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Run the block without gradient and with the start weights in the model."""
        self._swap()
        try:
            with torch.no_grad():
                yield
        finally:
            self._swap()

    def weights(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return this process's shard of every trained weight, and of its copy."""
        reshard(self._model)
        return [(local(parameter), kept) for parameter, kept in self._pairs]

    def _swap(self) -> None:
        reshard(self._model)
        torch.clear_autocast_cache()
        for i, (parameter, other) in enumerate(self._pairs):
            own = local(parameter)
            if type(own) is type(parameter.data) and own.shape == parameter.shape:
                self._pairs[i] = (parameter, parameter.data)
                parameter.data = other
            else:  # a sharded model gathers from the memory of its shards: they are exchanged in place
                kept = own.clone()
                own.copy_(other)
                other.copy_(kept)


def _scored_tokens(examples: Sequence[Example]) -> list[int]:
    return [sum(e.scored_tokens(k) for k in range(len(e.completions))) for e in examples]


def score_rows(
    policy: Policy, examples: Sequence[Example], max_tokens: int, tick: Callable[[int], None] = lambda rows: None
) -> ReferenceLogps:
    """Score every completion of ``examples`` without gradient; ``tick`` is called with the number of rows of each batch."""
    lengths = _scored_tokens(examples)
    rows: dict[int, NDArray[np.float32]] = {}
    for batch in by_length(examples, shared_limit([example.tokens for example in examples], max_tokens)):
        flat = policy.score([examples[i] for i in batch], grad=False).logps.float().cpu().numpy()
        rows.update(zip(batch, np.split(flat, np.cumsum([lengths[i] for i in batch])[:-1]), strict=True))
        tick(len(batch))
    return ReferenceLogps(np.concatenate([rows[i] for i in range(len(examples))] or [np.empty(0, np.float32)]), lengths)


def reference_logps(
    policy: Policy,
    examples: Sequence[Example],
    *,
    rows_fingerprint: str,
    weights_fingerprint: str,
    computed: str,
    max_tokens: int,
    tick: Callable[[int], None] = lambda rows: None,
) -> tuple[ReferenceLogps, bool]:
    """Return the step-0 policy's log-probabilities of ``examples`` and whether they came from the cache.

    An entry that does not match the rows is made again. ``computed`` says how they are computed: precision, device, versions.
    """

    def write(path: Path, made: Callable[[], ReferenceLogps]) -> None:
        with path.open("wb") as file:
            np.save(file, made().flat)

    return _CACHE.fetch_together(
        digest([rows_fingerprint, weights_fingerprint, computed]),
        lambda: score_rows(policy, examples, max_tokens, tick),
        read=lambda path: ReferenceLogps(np.load(path), _scored_tokens(examples)),
        write=write,
    )
