"""The model of a run in MLX's memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from alignkit.contract import Computed, EngineModel, Example, Wanted
from alignkit.errors import CheckpointError
from alignkit.system.environment import peak_memory_gb
from mlx.utils import tree_flatten

from alignkit_mlx.arrays import from_torch, placed, to_torch
from alignkit_mlx.checkpointing import Checkpoints
from alignkit_mlx.convert import Converted
from alignkit_mlx.optimizers import Optimizer
from alignkit_mlx.scoring import CHUNK, KEPT, LEAST, Layout, Shared, batch_caches, logits_of, make_layout, token_scores


class MLXModel(EngineModel):
    """An mlx-lm model: its scores, gradients, optimizer and weights."""

    def __init__(self, parts: Converted, *, seed: int, checkpointing: bool = False) -> None:
        self.model, self.score, self.weights_of = parts.model, parts.score, parts.weights
        self.seed, self.passes = seed, 0
        self.half = False
        self.pad, self.vocabulary = parts.pad, parts.vocabulary
        self.split = hasattr(parts.model, "model")
        """Whether logits are computed from hidden states, for the scored tokens only."""
        self.share = False
        """Whether completions share their prompt."""
        self.caches = False
        self.checkpoints = Checkpoints()
        self.outside = self.weights_of
        if checkpointing:
            self.outside = self.checkpoints.install(parts.model.layers, self.weights_of)
        self.checkpointing = checkpointing
        self.arrays = [weight.module[weight.key] for weight in self.weights_of]
        mx.eval(self.arrays)
        self.gradients: list[mx.array] | None = None
        self.start: list[mx.array] | None = None
        self.optimizer: Optimizer | None = None
        self._norm: float | None = None
        self._place(self.arrays)

    def use_half(self, half: bool) -> None:
        """Make products in bfloat16."""
        self.half = half
        self._place(self.arrays)

    @property
    def rounded(self) -> bool:
        """Whether weights are used in less than float32."""
        return self.half or any(a.dtype != mx.float32 for a in self._floats())

    def types(self, bits: str | None) -> dict[str, str]:
        """Return the types of weights and products, for the record."""
        trained = {id(array) for array in self.used}
        names = {
            "trained": {_name(array) for array in self.arrays},
            "frozen": {_name(array) for array in self._floats() if id(array) not in trained},
        }
        found = {kind: " and ".join(sorted(own)) for kind, own in names.items() if own}
        if bits:
            found["frozen"] = f"{bits} (MLX), {found['frozen']}"
        halves = sorted({_name(array) for array in self._floats()} - {"float32"})
        return found | {"products": "bfloat16" if self.half else halves[0] if halves else "float32"}

    def _floats(self) -> list[mx.array]:
        found: list[Any] = [array for _, array in tree_flatten(self.model.parameters())]
        return [array for array in found if mx.issubdtype(array.dtype, mx.floating)]

    def _place(self, arrays: list[mx.array]) -> None:
        """Make ``arrays`` the current weights, and cast them for the products."""
        self.arrays = arrays
        self.used = self._cast(arrays)
        for weight, array in zip(self.weights_of, self.used, strict=True):
            weight.module[weight.key] = array

    def _cast(self, arrays: list[mx.array]) -> list[mx.array]:
        if not self.half:
            return arrays
        cast = [array.astype(mx.bfloat16) for array in arrays]
        mx.eval(cast)
        return cast

    # ------------------------------------------------------------------ scoring

    def compute(self, examples: Sequence[Example], wanted: Wanted) -> Computed:
        if self.score is None:
            layout = make_layout(examples, prompt=wanted.prompt, share=self.share)
            sizes = [layout.scored, len(layout.targets) - layout.scored, layout.scored if wanted.entropy else 0]
        else:
            layout = make_layout(examples, prompt=False, share=False, pad=self.pad)
            sizes = [len(layout.rows), 0, 0]
        arrays = self.start if wanted.reference else self.used
        if arrays is None:
            raise KeyError('the policy of step 0 is not kept: declare needs = frozenset({"start"}) on the method')
        self._mode(train=wanted.grad)

        def run(*arrays: mx.array) -> list[mx.array]:
            with placed(self.weights_of, arrays):
                found = self._scores(layout, wanted)
            return [one for one, size in zip(found, sizes, strict=True) if size]

        if not wanted.grad:
            found, pull = run(*arrays), None
        else:
            # The cotangents are written before anything that depends on them is computed.
            given = [mx.zeros(size) for size in sizes if size]
            mx.eval(given)
            found, gradients = mx.vjp(run, arrays, given)
            pull = self._pull(given, sizes, gradients)
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
            self.gradients = own if before is None else [a + b for a, b in zip(before, own, strict=True)]
            self._norm = None
            gradients.clear()
            mx.eval(self.gradients)

        return pull

    def _scores(self, layout: Layout, wanted: Wanted) -> list[mx.array]:
        """Return log-probabilities ``[N]`` and ``[M]``, and entropies ``[N]``; of a reward model the rewards ``[S]``."""
        states = self._states(layout)
        if self.score is not None:
            hidden = states.reshape(*layout.rows.shape, -1)[mx.arange(len(layout.rows)), layout.ends]
            rewards = self.score(hidden)[:, 0].astype(mx.float32)
            return [rewards, rewards, rewards]
        logps, entropy = self._head(states[layout.source], layout.targets, wanted)
        return [logps[: layout.scored], logps[layout.scored :], entropy[: layout.scored]]

    def _states(self, layout: Layout) -> mx.array:
        """Return the hidden states (or logits) of all tokens, those of shared prompts first."""
        body = self.model.model if self.split else self.model
        if layout.prompts is None:
            found: mx.array = body(layout.rows)
            return found.reshape(-1, found.shape[-1])
        caches = [Shared(layout) for _ in self.model.layers]
        first = body(layout.prompts, cache=caches)
        for cache in caches:
            cache.begin_second()
        second = body(layout.rows, cache=caches)
        return mx.concatenate([part.reshape(-1, part.shape[-1]) for part in (first, second)])

    def _head(self, states: mx.array, targets: mx.array, wanted: Wanted) -> tuple[mx.array, mx.array]:
        """Return log-probabilities and entropies; no more than ``KEPT`` bytes of logits are kept."""
        if not self.split:
            return token_scores(states, targets, wanted.temperature, wanted.entropy)

        def score(states: mx.array, targets: mx.array) -> list[mx.array]:
            logits = logits_of(self.model, states)
            return list(token_scores(logits, targets, wanted.temperature, wanted.entropy))

        if len(targets) * self.vocabulary * 4 <= KEPT:
            return tuple(score(states, targets))  # type: ignore[return-value]
        size, pieces = max(LEAST, CHUNK // (self.vocabulary * 4)), list[list[mx.array]]()
        for start in range(0, len(targets), size):
            part, own = states[start : start + size], partial(score, targets=targets[start : start + size])
            if pieces:  # one after the other
                (part,) = mx.depends([part], pieces[-1])
            pieces.append(self.checkpoints.run(own, self.outside, part) if wanted.grad else own(part))
            if not wanted.grad:
                mx.eval(pieces[-1])
        logps, entropy = (mx.concatenate(list(parts)) for parts in zip(*pieces, strict=True))
        return logps, entropy

    def logits(self, ids: torch.Tensor, mask: torch.Tensor, cache: dict[str, Any] | None = None) -> torch.Tensor:
        self._mode(train=False)
        if cache is not None:
            if not cache:
                cache["layers"] = batch_caches(self.model, (mask == 0).sum(1).tolist())
            tokens = mx.array(ids.numpy().astype(np.int32))
            return to_torch(self._generated(tokens, cache["layers"]).astype(mx.float32))
        # Without a cache, rows begin with their own tokens.
        before = mask.argmax(1, keepdim=True)
        places = (torch.arange(ids.shape[1]) + before).clamp(max=ids.shape[1] - 1)
        tokens = mx.array(ids.gather(1, places).numpy().astype(np.int32))
        if self.score is not None:
            states = self.model.model(tokens)
            own = ids.gather(1, places)
            last = ((own != self.pad) * torch.arange(ids.shape[1])).argmax(1)
            return to_torch(self.score(states[mx.arange(len(ids)), mx.array(last.numpy())]).astype(mx.float32))
        found = to_torch(self.model(tokens).astype(mx.float32))
        back = (torch.arange(ids.shape[1]) - before).clamp(min=0)
        return found.gather(1, back[..., None].expand_as(found))

    def _generated(self, tokens: mx.array, caches: list[Any]) -> mx.array:
        """Return the logits of the last tokens, ``[B, 1, V]``."""
        if not self.split:
            logits: mx.array = self.model(tokens, cache=caches)
            return logits[:, -1:]
        return logits_of(self.model, self.model.model(tokens, cache=caches)[:, -1])[:, None]

    # ------------------------------------------------------------------ training

    def begin(self, arguments: Any, decayed: Collection[str]) -> None:
        self.optimizer = Optimizer(arguments, self.arrays, [weight.name in decayed for weight in self.weights_of])

    def gradient_norm(self) -> float:
        if self._norm is None:
            squares = [mx.square(one.astype(mx.float32)).sum() for one in self.gradients or []]
            total: Any = mx.sqrt(sum(squares, mx.array(0.0))).item()
            self._norm = float(total)
        return self._norm

    def step(self, learning_rate: float, scale: float) -> None:
        if self.gradients is not None and self.optimizer is not None:
            self._place(self.optimizer.update(self.arrays, self.gradients, learning_rate, scale))
        self.clear()

    def clear(self) -> None:
        self.gradients, self._norm = None, None

    def keep_start(self) -> None:
        self.start = list(self.used)

    # ------------------------------------------------------------------ weights and state

    def weights(self) -> dict[str, torch.Tensor]:
        return {weight.name: weight.read(array) for weight, array in zip(self.weights_of, self.arrays, strict=True)}

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        if missing := {weight.name for weight in self.weights_of} - set(weights):
            raise CheckpointError(f"the checkpoint has no weight {min(missing)}")
        arrays = [weight.written(weights[weight.name]) for weight in self.weights_of]
        mx.eval(arrays)
        self._place(arrays)

    def state(self) -> dict[str, Any]:
        optimizer = self.optimizer
        held = [[to_torch(one) for one in own] for own in optimizer.state] if optimizer else []
        return {"passes": self.passes, "steps": optimizer.steps if optimizer else 0, "optimizer": held}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.passes = state["passes"]
        if self.optimizer is not None:
            self.optimizer.steps = state["steps"]
            self.optimizer.state = [[from_torch(one) for one in own] for own in state["optimizer"]]

    def memory_gb(self) -> float:
        return max(peak_memory_gb(), mx.get_peak_memory() / 2**30)


def _name(array: mx.array) -> str:
    return str(array.dtype).removeprefix("mlx.core.")
