"""Sampling with vLLM, which receives the policy's weights before every rollout."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from alignkit.errors import ConfigError, RunFailedError
from alignkit.models.generate import COLDEST, GeneratedAnswer, cut_at_end, end_tokens
from alignkit.onpolicy.settings import OnPolicySettings
from alignkit.scoring.evaluating import undisturbed
from alignkit.system.distributed import rank
from alignkit.system.sharded import is_sharded
from alignkit.system.together import gathered, together

from alignkit_vllm.settings import VLLMSettings, missing
from alignkit_vllm.transfer import Send, by_files, by_nccl
from alignkit_vllm.weights import merged_weights as merged_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FAR = 0.5
"""Mean difference of log-probabilities from which vLLM does not have the policy; 16-bit numbers make about 0.02."""


class VLLMSampler:
    """Generates with vLLM's paged attention and continuous batching (arXiv:2309.06180).

    A server gets the weights from the first process; then all processes sample from it. Otherwise every process sends them to
    its own engine.
    """

    settings_type = VLLMSettings

    @staticmethod
    def unavailable(settings: VLLMSettings) -> str:
        """Return why it cannot be used with these settings, or an empty text."""
        return missing(settings)

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        settings: OnPolicySettings,
        stop: Collection[int],
        path: str,
    ) -> None:
        self.model, self.settings = model, settings
        self.ends = end_tokens(model, tokenizer) | set(stop)
        own: VLLMSettings = settings.vllm  # type: ignore[attr-defined]  # the section that settings_type adds
        base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        if getattr(base, "is_quantized", False):
            raise ConfigError(
                "method.sampler: vllm cannot get quantized weights: use sampler model, or no model.quantization"
            )
        self.shared = own.url is not None
        plain = settings.temperature == 1 and settings.top_p == 1 and settings.top_k == 0
        self.own_logps = plain or not self.shared
        if getattr(settings, "correction", "none") != "none" and not self.own_logps:
            raise ConfigError(
                "method.correction: a vLLM server gives log-probabilities before temperature, top_p and top_k: set temperature=1, "
                "top_p=1 and top_k=0, or correction=none"
            )
        self.send = self._open(own, base, path)
        try:
            self.sync()
            self._compare(base.config.get_text_config().vocab_size)
        except RunFailedError as error:  # before training: the server serves another model, or does not see the weights
            raise ConfigError(f"method.vllm: {error}") from error
        self.engine.rest()

    def _open(self, own: VLLMSettings, base: Any, path: str) -> Send:
        from alignkit_vllm.engine import Engine
        from alignkit_vllm.server import Server

        self.engine: Engine | Server
        if not self.shared:
            self.engine = Engine(base, own, path)
            return by_files(self.model, self.engine, own.folder)
        self.engine = server = Server(own, path, self.settings.samples_per_batch)
        if own.transfer == "nccl":
            return by_nccl(self.model, server, rank(), server.workers)
        return by_files(self.model, server if rank() == 0 else None, own.folder)

    def __call__(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int] | None) -> list[GeneratedAnswer]:
        """Return one answer per prompt, a greedy one without seeds; every process of a sharded policy, or with a server, calls this together."""
        longest = max(map(len, prompts), default=0) + self.settings.max_new_tokens
        if longest > self.engine.limit:
            raise ConfigError(
                f"vLLM takes {self.engine.limit:,} tokens, fewer than the {longest:,} of a prompt and its answer: raise "
                f"{'--max-model-len of the server' if self.shared else 'method.vllm.max_length'}, or shorten one of them"
            )
        self.sync()
        s = self.settings
        options = {
            "max_tokens": s.max_new_tokens,
            "temperature": s.temperature if s.temperature >= COLDEST and seeds is not None else 0.0,
            "top_p": s.top_p,
            "top_k": s.top_k,
            "stop_token_ids": sorted(self.ends),
            "ignore_eos": True,  # the ends are those of the policy's tokenizer and generation settings
        }
        answers = self.engine.answer(prompts, [None] * len(prompts) if seeds is None else seeds, options)
        self.engine.rest()
        return [cut_at_end(tokens, self.ends, logps if self.own_logps else None) for tokens, logps in answers]

    def sync(self) -> None:
        """Send the policy's weights to vLLM."""
        if not self.shared:
            self.send()
            return
        gathered("sampling with vLLM", None)  # no process generates any more
        together("weights for vLLM", self.send if rank() == 0 or is_sharded(self.model) else lambda: None)

    def _compare(self, vocabulary: int) -> None:
        """Raise if vLLM does not give the policy's log-probabilities: its model is another one, or lacks weights."""
        tokens = [(7 * i + 3) % vocabulary for i in range(min(16, self.engine.limit - 1))]
        found = torch.tensor(self.engine.logps(tokens))
        ids = torch.tensor([tokens], device=next(self.model.parameters()).device)
        with undisturbed(self.model):
            logits = self.model(input_ids=ids).logits[0, :-1].float().cpu()
        expected = logits.log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
        away = (found - expected).abs().mean().item()
        if not away < FAR:
            raise RunFailedError(
                f"vLLM does not compute the policy's probabilities (log-probabilities are {away:.2f} apart on average): "
                + ("the server serves another model" if self.shared else "it does not support this model or adapter")
                + ", or use sampler model"
            )
