"""A vLLM server: its OpenAI-compatible completions, and the weight transfer over HTTP."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
from alignkit.errors import ConfigError, RunFailedError, shortened
from alignkit.system.terminal import redact

from alignkit_vllm.register import BACKEND
from alignkit_vllm.settings import VLLMSettings, too_old


class Server:
    """The server at ``vllm.url``, which answers many prompts at a time.

    Raises:
        ConfigError: the server does not answer or cannot be used; the message says how to start one.
    """

    def __init__(self, settings: VLLMSettings, path: str, at_once: int) -> None:
        self.url, self.timeout, self.at_once = str(settings.url), settings.timeout, at_once
        self.shown = redact(self.url)
        backend = BACKEND if settings.transfer == "files" else "nccl"
        transfer = json.dumps({"backend": backend})
        self.start = f"VLLM_SERVER_DEV_MODE=1 vllm serve {path} --weight-transfer-config '{transfer}'"
        self.session = requests.Session()
        self.session.mount(self.url, requests.adapters.HTTPAdapter(pool_maxsize=at_once))
        if key := os.environ.get("VLLM_API_KEY"):
            self.session.headers["Authorization"] = f"Bearer {key}"
        self._refuse_old()
        models = self._opening("GET", "v1/models").get("data") or [{}]
        if not isinstance(models[0].get("max_model_len"), int):
            raise ConfigError(f"method.vllm.url: {self.shown} is not a vLLM server: start one with {self.start}")
        self.model, self.limit = models[0]["id"], int(models[0]["max_model_len"])
        self.workers = int(self._opening("GET", "get_world_size")["world_size"])

    def _refuse_old(self) -> None:
        found = self._opening("GET", "version").get("version", "")
        try:
            problem = too_old("needs", found, "upgrade vLLM there")
        except ValueError:  # not a version
            problem = f"is not a vLLM server: start one with {self.start}"
        if problem:
            raise ConfigError(f"method.vllm.url: {self.shown} {problem}")

    def _opening(self, method: str, path: str) -> dict[str, Any]:
        """Return the answer to a request before training."""
        try:
            answer = self.session.request(method, f"{self.url}/{path}", timeout=min(self.timeout, 30))
            found = answer.json() if answer.ok else None
        except requests.ConnectionError as error:
            raise ConfigError(
                f"method.vllm.url: no server answers at {self.shown}: start one with {self.start}, or use sampler model"
            ) from error
        except requests.Timeout as error:
            raise ConfigError(f"method.vllm.url: {self.shown} does not answer within 30 seconds") from error
        except ValueError:
            found = None
        if answer.status_code in (401, 403):
            raise ConfigError(f"method.vllm.url: {self.shown} asks for a key: set VLLM_API_KEY in the environment")
        if not isinstance(found, dict):
            what = (
                "is not a vLLM server"
                if path != "get_world_size"
                else "takes no weights (it is not in development mode)"
            )
            raise ConfigError(f"method.vllm.url: {self.shown} {what}: start one with {self.start}")
        return found

    # ------------------------------------------------------------------ weight transfer

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """See :class:`~alignkit_vllm.transfer.Control`."""
        try:
            self._post("init_weight_transfer_engine", {"init_info": init_info})
        except RunFailedError as error:
            raise ConfigError(
                f"method.vllm.url: {self.shown} was not started for this weight transfer: start it with {self.start}"
            ) from error

    def start_weight_update(self) -> None:
        """See :class:`~alignkit_vllm.transfer.Control`."""
        self._post("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """See :class:`~alignkit_vllm.transfer.Control`."""
        try:
            self._post("update_weights", {"update_info": update_info})
        except RunFailedError as error:
            raise RunFailedError(
                f"{error}; it must serve {self.start.split()[3]} and see the files of method.vllm.folder"
            ) from error

    def finish_weight_update(self) -> None:
        """Forget the keys and values that older weights computed, too."""
        self._post("finish_weight_update")
        self._post("reset_prefix_cache")

    # ------------------------------------------------------------------ sampling

    def answer(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int | None], options: Mapping[str, Any]
    ) -> list[tuple[list[int], list[float]]]:
        """Return the sampled tokens for each prompt, an end token included, and their log-probabilities before temperature."""
        asked = {"return_token_ids": True, "logprobs": 0, **options}

        def one(prompt: Sequence[int], seed: int | None) -> tuple[list[int], list[float]]:
            found = self._complete({"prompt": list(prompt), "seed": seed, **asked})
            return list(found["token_ids"]), list(found["logprobs"]["token_logprobs"])

        with ThreadPoolExecutor(min(self.at_once, max(len(prompts), 1))) as threads:
            return list(threads.map(one, prompts, seeds))

    def logps(self, tokens: Sequence[int]) -> list[float]:
        """Return the log-probability of each token but the first, given those before."""
        found = self._complete({"prompt": list(tokens), "max_tokens": 1, "prompt_logprobs": 0})["prompt_logprobs"]
        return [at[str(token)]["logprob"] for token, at in zip(tokens[1:], found[1:], strict=True)]

    def rest(self) -> None:
        """Do nothing: a server has devices of its own."""

    def _complete(self, request: dict[str, Any]) -> dict[str, Any]:
        # The server takes what is missing from the model's generation_config.json.
        plain = {"repetition_penalty": 1.0, "min_p": 0.0}
        choice: dict[str, Any] = self._post("v1/completions", {"model": self.model, **plain, **request})["choices"][0]
        return choice

    def _post(self, path: str, content: Mapping[str, Any] | None = None) -> dict[str, Any]:
        try:
            answer = self.session.post(f"{self.url}/{path}", json=content, timeout=self.timeout)
        except requests.Timeout as error:
            raise RunFailedError(
                f"the vLLM server {self.shown} did not answer {path} within {self.timeout:g} seconds (method.vllm.timeout)"
            ) from error
        except requests.RequestException as error:
            raise RunFailedError(f"the vLLM server {self.shown} does not answer any more ({path})") from error
        if not answer.ok:
            said = shortened(" ".join(answer.text.split()), 300)
            raise RunFailedError(f"the vLLM server {self.shown} refused {path} (status {answer.status_code}): {said}")
        found: dict[str, Any] = answer.json() if answer.content else {}
        return found
