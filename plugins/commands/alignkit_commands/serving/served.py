"""The models that are served: loaded once, adapters of one base on one copy of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit import build_model
from alignkit.config import ModelConfig
from alignkit.data.table.cache import tokenizer_content
from alignkit.errors import ConfigError, ModelError
from alignkit.models.paths import adapter_parts, resolve_path
from alignkit.models.positions import position_limit


def named_targets(targets: Sequence[str]) -> dict[str, str]:
    """Return the models to serve by name; raises :class:`ConfigError` for two of one name."""
    found: dict[str, str] = {}
    for text in targets:
        given, equals, target = text.partition("=")
        if not equals or Path(text).exists():
            given, target = Path(text).resolve().name if Path(text).exists() else text, text
        if not given or not target:
            raise ConfigError(f"{text}: write NAME=RUN")
        if given in found:
            raise ConfigError(f"{found[given]} and {target} are both called {given}: name one of them as NAME={target}")
        found[given] = target
    return found


@dataclass
class Served:
    """A model by the name that clients use."""

    name: str
    model: Any
    tokenizer: Any
    adapter: str | None = None
    """The adapter to switch on, where several share ``model``."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while ``model`` computes."""

    @property
    def positions(self) -> int | None:
        return position_limit(self.model)

    @contextmanager
    def in_use(self) -> Iterator[Any]:
        """Yield the model, with its adapter switched on, for this thread alone."""
        with self.lock:
            if self.adapter is not None:
                self.model.set_adapter(self.adapter)
            yield self.model

    def prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        """Return the token ids of a prompt given as text or as ids."""
        if not isinstance(prompt, str):
            return [int(token) for token in prompt]
        ids = list(self.tokenizer(prompt)["input_ids"])
        if ids and ids[-1] == self.tokenizer.eos_token_id:
            ids.pop()  # some tokenizers append the end token to every text
        return ids

    def chat_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the token ids of a conversation, by the model's chat template, up to where its answer begins."""
        if not self.tokenizer.chat_template:
            raise ConfigError(f"model {self.name} has no chat template: use completions")
        turns = [dict(message) for message in messages]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def load_served(named: Mapping[str, str], dtype: str) -> dict[str, Served]:
    """Load the models; raises :class:`ModelError` for one that cannot be loaded or does not generate."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind: Any = {"auto": "float32" if device == "cpu" else "auto"}.get(dtype, dtype)
    found: dict[str, Served] = {}
    for name, target in named.items():
        own = _adapter(target)
        with_same_base = [one for other, one in found.items() if own and _base(named[other]) == own[0]]
        shared = _shared(name, own[1], with_same_base[0], target) if own and with_same_base else None
        if shared is None:
            loaded = build_model(ModelConfig(name=target, dtype=kind))
            if loaded.classifier:
                raise ModelError(f"{target} is a reward model: it scores answers and cannot generate them")
            model = loaded.model.to(device).eval()
            shared = Served(name, model, loaded.tokenizer, "default" if own else None)
        found[name] = shared
    return found


def _adapter(target: str) -> tuple[str, str] | None:
    """Return the base and the directory of an adapter, None for any other model."""
    base, adapter = adapter_parts(resolve_path(target), ModelConfig(name=target))
    return None if adapter is None else (base, adapter)


def _base(target: str) -> str | None:
    found = _adapter(target)
    return None if found is None else found[0]


def _shared(name: str, adapter: str, other: Served, target: str) -> Served | None:
    """Return the adapter on the base of another one, None where it trained more than low-rank matrices, or other tokens."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(adapter)
    own = build_model(ModelConfig(name=target), meta=True).tokenizer
    if getattr(config, "modules_to_save", None) or tokenizer_content(own) != tokenizer_content(other.tokenizer):
        return None
    other.model.load_adapter(adapter, adapter_name=name)
    other.model.eval()
    return Served(name, other.model, own, name, other.lock)
