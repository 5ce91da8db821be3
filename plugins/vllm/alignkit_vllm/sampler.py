"""Sampling with vLLM in the same process; it receives the policy's weights before every rollout."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from alignkit.errors import ConfigError
from alignkit.models.generate import GeneratedAnswer, cut_at_end
from alignkit.onpolicy.settings import OnPolicySettings
from alignkit.scoring.critic import is_critics

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MEMORY_SHARE = 0.3
"""Share of the GPU's memory for vLLM; the rest is left for training."""


class VLLMSampler:
    """Generates with vLLM's paged attention and continuous batching (arXiv:2309.06180)."""

    @staticmethod
    def unavailable() -> str:
        """Return why it cannot be used, or an empty text."""
        missing = importlib.util.find_spec("vllm") is None
        return "needs vLLM, which is not installed: pip install vllm" if missing else ""

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

    def __call__(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[GeneratedAnswer]:
        weights = list(merged_weights(self.model))
        self.engine.apply_model(lambda inner: inner.load_weights(weights) and None)
        self.engine.reset_prefix_cache()  # computed with older weights
        options = {
            "max_tokens": self.settings.max_new_tokens,
            "temperature": self.settings.temperature,
            "top_p": self.settings.top_p,
            "top_k": self.settings.top_k or -1,
            "stop_token_ids": sorted(self.ends),
        }
        parameters = [self.parameters(**options, seed=seed) for seed in seeds]
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self.engine.generate(inputs, parameters, use_tqdm=False)
        return [cut_at_end(list(output.outputs[0].token_ids), self.ends) for output in outputs]


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
