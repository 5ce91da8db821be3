"""The hook specifications: all hooks a plugin can implement.

Implementations are marked with ``@alignkit.hookimpl`` and take the arguments they need, by name and without defaults.
There are three kinds of hooks:

*exclusive* hooks belong to the run's method; a service may only wrap them (``hookimpl(wrapper=True)``);
*first-result* hooks are called plugin by plugin until one returns a value other than None;
*broadcast* hooks are called on every plugin; return values are ignored.

A minor release may add arguments to a hook (pluggy passes an implementation only those it names). Arguments are removed or
change their meaning only with a new contract version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import Trainer

    from alignkit.config import RunConfig
    from alignkit.contract.batch import Batch
    from alignkit.contract.model import LoadedModel
    from alignkit.contract.rows import RawRows
    from alignkit.contract.trainer_parts import TrainerParts
    from alignkit.contract.types import LossOutput, Policy, Rollouts

PROJECT = "align"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

EXCLUSIVE = frozenset({"align_build_model", "align_prepare_batch", "align_compute_loss", "align_build_trainer"})


class AlignSpecs:
    """Every hook of alignkit."""

    # ------------------------------------------------------------------ exclusive

    @hookspec(firstresult=True)
    def align_build_model(self, config: RunConfig) -> LoadedModel | None:
        """Build the model, tokenizer and adapter to train (default: ``alignkit.build_model``).

        A method that trains additional modules, such as a value head, adds them here.
        """

    @hookspec(firstresult=True)
    def align_prepare_batch(
        self, policy: Policy, batch: Batch, progress: float, rollouts: Rollouts | None
    ) -> Batch | None:
        """Prepare this rank's rows of one optimizer step for the loss (default: the batch unchanged).

        Called once per step, before the step is split into micro-batches: the place to sample on-policy completions, to
        compute statistics over the whole step, or to exclude completions from the gradient pass.

        Args:
            policy: scores completions.
            batch: the rows of the step; with ``reuse`` of more than one step, the rows of all those steps.
            progress: share of training that is done, from 0 to 1.
            rollouts: samples, rewards and scores completions, for methods that need ``reward``; None for others.
        """

    @hookspec(firstresult=True)
    def align_compute_loss(self, policy: Policy, batch: Batch, progress: float) -> LossOutput | None:
        """Compute the loss of one micro-batch as named terms, each a sum and the name of the count that divides it.

        Counts depend on the batch alone, not on the model, so the engine knows them for the whole optimizer step before the
        first backward pass. Metrics are detached tensors on the device; the engine reduces them at logging steps.
        """

    @hookspec(firstresult=True)
    def align_build_trainer(self, parts: TrainerParts) -> Trainer | None:
        """Build the trainer (default: :class:`alignkit.training.trainer.AlignTrainer`).

        Any ``transformers.Trainer`` is accepted; the run is then marked ``engine: external``.
        """

    # ------------------------------------------------------------------ first result

    @hookspec(firstresult=True)
    def align_load_data(self, source: str, split: str | None, config: RunConfig) -> RawRows | None:
        """Load the rows of a data source, or return None if this plugin does not handle it."""

    # ------------------------------------------------------------------ broadcast

    @hookspec
    def align_run_started(self, config: RunConfig, directory: Path) -> None:
        """Called before training, when the run directory exists and contains run.yaml."""

    @hookspec
    def align_log(self, record: dict[str, Any]) -> None:
        """Called when a line has been written to metrics.jsonl."""

    @hookspec
    def align_checkpoint_saved(self, step: int, path: Path) -> None:
        """Called when a checkpoint is complete on disk."""

    @hookspec
    def align_run_finished(self, summary: dict[str, Any], directory: Path) -> None:
        """Called last of all, when the run has ended and its files are written; ``summary["status"]``: finished, failed or interrupted."""
