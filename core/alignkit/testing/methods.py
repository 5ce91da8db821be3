"""Conformance tests of methods."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from alignkit import settings
from alignkit.errors import ConfigError
from alignkit.testing.installed import check_schema
from alignkit.testing.method_steps import MethodSteps
from alignkit.training.session import Session

if TYPE_CHECKING:
    import torch

_ENGINE_METRICS = {"step", "epoch", "loss", "grad_norm", "learning_rate", "tokens", "tokens_per_second", "memory_gb"}
_METRIC_NAME = re.compile(r"[A-Za-z][\w.-]*(/[\w.:-]+)*")


class MethodConformance(MethodSteps):
    """Tests of one installed method; set ``name``, and ``settings`` if the method needs any."""

    learning_rate: ClassVar[float] = 5e-3
    """Learning rate of ``test_it_learns``, with AdamW on a tiny model."""
    steps: ClassVar[int] = 40
    """Training steps of ``test_it_learns``."""

    def pure_losses(self) -> Sequence[tuple[Callable[..., torch.Tensor], Sequence[torch.Tensor]]]:
        """Return the method's pure loss functions, each with float64 inputs that require gradients, for a gradient check."""
        return []

    # ------------------------------------------------------------------ declarations

    def test_hooks_are_in_order(self) -> None:
        """All implemented hooks exist and take arguments the hooks have."""
        Session.open(self._config())

    def test_settings_are_complete(self) -> None:
        """Every setting is described, and an unknown key is an error that names it."""
        check_schema(type(Session.open(self._config()).method.settings))
        with pytest.raises(ConfigError, match="no_such_setting"):
            settings.resolve(method=self._method(), sets=[*self._sets(), "no_such_setting=1"])

    def test_settings_round_trip_through_yaml(self, tmp_path: Path) -> None:
        """Settings written to run.yaml and read back are equal."""
        config = settings.resolve(method=self._method(), sets=self._sets()).config
        file = tmp_path / "run.yaml"
        file.write_text(settings.dump(config), encoding="utf-8")
        again = settings.resolve(file, resume=True).config
        assert again == config, "the settings change when they are written to run.yaml and read back"

    # ------------------------------------------------------------------ loss

    def test_the_loss_is_finite_and_reaches_the_policy(self, tmp_path: Path) -> None:
        """Loss and gradient are finite, and only trainable weights receive a gradient."""
        import torch

        trainer = self._trainer(tmp_path, lora=True)
        frozen = [p for p in trainer.model.parameters() if not p.requires_grad]
        loss, gradient = self._gradient(trainer)
        assert math.isfinite(loss), f"the loss is {loss}"
        assert bool(torch.isfinite(gradient).all()), "the gradient is not finite: a log or a division near 0?"
        assert float(gradient.norm()) > 0, (
            "no gradient reaches the policy: was it scored with grad=False, or were the scores detached?"
        )
        assert all(p.grad is None for p in frozen), "frozen weights have a gradient"

    @pytest.mark.parametrize("cut", [1, 3])
    def test_the_cut_into_micro_batches_changes_nothing(self, tmp_path: Path, cut: int) -> None:
        """The loss does not depend on how a step is split into micro-batches."""
        trainer = self._trainer(tmp_path)
        batch = self._prepared(trainer)
        self._same(
            self._gradient(trainer, batch),
            self._gradient(trainer, batch, cut=cut),
            "the loss depends on how the step is split: a term must be a sum over rows or tokens (never a mean), "
            "and statistics of the whole step belong in align_prepare_batch",
        )

    def test_the_order_of_rows_changes_nothing(self, tmp_path: Path) -> None:
        """The loss does not depend on the order of the rows."""
        trainer = self._trainer(tmp_path)
        batch = self._prepared(trainer)
        self._same(
            self._gradient(trainer, batch),
            self._gradient(trainer, batch.rows(range(len(batch))[::-1])),
            "the loss depends on the order of the rows: is a column read out of order?",
        )

    def test_padding_changes_nothing(self, tmp_path: Path) -> None:
        """Packed and padded scoring give the same loss."""
        packed, padded = (
            self._gradient(self._trainer(tmp_path / scorer, scorer=scorer)) for scorer in ("packed", "padded")
        )
        message = "the loss depends on the scoring backend: does it read positions that are not scored?"
        self._same(packed, padded, message, 1e-4)

    def test_ranks_change_nothing(self, tmp_path: Path) -> None:
        """Two processes with half of the rows each give the same loss as one."""
        method = Session.open(self._config()).method
        if "whole_step" in self.capabilities or method.whole_step or "reward" in method.needs:
            pytest.skip("its batches depend on the whole step: this needs a run with several processes")
        trainer = self._trainer(tmp_path)
        rows = trainer.steps.rows_of_step(0)
        halves = [trainer.steps.prepare(rows.rows(range(k, len(rows), 2)), 0, 0.0) for k in (0, 1)]
        self._same(
            self._gradient(trainer),
            self._gradient(trainer, *halves),
            "the loss depends on how rows are distributed over processes: declare the capability whole_step if that is intended",
        )

    def test_the_same_seed_gives_the_same_loss(self, tmp_path: Path) -> None:
        """All randomness follows from the seed."""
        import torch

        found = []
        for k in (0, 1):
            torch.manual_seed(k)  # the global random state must not matter
            found.append(self._gradient(self._trainer(tmp_path / str(k)))[0])
        assert found[0] == found[1], f"two runs with the same seed have the losses {found[0]} and {found[1]}"

    def test_gradients_of_the_pure_loss(self) -> None:
        """Analytic and numerical gradients of the pure losses agree in float64."""
        import torch

        for function, inputs in self.pure_losses():
            assert torch.autograd.gradcheck(function, tuple(inputs)), f"{function} has a wrong gradient"

    # ------------------------------------------------------------------ training

    def test_what_it_logs(self, tmp_path: Path) -> None:
        """Metrics have valid names, which the engine does not use itself, and finite values."""
        trainer, logs = self._train(tmp_path, max_steps=2)
        for name, value in ((n, v) for record in logs for n, v in record.items()):
            assert _METRIC_NAME.fullmatch(name), f"{name!r} is not a valid metric name: write group/name"
            assert not isinstance(value, float) or math.isfinite(value), f"{name} is {value}"
        output = trainer.parts.session.compute_loss(trainer.parts.policy, self._prepared(trainer), 0.0)
        taken = sorted(set(output.metrics) & _ENGINE_METRICS)
        assert not taken, f"the engine logs {', '.join(taken)} itself: give the method's metric another name"

    def test_it_learns(self, tmp_path: Path) -> None:
        """Training raises good answers above bad ones on held-out rows."""
        if "no_margin" in self.capabilities:
            pytest.skip("the method is not meant to separate good answers from bad ones")
        trainer = self._trainer(tmp_path, max_steps=self.steps, optim="adamw_torch", learning_rate=self.learning_rate)
        before = self._margin(trainer)
        trainer.train()
        after = self._margin(trainer)
        assert after > before + 0.05, (
            f"{self.steps} steps moved the margin of good answers over bad ones from {before:.3f} to {after:.3f} nats per token: "
            "is the sign of the loss right?"
        )

    def test_resume_equals_uninterrupted(self, tmp_path: Path) -> None:
        """An interrupted and resumed run ends with the weights of an uninterrupted one."""
        import torch

        from alignkit.training.checkpoints import last_checkpoint

        train: dict[str, Any] = {"max_steps": 6, "optim": "adamw_torch"}
        whole = self._trainer(tmp_path / "whole", **train)
        whole.train()
        self._train(tmp_path / "cut", stop=3, **train)
        second = self._trainer(tmp_path / "cut", **train)
        second.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "cut")))
        same = all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True))
        assert same, (
            "a resumed run ends with different weights: state the method accumulates belongs in state() and load_state(), "
            "and random numbers must follow from the seed"
        )
