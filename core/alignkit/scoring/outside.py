"""The policy of an engine outside torch: its scores take part in torch's autograd, and its model runs in stock code.

Once the engine has a model's weights, the ``transformers`` model keeps its configuration, names and shapes only. Its
``forward`` computes with the engine, without gradient, so that generation, lm-eval and every suite work with it, and its
``state_dict`` has the weights that the engine trains, so that ``save_pretrained`` writes a stock model or adapter.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast, SequenceClassifierOutput

from alignkit.contract import Computed, EngineModel, Example, LoadedModel, Scores, Wanted
from alignkit.errors import CheckpointError, ConfigError, DataError
from alignkit.scoring.backends import innermost


class OutsidePolicy:
    """A model in an engine's memory as a :class:`~alignkit.contract.types.Policy`."""

    meeting: Any = None
    """Its model is not sharded (see :mod:`alignkit.scoring.in_step`)."""

    def __init__(self, loaded: LoadedModel, engine: EngineModel, name: str) -> None:
        self.engine, self.name = engine, name
        self.model: Any = loaded.model
        self.classifier = loaded.classifier
        self.precision, self.scorer = engine.precision, f"{name} ({engine.scorer})"
        self._anchor = torch.zeros((), requires_grad=True)
        self._tied = _take_over(loaded, engine)

    def restore(self, load: Callable[[], None]) -> None:
        """Give the engine what ``load`` loads into the stock model, by the names that stock code saves and loads it with.

        Raises ``CheckpointError`` if a weight that the engine trains is not among it.
        """
        saved: dict[str, torch.Tensor] = {}

        def load_state_dict(given: Mapping[str, torch.Tensor], *_: Any, **__: Any) -> _Loaded:
            saved.update((name, tensor.cpu()) for name, tensor in given.items())
            return _Loaded([], [])

        self.model.load_state_dict = load_state_dict
        load()
        _spread(saved, self._tied)
        own = self.engine.weights()
        if missing := own.keys() - saved.keys():
            raise CheckpointError(f"the checkpoint has no weight {min(missing)}")
        self.engine.load_weights({name: saved[name] for name in own})

    def keep_start(self) -> None:
        self.engine.keep_start()

    def memory_gb(self) -> float:
        return self.engine.memory_gb()

    def score(
        self,
        examples: Sequence[Example],
        *,
        prompt: bool = False,
        grad: bool = True,
        values: bool = False,
        entropy: bool | Literal["grad"] = False,
        temperature: float = 1.0,
        reference: bool = False,
        distributions: Callable[..., Any] | None = None,
    ) -> Scores:
        """Score every completion of ``examples``, in their order; see :class:`~alignkit.contract.types.Policy`."""
        if values or distributions is not None:
            what = "a critic" if values else "distributions over the vocabulary"
            raise ConfigError(f"engine {self.name} cannot score with {what}: set run.engine: torch")
        if not examples:
            raise DataError("the batch has no rows to score")
        if self.classifier and (prompt or entropy or reference):
            raise NotImplementedError("a reward model returns rewards only: no scores of tokens")
        grad = grad and not reference and torch.is_grad_enabled()
        found = self.engine.compute(examples, Wanted(prompt, grad, bool(entropy), temperature, reference))
        logps, prompts, certain = found.logps, found.prompt_logps, found.entropy
        if found.pull is not None and grad:
            logps, prompts, certain = _Pulled.apply(self._anchor, found)  # type: ignore[no-untyped-call]
        if certain is not None and entropy != "grad":
            certain = certain.detach()
        pairs = [(e, k) for e in examples for k in range(len(e.completions))]
        lengths = torch.tensor([1 if self.classifier else e.scored_tokens(k) for e, k in pairs])
        counts = torch.tensor([len(e.prompt) - 1 if prompt else 0 for e in examples])
        return Scores(
            logps=logps,
            sequence=torch.repeat_interleave(lengths),
            lengths=lengths,
            prompt_logps=prompts,
            prompt_row=torch.repeat_interleave(counts),
            rows=len(examples),
            entropy=certain,
        )


class _Pulled(torch.autograd.Function):
    """What an engine computed, as the result of an operation whose backward is the engine's."""

    @staticmethod
    def forward(ctx: Any, _anchor: torch.Tensor, found: Computed) -> Any:
        ctx.pull, entropy = found.pull, found.entropy
        ctx.entropy = entropy is not None
        return found.logps.clone(), found.prompt_logps.clone(), None if entropy is None else entropy.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        logps, prompts, entropy = gradients
        ctx.pull(logps, prompts, entropy if ctx.entropy else None)
        return None, None


class _Loaded(NamedTuple):
    """The result of ``load_state_dict``; what is missing is found when all parts are loaded."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def _spread(found: dict[str, torch.Tensor], tied: Sequence[Sequence[str]]) -> dict[str, torch.Tensor]:
    """Add the other names of tied weights."""
    for names in tied:
        held = [found[name] for name in names if name in found]
        found |= dict.fromkeys(names, held[0]) if held else {}
    return found


def _take_over(loaded: LoadedModel, engine: EngineModel) -> list[list[str]]:
    """Free the memory of a torch model's weights, let it compute with the engine, and return the names of tied weights."""
    model: Any = loaded.model
    places: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        places.setdefault(tensor.data_ptr(), []).append(name)
    tied = [names for names in places.values() if len(names) > 1]
    for parameter in model.parameters():
        parameter.data = parameter.data.new_zeros(()).expand(parameter.shape)

    def state_dict(*_: Any, **__: Any) -> dict[str, torch.Tensor]:
        return _spread(engine.weights(), tied)

    model.state_dict = state_dict
    innermost(model).forward = types.MethodType(_forward(engine, classifier=loaded.classifier), innermost(model))
    return tied


def _forward(engine: EngineModel, *, classifier: bool) -> Callable[..., Any]:
    @torch.no_grad()
    def forward(
        _self: Any, input_ids: Any = None, attention_mask: Any = None, past_key_values: Any = None, **_: Any
    ) -> Any:
        """Run the stock model's forward with the engine; generation's cache object holds the engine's own."""
        ids, new, cache = input_ids, input_ids.shape[1], None
        if past_key_values is not None:
            cache = vars(past_key_values).setdefault("engine", {})
            if not engine.caches:
                ids = cache["ids"] = torch.cat([cache.get("ids", ids[:, :0]), ids], 1)
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask
        logits = engine.logits(ids, mask, cache if engine.caches else None)
        if classifier:
            return SequenceClassifierOutput(logits=logits)
        return CausalLMOutputWithPast(logits=logits[:, -new:], past_key_values=past_key_values)

    return forward
