"""Rollouts by vLLM in the same process: it generates, and gets the policy's weights before every rollout."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from alignkit.errors import ConfigError
from alignkit.samples import Answer
from alignkit.scoring.critic import is_critics

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignkit.onpolicy import OnPolicySettings

_MEMORY_SHARE = 0.3
"""Share of the GPU's memory vLLM may take: the rest is for training."""


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
        if importlib.util.find_spec("vllm") is None:
            raise ConfigError(
                "method.sampler=vllm needs vLLM, which is not installed: pip install vllm, or take sampler=model"
            )
        if not torch.cuda.is_available():
            raise ConfigError("method.sampler=vllm needs a GPU, and there is none here: take sampler=model")
        import vllm  # type: ignore[import-not-found]

        self.model, self.settings = model, settings
        self.ends = {*stop, tokenizer.eos_token_id}
        self.engine: Any = vllm.LLM(model=path, gpu_memory_utilization=_MEMORY_SHARE, enforce_eager=True)
        self.parameters: Any = vllm.SamplingParams

    def __call__(self, prompts: Sequence[Sequence[int]], seed: int) -> list[Answer]:
        """Answer every prompt once, in their order."""
        weights = list(merged_weights(self.model))
        self.engine.apply_model(lambda inner: inner.load_weights(weights) and None)
        self.engine.reset_prefix_cache()  # what it holds was computed with older weights
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

    def _answer(self, tokens: list[int]) -> Answer:
        return Answer(tokens[:-1], tokens[-1]) if tokens and tokens[-1] in self.ends else Answer(tokens, None)


def merged_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the policy's weights under the base model's names, adapters merged in, critics left out."""
    adapted = hasattr(model, "merge_adapter")
    if adapted:
        model.merge_adapter()
    try:
        for name, weight in (model.get_base_model() if adapted else model).state_dict().items():
            if not is_critics(name) and "lora_" not in name:
                plain = name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
                if ".original_module." not in name:
                    yield plain, weight.detach().clone()
    finally:
        if adapted:
            model.unmerge_adapter()
