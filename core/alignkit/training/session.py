"""One run's plugins: a plugin manager of its own, and typed methods in front of its hooks.

pluggy checks names of hooks and arguments but knows no types, and lets the plugin registered last win a first-answer hook.
So what a plugin must not do (misspell a hook, give an argument a default, take the method's place) is refused when the
session opens, and what a method hands back is checked on every call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

from alignkit import settings
from alignkit.contract import registry
from alignkit.contract.checks import check_batch, check_loss, check_method, check_service, implementations
from alignkit.contract.hooks import PROJECT, AlignSpecs
from alignkit.errors import PluginError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import Trainer

    from alignkit.config import RunConfig
    from alignkit.contract.batch import Batch
    from alignkit.contract.model import LoadedModel
    from alignkit.contract.rows import RawRows
    from alignkit.contract.trainer_parts import TrainerParts
    from alignkit.contract.types import LossOutput, Method, Policy, Rollouts


@dataclass(frozen=True)
class Session:
    """The plugins of one run and its configuration."""

    config: RunConfig
    method: Method[Any]
    plugins: pluggy.PluginManager

    @classmethod
    def open(cls, config: RunConfig, *, only: str | None = None) -> Session:
        """Load the method and the services that ``config`` names, and check every hook they implement.

        ``only``: a hook; services that do not implement it are left out (a tracker, where only data is loaded).

        Raises :class:`PluginError` for a plugin that cannot be used and :class:`~alignkit.errors.ConfigError` for a
        setting of the method that cannot.
        """
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(AlignSpecs)
        entry, method_type = registry.load_method(config.method.name)
        method: Method[Any] = _made(entry, method_type, settings.method_settings(method_type, config))
        check_method(entry, method)
        _register(manager, entry, method)
        for name in dict.fromkeys(config.run.services):
            service = registry.find("align.services", name)
            loaded = registry.load(service)
            if only is not None and all(found.hook != only for found in implementations(loaded)):
                continue
            plugin = _made(service, loaded) if isinstance(loaded, type) else loaded
            check_service(service, plugin, entry)
            _register(manager, service, plugin)
        return cls(config, method, manager)

    @property
    def builds_trainer(self) -> bool:
        """Whether the method brings a trainer of its own."""
        return any(found.hook == "align_build_trainer" and not found.wraps for found in implementations(self.method))

    # ------------------------------------------------------------------ exclusive hooks

    def build_model(self) -> LoadedModel | None:
        """Return the method's own model; None: it trains the default one."""
        with self._blame("align_build_model"):
            model: LoadedModel | None = self.plugins.hook.align_build_model(config=self.config)
        return model

    def prepare_batch(self, policy: Policy, batch: Batch, progress: float, rollouts: Rollouts | None = None) -> Batch:
        """Return one optimizer step's rows as the loss needs them: the method's answer, or the batch as it is."""
        with self._blame("align_prepare_batch"):
            answer = self.plugins.hook.align_prepare_batch(
                policy=policy, batch=batch, progress=progress, rollouts=rollouts
            )
            return batch if answer is None else check_batch(answer, self.plugins.get_name(self.method))

    def compute_loss(self, policy: Policy, batch: Batch, progress: float) -> LossOutput:
        """Return the loss of one micro-batch; raises :class:`PluginError` where it is not what the engine can divide."""
        with self._blame("align_compute_loss"):
            answer = self.plugins.hook.align_compute_loss(policy=policy, batch=batch, progress=progress)
            return check_loss(answer, batch, self.plugins.get_name(self.method))

    def build_trainer(self, parts: TrainerParts) -> Trainer | None:
        """Return the method's own trainer; None: the engine's is used."""
        with self._blame("align_build_trainer"):
            return self.plugins.hook.align_build_trainer(parts=parts)

    # ------------------------------------------------------------------ first answer

    def load_data(self, source: str, split: str | None) -> RawRows | None:
        """Return the rows of ``source`` from the first plugin that knows it; None: no plugin does."""
        with self._blame("align_load_data"):
            rows: RawRows | None = self.plugins.hook.align_load_data(source=source, split=split, config=self.config)
        return rows

    # ------------------------------------------------------------------ broadcast

    def run_started(self, directory: Path) -> None:
        """Tell every plugin that the run is about to train."""
        with self._blame("align_run_started"):
            self.plugins.hook.align_run_started(config=self.config, directory=directory)

    def log(self, record: dict[str, Any]) -> None:
        """Tell every plugin that a line of metrics.jsonl was written."""
        with self._blame("align_log"):
            self.plugins.hook.align_log(record=record)

    def checkpoint_saved(self, step: int, path: Path) -> None:
        """Tell every plugin that a checkpoint is complete on disk."""
        with self._blame("align_checkpoint_saved"):
            self.plugins.hook.align_checkpoint_saved(step=step, path=path)

    def run_finished(self, summary: dict[str, Any], directory: Path) -> None:
        """Tell every plugin that the run ended."""
        with self._blame("align_run_finished"):
            self.plugins.hook.align_run_finished(summary=summary, directory=directory)

    @contextmanager
    def _blame(self, hook: str) -> Iterator[None]:
        """Add to an exception which plugin raised it; the exception itself goes on unchanged (an out-of-memory stays one)."""
        try:
            yield
        except Exception as error:
            raised_in = set()
            trace = error.__traceback__
            while trace is not None:
                raised_in.add(trace.tb_frame.f_code)
                trace = trace.tb_next
            for implementation in getattr(self.plugins.hook, hook).get_hookimpls():
                if getattr(implementation.function, "__code__", None) in raised_in:
                    error.add_note(f"in {hook} of {implementation.plugin_name}")
            raise


def _made(entry: registry.PluginEntry, factory: type[Any], *arguments: Any) -> Any:
    try:
        return factory(*arguments)
    except Exception as error:
        raise PluginError(f"{entry} cannot be set up: {type(error).__name__}: {error}") from error


def _register(manager: pluggy.PluginManager, entry: registry.PluginEntry, plugin: object) -> None:
    try:
        manager.register(plugin, name=str(entry))
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        raise PluginError(f"{entry} cannot be registered: {error}") from error
