"""The hook specification: what a plugin may implement.

Implementations carry ``@alignkit.hookimpl``, take the arguments they need by name, and give none a default. Three kinds:

*exclusive* hooks belong to the run's one method; another plugin may only wrap them (``hookimpl(wrapper=True)``);
*first answer* hooks go from plugin to plugin until one does not return None;
*broadcast* hooks reach every plugin, and what they return is ignored.

New arguments may be added to a hook in a minor release (pluggy passes an implementation only what it names); arguments are
removed or change their meaning in a major release only.
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

    # ------------------------------------------------------------------ exclusive: the method's

    @hookspec(firstresult=True)
    def align_build_model(self, config: RunConfig) -> LoadedModel | None:
        """Build the model, the tokenizer and the adapter to train (default: ``alignkit.build_model``).

        A method that trains more than the language model (a value head) adds it here.
        """

    @hookspec(firstresult=True)
    def align_prepare_batch(
        self, policy: Policy, batch: Batch, progress: float, rollouts: Rollouts | None
    ) -> Batch | None:
        """Turn the rows of one optimizer step (this rank's part of them) into what the loss needs.

        Called once a step, before the step is cut into micro-batches: the place for on-policy samples, for statistics of
        the whole step, and for leaving completions out of the gradient pass. ``progress`` runs from 0 to 1 over training.
        ``rollouts`` samples, rewards and scores for methods that need ``reward`` (None for the others). A method whose
        ``reuse`` is more than one step gets the rows of all those steps and is called again when they are done.
        Default: the batch as it is.
        """

    @hookspec(firstresult=True)
    def align_compute_loss(self, policy: Policy, batch: Batch, progress: float) -> LossOutput | None:
        """Compute the loss of one micro-batch as named terms, each a sum and the name of its count.

        Counts depend on the batch alone, never on the model, so that the engine knows them for the whole optimizer step.
        Metrics are tensors on the device, detached; the engine reduces them at logging steps.
        """

    @hookspec(firstresult=True)
    def align_build_trainer(self, parts: TrainerParts) -> Trainer | None:
        """Build the trainer (default: :class:`alignkit.training.trainer.AlignTrainer`).

        Any ``transformers.Trainer`` will do; the run is then marked ``engine: external``.
        """

    # ------------------------------------------------------------------ first answer wins

    @hookspec(firstresult=True)
    def align_load_data(self, source: str, split: str | None, config: RunConfig) -> RawRows | None:
        """Load the rows of a data source; None means it is not this plugin's to load."""

    # ------------------------------------------------------------------ broadcast

    @hookspec
    def align_run_started(self, config: RunConfig, directory: Path) -> None:
        """A run is about to train; its directory exists and holds run.yaml."""

    @hookspec
    def align_log(self, record: dict[str, Any]) -> None:
        """One line of metrics.jsonl was written."""

    @hookspec
    def align_checkpoint_saved(self, step: int, path: Path) -> None:
        """A checkpoint is complete on disk."""

    @hookspec
    def align_run_finished(self, summary: dict[str, Any], directory: Path) -> None:
        """The run ended (``summary["status"]``: finished, failed or interrupted); run.json is written."""
