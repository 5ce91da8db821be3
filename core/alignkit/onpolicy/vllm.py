"""Sampling with vLLM in the same process; it receives the policy's weights before every rollout."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from alignkit.errors import ConfigError
from alignkit.models.generate import GeneratedAnswer
from alignkit.scoring.critic import is_critics

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignkit.onpolicy.settings import OnPolicySettings

_MEMORY_SHARE = 0.3
"""Share of the GPU's memory for vLLM; the rest is left for training."""


class VLLMSampler:
    """Generates with vLLM's paged attention and continuous batching (arXiv:2309.06180)."""

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        settings: OnPolicySettings,
        stop: Collection[int],
        path: str,
    ) -> None:
        if not torch.cuda.is_available():
            raise ConfigError("method.sampler=vllm needs a GPU, and none was found: use method.sampler=model")
        import vllm  # type: ignore[import-not-found]

        self.model, self.settings = model, settings
        self.ends = {*stop, tokenizer.eos_token_id}
        self.engine: Any = vllm.LLM(model=path, gpu_memory_utilization=_MEMORY_SHARE, enforce_eager=True)
        self.parameters: Any = vllm.SamplingParams

    def __call__(self, prompts: Sequence[Sequence[int]], seed: int) -> list[GeneratedAnswer]:
        """Return one answer per prompt, in the order of the prompts."""
        weights = list(merged_weights(self.model))
        self.engine.apply_model(lambda inner: inner.load_weights(weights) and None)
        self.engine.reset_prefix_cache()  # computed with older weights
        settings = self.settings
        parameters = [
            self.parameters(
                max_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                top_p=settings.top_p,
                top_k=settings.top_k or -1,
                stop_token_ids=sorted(self.ends),
                seed=seed + i,
            )
            for i in range(len(prompts))
        ]
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self.engine.generate(inputs, parameters, use_tqdm=False)
        return [self._answer(list(output.outputs[0].token_ids)) for output in outputs]

    def _answer(self, tokens: list[int]) -> GeneratedAnswer:
        return (
            GeneratedAnswer(tokens[:-1], tokens[-1])
            if tokens and tokens[-1] in self.ends
            else GeneratedAnswer(tokens, None)
        )


def merged_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the policy's weights under the base model's names, adapters merged in, critics left out.

    Every layer is merged into a copy of its weights: merging in place and unmerging would change the frozen weights by
    rounding errors in every rollout.
    """
    from peft import PeftModel, get_base_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    if not isinstance(model, PeftModel):
        weights = model.state_dict()
    else:
        weights = get_base_model_state_dict(model)
        for path, module in model.get_base_model().named_modules():
            if isinstance(module, BaseTunerLayer) and not is_critics(path):
                weights |= {f"{path}.{name}": weight for name, weight in _merged(module).items()}
            elif isinstance(module, ModulesToSaveWrapper):
                trained = module.modules_to_save[module.active_adapters[0]].state_dict()
                weights |= {f"{path}.{name}": weight for name, weight in trained.items()}
    yield from ((name, weight.detach()) for name, weight in weights.items() if not is_critics(name))


def _merged(layer: Any) -> dict[str, torch.Tensor]:
    """Return an adapted layer's weights with its adapters merged in; the layer is unchanged."""
    parameters = dict(layer.get_base_layer().named_parameters())
    kept = {name: parameter.data for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.data = parameter.data.clone()
    try:
        layer.merge()
        return {name: parameter.data for name, parameter in parameters.items()}
    finally:
        for name, parameter in parameters.items():
            parameter.data = kept[name]
        layer.merged_adapters.clear()
