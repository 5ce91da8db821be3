"""The model of a run in MLX's memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch
from alignkit.contract import Computed, EngineModel, Example, Wanted
from alignkit.system.environment import peak_memory_gb
from mlx.utils import tree_map, tree_unflatten

from alignkit_mlx.arrays import flat, from_torch, to_torch
from alignkit_mlx.checkpointing import Checkpoints
from alignkit_mlx.convert import Converted
from alignkit_mlx.optimizers import Optimizer
from alignkit_mlx.scoring import Layout, logits_of, make_layout, token_scores
from alignkit_mlx.shared import Continued, Shared, batch_caches

KEPT, CHUNK, LEAST = 512 << 20, 128 << 20, 128
"""Bytes of logits that are kept for the backward pass; where there are more, they are computed in chunks of so many bytes, or of
the least number of tokens, and again in the backward pass."""


class MLXModel(EngineModel):
    """An mlx-lm model: its scores, gradients, optimizer and weights."""

    def __init__(self, parts: Converted, *, seed: int, checkpointing: bool = False) -> None:
        self.model, self.trained, self.classifier = parts.model, parts.weights, parts.classifier
        self.seed, self.passes = seed, 0
        self.half = False
        self.pad, self.vocabulary = parts.pad, parts.vocabulary
        self.dropout = any(getattr(m, "_p_1", 1) < 1 for m in parts.model.modules() if isinstance(m, nn.Dropout))
        self.split = hasattr(parts.model, "model")
        """Whether logits are computed from hidden states, for the scored tokens only."""
        self.share = False
        """Whether completions share their prompt."""
        self.checkpoints, self.checkpointing = Checkpoints(), checkpointing
        if checkpointing:
            self.checkpoints.install(parts.model.layers)
        self.gradients: list[mx.array] = []
        self.start: list[mx.array] | None = None
        self.optimizer: Optimizer | None = None
        self._place(self.trained.get())

    def round(self, *, half: bool, bits: str | None) -> None:
        """Make products in bfloat16 if ``half``, and name the types of weights (quantized: ``bits``) and products."""
        self.half = half
        self._place(self.arrays)
        trained = set(self.trained.paths.values())
        types = {path: _type(a) for path, a in flat(self.model.parameters()).items() if _is_float(a)}
        kinds = {
            "trained": {_type(array) for array in self.arrays},
            "frozen": {name for path, name in types.items() if path not in trained},
        }
        found = {kind: " and ".join(sorted(names)) for kind, names in kinds.items() if names}
        if bits:
            found["frozen"] = f"{bits} (MLX), {found['frozen']}"
        halves = sorted(set(types.values()) - {"float32"})
        self.rounded = bool(halves)
        """Whether weights are used in less than float32."""
        self.precision = found | {"products": halves[0] if halves else "float32"}

    def _place(self, arrays: list[mx.array]) -> None:
        """Make ``arrays`` the current weights, and cast them for the products."""
        self.arrays = arrays
        self.used = [array.astype(mx.bfloat16) for array in arrays] if self.half else arrays
        mx.eval(self.used)
        self.trained.put(self.used)

    # ------------------------------------------------------------------ scoring

    def compute(self, examples: Sequence[Example], wanted: Wanted) -> Computed:
        if self.classifier:
            layout = make_layout(examples, prompt=False, share=False, pad=self.pad or 0)
            sizes = [len(layout.rows), 0, 0]
        else:
            layout = make_layout(examples, prompt=wanted.prompt, share=self.share)
            sizes = [layout.scored, len(layout.targets) - layout.scored, layout.scored if wanted.entropy else 0]
        arrays = self.start if wanted.reference else self.used
        if arrays is None:
            raise KeyError('the policy of step 0 is not kept: declare needs = frozenset({"start"}) on the method')
        self._mode(train=wanted.grad)

        def run(*arrays: mx.array) -> list[mx.array]:
            self.trained.put(arrays)
            found = [self._rewards(layout.rows)] * 3 if self.classifier else self._scores(layout, wanted)
            return [one for one, size in zip(found, sizes, strict=True) if size]

        pull = None
        try:
            if wanted.grad:
                # The cotangents are written before anything that depends on them is computed.
                given = [mx.zeros(size) for size in sizes if size]
                mx.eval(given)
                found, gradients = mx.vjp(run, arrays, given)
                pull = self._pull(given, sizes, gradients)
            else:
                found = run(*arrays)
        finally:
            self.trained.put(self.used)
        mx.eval(found)
        parts = iter(map(to_torch, found))
        logps, prompts, entropy = (next(parts) if size else torch.zeros(0) for size in sizes)
        return Computed(logps, prompts, entropy if wanted.entropy else None, pull)

    def _mode(self, *, train: bool) -> None:
        self.passes += train
        self.model.train(train)
        seed = (self.seed * 1_000_003 + self.passes) * 4099
        mx.random.seed(seed)
        self.checkpoints.begin(on=train and self.checkpointing, seed=seed)

    def _pull(self, given: list[mx.array], sizes: list[int], gradients: list[mx.array]) -> Any:
        def pull(*incoming: torch.Tensor | None) -> None:
            wanted = (one for one, size in zip(incoming, sizes, strict=True) if size)
            for cotangent, gradient in zip(given, wanted, strict=True):
                if gradient is not None:
                    np.array(cotangent, copy=False)[...] = gradient.detach().numpy()
            own = [one.astype(array.dtype) for one, array in zip(gradients, self.arrays, strict=True)]
            before = self.gradients
            self.gradients = [a + b for a, b in zip(before, own, strict=True)] if before else own
            gradients.clear()
            mx.eval(self.gradients)

        return pull

    def _rewards(self, rows: mx.array) -> mx.array:
        """Return the reward of each row ``[S]``, at its last token that is not padding."""
        last = ((rows != self.pad) * mx.arange(rows.shape[1])).argmax(1)
        states = self.model.model(rows)[mx.arange(len(rows)), last]
        rewards: mx.array = self.model.score(states)[:, 0].astype(mx.float32)
        return rewards

    def _scores(self, layout: Layout, wanted: Wanted) -> list[mx.array]:
        """Return log-probabilities ``[N]`` and ``[M]``, and entropies ``[N]``."""
        logps, entropy = self._head(self._states(layout)[layout.source], layout.targets, wanted)
        return [logps[: layout.scored], logps[layout.scored :], entropy[: layout.scored]]

    def _states(self, layout: Layout) -> mx.array:
        """Return the hidden states (or logits) of all tokens, those of shared prompts first."""
        body = self.model.model if self.split else self.model
        if layout.prompts is None:
            found: mx.array = body(layout.rows)
            return found.reshape(-1, found.shape[-1])
        caches = [Shared() for _ in self.model.layers]
        first = body(layout.prompts, cache=caches)
        second = body(layout.rows, cache=[Continued(one, layout.owner, layout.lengths) for one in caches])
        return mx.concatenate([part.reshape(-1, part.shape[-1]) for part in (first, second)])

    def _head(self, states: mx.array, targets: mx.array, wanted: Wanted) -> list[mx.array]:
        """Return log-probabilities and entropies; no more than ``KEPT`` bytes of logits are kept."""

        def score(states: mx.array, targets: mx.array) -> list[mx.array]:
            logits = logits_of(self.model, states) if self.split else states
            return token_scores(logits, targets, wanted.temperature, wanted.entropy)

        if not self.split or len(targets) * self.vocabulary * 4 <= KEPT:
            return score(states, targets)
        size, pieces = max(LEAST, CHUNK // (self.vocabulary * 4)), list[list[mx.array]]()
        trainable = flat(self.model.trainable_parameters()).items()
        outside = tree_unflatten([(path, array) for path, array in trainable if ".layers." not in f".{path}"])
        for start in range(0, len(targets), size):
            part, own = states[start : start + size], partial(score, targets=targets[start : start + size])
            if pieces:  # one after the other
                (part,) = mx.depends([part], pieces[-1])
            pieces.append(self.checkpoints.run(own, self.model, outside, part) if wanted.grad else own(part))
            if not wanted.grad:
                mx.eval(pieces[-1])
        return [mx.concatenate(list(parts)) for parts in zip(*pieces, strict=True)]

    def logits(self, ids: torch.Tensor, mask: torch.Tensor, cache: dict[str, Any] | None = None) -> torch.Tensor:
        self._mode(train=False)
        if cache is not None:
            if not cache:
                cache["layers"] = batch_caches(self.model, (mask == 0).sum(1).tolist())
            return to_torch(self._generated(mx.array(ids.numpy().astype(np.int32)), cache["layers"]))
        # Without a cache, rows begin with their own tokens.
        before = mask.argmax(1, keepdim=True)
        places = (torch.arange(ids.shape[1]) + before).clamp(max=ids.shape[1] - 1)
        tokens = mx.array(ids.gather(1, places).numpy().astype(np.int32))
        if self.classifier:
            return to_torch(self._rewards(tokens)[:, None])
        found = to_torch(self.model(tokens).astype(mx.float32))
        back = (torch.arange(ids.shape[1]) - before).clamp(min=0)
        return found.gather(1, back[..., None].expand_as(found))

    def _generated(self, tokens: mx.array, caches: list[Any]) -> mx.array:
        """Return the logits of the last tokens, ``[B, 1, V]``."""
        if self.split:
            found = logits_of(self.model, self.model.model(tokens, cache=caches)[:, -1])
        else:
            found = self.model(tokens, cache=caches)[:, -1]
        return found[:, None].astype(mx.float32)

    # ------------------------------------------------------------------ training

    def begin(self, arguments: Any, decayed: Collection[str]) -> None:
        self.optimizer = Optimizer(arguments, self.arrays, [name in decayed for name in self.trained.paths])

    def gradient_norm(self) -> float:
        squares = [mx.square(one.astype(mx.float32)).sum() for one in self.gradients]
        norm: Any = mx.sqrt(sum(squares, mx.array(0.0))).item()
        return float(norm)

    def step(self, learning_rate: float, scale: float) -> None:
        if self.gradients and self.optimizer is not None:
            self._place(self.optimizer.update(self.arrays, self.gradients, learning_rate, scale))
        self.clear()

    def clear(self) -> None:
        self.gradients = []

    def keep_start(self) -> None:
        self.start = list(self.used)

    # ------------------------------------------------------------------ weights and state

    def weights(self) -> dict[str, torch.Tensor]:
        return self.trained.to_torch(self.arrays)

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._place(self.trained.from_torch(weights))

    def state(self) -> dict[str, Any]:
        optimizer = self.optimizer
        held = tree_map(to_torch, optimizer.state) if optimizer else []
        return {"passes": self.passes, "steps": optimizer.steps if optimizer else 0, "optimizer": held}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.passes = state["passes"]
        if self.optimizer is not None:
            self.optimizer.steps, self.optimizer.state = state["steps"], tree_map(from_torch, state["optimizer"])

    def memory_gb(self) -> float:
        return max(peak_memory_gb(), mx.get_peak_memory() / 2**30)


def _type(array: mx.array) -> str:
    return str(array.dtype).removeprefix("mlx.core.")


def _is_float(array: mx.array) -> bool:
    return bool(mx.issubdtype(array.dtype, mx.floating))
