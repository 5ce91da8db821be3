"""What a method has to hold to."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pytest

from alignkit import settings
from alignkit.contract import registry
from alignkit.errors import AlignError, ConfigError
from alignkit.testing import tiny
from alignkit.testing.installed import check_listing, check_schema
from alignkit.training.session import Session

if TYPE_CHECKING:
    import torch

    from alignkit.contract.batch import Batch
    from alignkit.contract.types import Method
    from alignkit.training.trainer import AlignTrainer

Capability = Literal["whole_step", "external", "no_margin"]
"""What a method is free to be: ``whole_step``: its loss uses a statistic of the whole optimizer step, which it makes in
``align_prepare_batch``; ``external``: it brings a trainer of its own; ``no_margin``: it does not mean to tell good answers from bad."""

_ENGINES = {"step", "epoch", "loss", "grad_norm", "learning_rate", "tokens", "tokens_per_second", "memory_gb"}
_KEY = re.compile(r"[A-Za-z][\w.-]*(/[\w.:-]+)*")


class MethodConformance:
    """Tests of one installed method; set ``name``, and ``settings`` where it cannot do with its defaults."""

    name: ClassVar[str]
    settings: ClassVar[Mapping[str, Any]] = {}
    """Settings it is checked with."""
    capabilities: ClassVar[frozenset[Capability]] = frozenset()
    learning_rate: ClassVar[float] = 5e-3
    """Of the test that it learns, with AdamW on a tiny model."""
    steps: ClassVar[int] = 40
    """Of the test that it learns."""

    def pure_losses(self) -> Sequence[tuple[Callable[..., torch.Tensor], Sequence[torch.Tensor]]]:
        """Return pure functions of the method's loss and float64 inputs (with ``requires_grad``) for a gradient check."""
        return []

    # ------------------------------------------------------------------ what it says of itself

    def test_listing_does_not_import_it(self) -> None:
        """``align methods`` reads metadata alone."""
        check_listing("align.methods", self.name)

    def test_hooks_are_in_order(self) -> None:
        """Hooks exist, take arguments they can get, and nothing is pending."""
        Session.open(self._config())

    def test_settings_are_complete(self) -> None:
        """Every setting is described, and unknown ones are refused with the key."""
        method = self._type()
        check_schema(method.settings_type)
        with pytest.raises(ConfigError, match="no_such_setting"):
            settings.resolve(method=self.name, sets=[*self._sets(), "no_such_setting=1"])

    def test_settings_round_trip_through_yaml(self, tmp_path: Path) -> None:
        """A run's run.yaml repeats the run."""
        config = settings.resolve(method=self.name, sets=self._sets()).config
        file = tmp_path / "run.yaml"
        file.write_text(settings.dump(config), encoding="utf-8")
        again = settings.resolve(file, resume=True).config
        assert again == config, "the settings change when they are written to run.yaml and read back"

    # ------------------------------------------------------------------ its loss

    def test_the_loss_is_finite_and_reaches_the_policy(self, tmp_path: Path) -> None:
        """Every term is a number, and the gradient reaches trained weights alone."""
        import torch

        trainer = self._trainer(tmp_path, lora=True)
        frozen = [p for p in trainer.model.parameters() if not p.requires_grad]
        loss, gradient = self._gradient(trainer, [self._prepared(trainer)])
        assert math.isfinite(loss), f"the loss is {loss}"
        assert bool(torch.isfinite(gradient).all()), "the gradient is not finite: a log or a division near 0?"
        assert float(gradient.norm()) > 0, "no gradient reaches the policy: was it scored with grad=False, or detached?"
        assert all(p.grad is None for p in frozen), "frozen weights have a gradient"

    @pytest.mark.parametrize("cut", [1, 3])
    def test_the_cut_into_micro_batches_changes_nothing(self, tmp_path: Path, cut: int) -> None:
        """Terms are sums, divided by counts of the whole step."""
        trainer = self._trainer(tmp_path)
        batch = self._prepared(trainer)
        whole = self._gradient(trainer, [batch])
        parts = self._gradient(trainer, [batch], cut=cut)
        self._same(
            whole,
            parts,
            "the loss depends on how the step is cut: a term must be a sum over rows or tokens (never a mean), "
            "and what needs the whole step belongs into align_prepare_batch",
        )

    def test_the_order_of_rows_changes_nothing(self, tmp_path: Path) -> None:
        """Rows are independent of their neighbours."""
        trainer = self._trainer(tmp_path)
        batch = self._prepared(trainer)
        turned = batch.rows(list(reversed(range(len(batch)))))
        self._same(
            self._gradient(trainer, [batch]),
            self._gradient(trainer, [turned]),
            "the loss depends on the order of the rows: a column is not read row by row?",
        )

    def test_padding_changes_nothing(self, tmp_path: Path) -> None:
        """Packed and padded scoring give one loss."""
        found = []
        for scorer in ("packed", "padded"):
            trainer = self._trainer(tmp_path / scorer, scorer=scorer)
            found.append(self._gradient(trainer, [self._prepared(trainer)]))
        self._same(
            found[0], found[1], "the loss depends on the scoring backend: it reads something beside scored tokens", 1e-4
        )

    def test_ranks_change_nothing(self, tmp_path: Path) -> None:
        """Two processes with half of the rows each make the same step as one."""
        if "whole_step" in self.capabilities or "reward" in self._method().needs:
            pytest.skip("its batches depend on the whole step: only a run with several processes can tell")
        trainer = self._trainer(tmp_path)
        rows = trainer.steps.rows_of_step(0)
        halves = [rows.rows(range(k, len(rows), 2)) for k in (0, 1)]
        prepared = [trainer.steps.prepare(half, 0, 0.0) for half in halves]
        self._same(
            self._gradient(trainer, [trainer.steps.prepare(rows, 0, 0.0)]),
            self._gradient(trainer, prepared),
            "the loss depends on how rows fall to processes: declare the capability whole_step if it means to",
        )

    def test_the_same_seed_gives_the_same_loss(self, tmp_path: Path) -> None:
        """Nothing random escapes the seed."""
        import torch

        found = []
        for k in (0, 1):
            torch.manual_seed(k)  # what else goes on in the process must not matter
            trainer = self._trainer(tmp_path / str(k))
            found.append(self._gradient(trainer, [self._prepared(trainer)])[0])
        assert found[0] == found[1], f"two runs with one seed have the losses {found[0]} and {found[1]}"

    def test_gradients_of_the_pure_loss(self) -> None:
        """Analytic gradients equal numeric ones in float64."""
        import torch

        for function, inputs in self.pure_losses():
            assert torch.autograd.gradcheck(function, tuple(inputs)), f"{function} has a wrong gradient"

    # ------------------------------------------------------------------ in training

    def test_what_it_logs(self, tmp_path: Path) -> None:
        """Names that are the method's own, and finite numbers."""
        trainer, logs = self._train(tmp_path, max_steps=2)
        for name, value in ((n, v) for record in logs for n, v in record.items()):
            assert _KEY.fullmatch(name), f"{name!r} cannot name a metric: write group/name"
            assert not isinstance(value, float) or math.isfinite(value), f"{name} is {value}"
        parts = trainer.parts
        metrics = parts.session.compute_loss(parts.policy, self._prepared(trainer), 0.0).metrics
        taken = sorted(set(metrics) & _ENGINES)
        assert not taken, f"the engine logs {', '.join(taken)} itself: give the method's metric another name"

    def test_it_learns(self, tmp_path: Path) -> None:
        """Training makes good answers likelier than bad ones on rows it has not seen."""
        if "no_margin" in self.capabilities:
            pytest.skip("it does not mean to tell good answers from bad")
        trainer = self._trainer(tmp_path, max_steps=self.steps, optim="adamw_torch", learning_rate=self.learning_rate)
        before = self._margin(trainer)
        trainer.train()
        after = self._margin(trainer)
        assert after > before + 0.05, (
            f"{self.steps} steps moved the margin of good answers over bad ones from {before:.3f} to {after:.3f} nats a token: "
            "is the sign of the loss right?"
        )

    def test_resume_equals_uninterrupted(self, tmp_path: Path) -> None:
        """A run that is stopped and goes on ends with the same weights."""
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
            "a resumed run ends with other weights: whatever the method learns on its way belongs into state() and "
            "load_state(), and what it draws must follow from the seed"
        )

    # ------------------------------------------------------------------ how it is done

    def _type(self) -> type[Method[Any]]:
        try:
            return registry.load_method(self.name)[1]
        except AlignError as error:
            pytest.fail(f"{error}: is the package installed, and its entry point under align.methods?")

    def _method(self) -> Method[Any]:
        return Session.open(self._config()).method

    def _sets(self) -> list[str]:
        values = dict(self.settings)
        if "reward" in self._type().needs:
            values.setdefault("reward", "length")
        return [
            f"method.{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()
        ]

    def _config(self, **train: Any) -> Any:
        from alignkit.testing.engine import configuration

        values: dict[str, Any] = {"name": self.name, **self.settings}
        if "reward" in self._type().needs:
            values.setdefault("reward", "length")
            values.setdefault("max_new_tokens", 8)
        return configuration(values, **train)

    def _trainer(
        self, output: Path, *, lora: bool = False, scorer: str = "auto", stop: int | None = None, **train: Any
    ) -> AlignTrainer:
        import torch

        from alignkit.testing.engine import build_trainer

        if "external" in self.capabilities:
            pytest.skip("it brings a trainer of its own")
        model: Any = tiny.tiny_llama()
        if lora:
            import peft

            with torch.random.fork_rng():
                torch.manual_seed(0)
                adapter = peft.LoraConfig(
                    r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
                )
                model = peft.get_peft_model(model, adapter)
        config = self._config(**train)
        kind = Session.open(config).method.rows
        callbacks = [] if stop is None else [_stop_at(stop)]
        return build_trainer(
            config,
            output,
            tiny.rows(kind, 24),
            model=model,
            held_out=tiny.rows(kind, 6, seed=1),
            scorer=scorer,
            callbacks=callbacks,
        )

    def _train(self, output: Path, **options: Any) -> tuple[AlignTrainer, list[dict[str, Any]]]:
        trainer = self._trainer(output, **options)
        trainer.train()
        return trainer, [dict(record) for record in trainer.state.log_history if "loss" in record]

    def _prepared(self, trainer: AlignTrainer) -> Batch:
        return trainer.steps.prepare(trainer.steps.rows_of_step(0), 0, 0.0)

    def _gradient(
        self, trainer: AlignTrainer, ranks: Sequence[Batch], cut: int | None = None
    ) -> tuple[float, torch.Tensor]:
        """Return loss and gradient of one optimizer step whose rows lie on several ranks, as the engine divides it."""
        import torch

        parts = trainer.parts
        parts.policy.model = trainer.model
        trainer.model.zero_grad(set_to_none=True)
        totals: dict[str, int] = {}
        for batch in ranks:
            totals = {name: totals.get(name, 0) + count for name, count in batch.counts.items()}
        total = 0.0
        for batch in ranks:
            for piece in _cut(batch, cut):
                output = parts.session.compute_loss(parts.policy, piece, 0.0)
                terms = [t.sum * (t.weight / max(totals[t.per], 1)) for t in output.terms if t.weight]
                loss = torch.stack(terms).sum()
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
        grads = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
        return total, torch.cat(grads) if grads else torch.zeros(1)

    def _same(
        self,
        first: tuple[float, torch.Tensor],
        second: tuple[float, torch.Tensor],
        message: str,
        tolerance: float = 1e-5,
    ) -> None:
        off = float((first[1] - second[1]).norm() / (first[1].norm() + 1e-12))
        alike = abs(first[0] - second[0]) <= tolerance * max(1.0, abs(first[0]))
        said = f"{message} (losses {first[0]:.6g} and {second[0]:.6g}, gradients {off:.1e} apart)"
        assert alike, said
        assert off <= 10 * tolerance, said

    def _margin(self, trainer: AlignTrainer) -> float:
        policy = trainer.parts.policy
        policy.model = trainer.model
        scores = policy.score(tiny.as_pairs(32), grad=False)
        good, bad = scores.split(scores.means())
        return float((good - bad).mean())


def _cut(batch: Batch, size: int | None) -> Iterator[Batch]:
    if size is None:
        yield batch
        return
    for start in range(0, len(batch), size):
        yield batch.rows(range(start, min(start + size, len(batch))))


def _stop_at(step: int) -> Any:
    from transformers import TrainerCallback

    class StopAt(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                control.should_save = control.should_training_stop = True

    return StopAt()
