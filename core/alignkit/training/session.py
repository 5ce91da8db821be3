"""The plugins of one run: a plugin manager of its own, with typed methods in front of its hooks.

pluggy checks hook and argument names but has no types, and the plugin registered last wins a first-answer hook. So mistakes
(a misspelt hook, an argument with a default, a service in the method's place) are refused when the session opens, and what
a method returns is checked on every call.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from alignkit import settings
from alignkit.config import RunConfig
from alignkit.contract import Batch, LoadedModel, LossOutput, Method, Policy, RawRows, Rollouts, TrainerParts, registry
from alignkit.contract.checks import check_batch, check_loss, check_method, check_rows, check_service, implementations
from alignkit.contract.guard import exits_raised, loading, passes
from alignkit.contract.hooks import PROJECT, AlignSpecs
from alignkit.errors import PluginError, RunFailedError, described
from alignkit.settings.training_arguments import trackers
from alignkit.system.quiet import stdout_to_stderr

if TYPE_CHECKING:
    from transformers import Trainer


@dataclass(frozen=True)
class Session:
    """The plugins of one run and its configuration."""

    config: RunConfig
    method: Method[Any]
    plugins: pluggy.PluginManager

    @classmethod
    def open(cls, config: RunConfig, *, only: str | None = None) -> Session:
        """Load the method and the services that ``config`` names, and check every hook they implement.

        ``only``: a hook; services without it are left out (a tracker, when only data is loaded). Raises
        :class:`PluginError` for a plugin, and :class:`~alignkit.errors.ConfigError` for a setting of the method, that
        cannot be used.
        """
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(AlignSpecs)
        entry, method_type = registry.load_method(config.method.name)
        method: Method[Any] = _made(entry, method_type, settings.method_settings(method_type, config))
        check_method(entry, method)
        _register(manager, entry, method)
        for name in dict.fromkeys([*config.run.services, *trackers(config)]):
            service = registry.find("align.services", name)
            loaded = registry.load(service)
            if only is not None and all(found.hook != only for found in implementations(loaded)):
                continue
            plugin = _made(service, loaded) if isinstance(loaded, type) else loaded
            check_service(service, plugin, entry)
            _register(manager, service, plugin)
        return cls(config, method, manager)

    # ------------------------------------------------------------------ exclusive hooks

    def build_model(self) -> LoadedModel | None:
        """Return the method's own model; None: it trains the default one."""
        model: LoadedModel | None = self._call("align_build_model", config=self.config)
        return model

    def prepare_batch(self, policy: Policy, batch: Batch, progress: float, rollouts: Rollouts | None = None) -> Batch:
        """Return one optimizer step's rows as the loss needs them: the method's answer, or the batch unchanged."""
        arguments = {"policy": policy, "batch": batch, "progress": progress, "rollouts": rollouts}
        answer = self._call("align_prepare_batch", **arguments)
        return batch if answer is None else check_batch(answer, self.plugins.get_name(self.method))

    def compute_loss(self, policy: Policy, batch: Batch, progress: float) -> LossOutput:
        """Return the loss of one micro-batch; raises :class:`PluginError` if the engine cannot divide or differentiate it."""
        answer = self._call("align_compute_loss", policy=policy, batch=batch, progress=progress)
        return check_loss(answer, batch, self.plugins.get_name(self.method))

    def build_trainer(self, parts: TrainerParts) -> Trainer | None:
        """Return the method's own trainer; None: the engine's is used."""
        return self._call("align_build_trainer", parts=parts)

    # ------------------------------------------------------------------ first answer

    def load_data(self, source: str, split: str | None) -> RawRows | None:
        """Return the rows of ``source`` from the first plugin that knows it; None: no plugin does."""
        rows: RawRows | None = self._call("align_load_data", source=source, split=split, config=self.config)
        return check_rows(rows, " or ".join(i.plugin_name for i in self.plugins.hook.align_load_data.get_hookimpls()))

    # ------------------------------------------------------------------ broadcast

    def run_started(self, directory: Path) -> None:
        """Tell every plugin that the run is about to train."""
        self._call("align_run_started", config=self.config, directory=directory)

    def log(self, record: dict[str, Any]) -> None:
        """Tell every plugin that a line of metrics.jsonl was written."""
        self._call("align_log", record=record)

    def checkpoint_saved(self, step: int, path: Path) -> None:
        """Tell every plugin that a checkpoint is complete on disk."""
        self._call("align_checkpoint_saved", step=step, path=path)

    def run_finished(self, summary: dict[str, Any], directory: Path) -> None:
        """Tell every plugin that the run ended."""
        self._call("align_run_finished", summary=summary, directory=directory)

    def _call(self, hook: str, **arguments: Any) -> Any:
        """Call a hook; whatever ends it becomes an error that names the plugin (see :func:`~alignkit.contract.guard.running`)."""
        caller = getattr(self.plugins.hook, hook)
        implementations = {getattr(found.function, "__code__", None): found for found in caller.get_hookimpls()}
        if not implementations:
            return None
        try:
            with stdout_to_stderr(), exits_raised():
                return caller(**arguments)
        except BaseException as error:  # the plugin is the last one with a hook in the traceback
            codes = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
            raised_in = [implementations[code] for code, _ in codes if code in implementations]
            plugin = (raised_in or [*implementations.values()])[-1]
            if passes(error):
                error.add_note(f"in {hook} of {plugin.plugin_name}")
                raise
            file = getattr(getattr(plugin.function, "__code__", None), "co_filename", "")
            places = [f" ({file}:{line})" for code, line in codes if code.co_filename == file][-1:]
            raise RunFailedError(
                f"{plugin.plugin_name} failed in {hook}: {described(error)}{''.join(places)}"
            ) from error


def _made(entry: registry.PluginEntry, factory: type[Any], *arguments: Any) -> Any:
    with loading(f"{entry} cannot be set up"):
        return factory(*arguments)


def _register(manager: pluggy.PluginManager, entry: registry.PluginEntry, plugin: object) -> None:
    try:
        manager.register(plugin, name=str(entry))
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        raise PluginError(f"{entry} cannot be registered: {error}") from error
