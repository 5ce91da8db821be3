"""An engine of vLLM for one process of a run, on that process's own device."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias, TypeVar

import torch
from alignkit.errors import ConfigError, RunFailedError, described

from alignkit_vllm.register import BACKEND, OWNER
from alignkit_vllm.settings import VLLMSettings

T = TypeVar("T")

Sampled: TypeAlias = tuple[list[int], list[float]]
"""Tokens, and the log-probability of each one."""

_OF_A_RUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


class Engine:
    """``vllm.LLM``, which generates in processes of its own. It starts without weights: the policy's are sent to it."""

    def __init__(self, model: Any, settings: VLLMSettings, path: str) -> None:
        weight = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
        options: dict[str, Any] = {
            "dtype": str(weight.dtype).removeprefix("torch."),
            "gpu_memory_utilization": settings.memory,
            "max_model_len": settings.max_length,
            "enforce_eager": settings.eager,
            "enable_sleep_mode": settings.sleep,
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "disable_log_stats": True,
            "logprobs_mode": "processed_logprobs",  # of the distribution that tokens are drawn from
        }
        self.sleeps = settings.sleep
        with TemporaryDirectory(prefix="alignkit-vllm-") as folder, _as_alone(weight.device):
            import vllm
            from vllm.config import WeightTransferConfig

            # A model's own code is beside its weights, and the policy runs it already.
            if getattr(model.config, "auto_map", None):
                options |= {"model": path, "trust_remote_code": True}
            else:
                model.config.save_pretrained(folder)
                options["model"] = folder
            try:
                self.llm: Any = vllm.LLM(**options, weight_transfer_config=WeightTransferConfig(backend=BACKEND))
            except Exception as error:
                raise ConfigError(
                    f"method.vllm: the engine cannot start ({described(error)}; vLLM's own messages are above): change "
                    "method.vllm.memory, max_length or eager, or use sampler model"
                ) from error
        self.parameters: Any = vllm.SamplingParams
        self.limit: int = self.llm.model_config.max_model_len

    # ------------------------------------------------------------------ weight transfer

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """See :class:`~alignkit_vllm.transfer.Control`."""
        self._call(lambda: self.llm.init_weight_transfer_engine({"init_info": init_info}))

    def start_weight_update(self) -> None:
        """Wake an engine that sleeps: its weights first, which the update fills."""
        if self.sleeps:
            self._call(lambda: self.llm.wake_up(tags=["weights"]))
        self._call(lambda: self.llm.start_weight_update())

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """See :class:`~alignkit_vllm.transfer.Control`."""
        self._call(lambda: self.llm.update_weights({"update_info": update_info}))

    def finish_weight_update(self) -> None:
        """Forget the keys and values that older weights computed, too."""
        self._call(lambda: self.llm.finish_weight_update())
        if self.sleeps:
            self._call(lambda: self.llm.wake_up(tags=["kv_cache"]))
        self._call(lambda: self.llm.reset_prefix_cache())

    # ------------------------------------------------------------------ sampling

    def answer(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int | None], options: Mapping[str, Any]
    ) -> list[Sampled]:
        """Return the sampled tokens for each prompt, an end token included, and their log-probabilities."""
        parameters = [self.parameters(**options, seed=seed, logprobs=0, detokenize=False) for seed in seeds]
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._call(lambda: self.llm.generate(inputs, parameters, use_tqdm=False)) if inputs else []
        found = [(list(output.outputs[0].token_ids), output.outputs[0].logprobs) for output in outputs]
        return [(ids, [at[token].logprob for token, at in zip(ids, own, strict=True)]) for ids, own in found]

    def logps(self, tokens: Sequence[int]) -> list[float]:
        """Return the log-probability of each token but the first, given those before."""
        parameters = self.parameters(max_tokens=1, prompt_logprobs=0, detokenize=False)
        (output,) = self._call(
            lambda: self.llm.generate([{"prompt_token_ids": list(tokens)}], parameters, use_tqdm=False)
        )
        return [at[token].logprob for token, at in zip(tokens[1:], output.prompt_logprobs[1:], strict=True)]

    def rest(self) -> None:
        """Free the device's memory until the next weights are sent, if the settings say so."""
        if self.sleeps:
            self._call(lambda: self.llm.sleep(level=2))  # the weights are sent again anyway

    def _call(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except Exception as error:
            raise RunFailedError(f"the vLLM engine failed (its own messages are above): {described(error)}") from error


@contextmanager
def _as_alone(device: torch.device) -> Iterator[None]:
    """Let processes that are started in the block see ``device`` alone, and not that they belong to a run of several."""
    changed: dict[str, str | None] = dict.fromkeys(_OF_A_RUN)
    changed |= {name: None for name in os.environ if name.startswith("TORCHELASTIC_")}
    changed |= {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", OWNER: str(os.getpid())}
    changed["VLLM_LOGGING_LEVEL"] = os.environ.get("VLLM_LOGGING_LEVEL", "WARNING")
    if device.type == "cuda":
        visible = "HIP_VISIBLE_DEVICES" if torch.version.hip else "CUDA_VISIBLE_DEVICES"
        changed[visible] = own_device(os.environ.get(visible), device.index or 0)
    before = {name: os.environ.get(name) for name in changed}
    _set(changed)
    resource_tracker.ensure_running()  # starting it unblocks these signals
    # Ctrl-C and a closed terminal reach all processes; the run ends its engine itself, after a checkpoint.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        _set(before)


def own_device(visible: str | None, index: int) -> str:
    """Return the visible-devices variable of a process that sees one device, given this process's variable.

    >>> own_device(None, 1), own_device("4,5", 1), own_device("GPU-a, GPU-b", 0)
    ('1', '5', 'GPU-a')
    """
    return visible.split(",")[index].strip() if visible else str(index)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            with suppress(KeyError):
                del os.environ[name]
        else:
            os.environ[name] = value
