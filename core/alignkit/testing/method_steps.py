"""Trainers and optimizer steps of one method on a tiny model, for its conformance tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pytest

from alignkit.config import RunConfig
from alignkit.contract import Batch
from alignkit.contract.groups import Group
from alignkit.testing import tiny
from alignkit.testing.installed import InstalledPlugin
from alignkit.training.session import Session

if TYPE_CHECKING:
    import torch

    from alignkit.training.trainer import AlignTrainer

Capability = Literal["whole_step", "external", "no_margin"]
"""Properties a method declares to skip tests that do not apply to it.

``whole_step``: the loss uses a statistic of the whole optimizer step, computed in ``align_prepare_batch``; ``external``: the
method builds its own trainer; ``no_margin``: training is not meant to separate good answers from bad ones.
"""


class MethodSteps(InstalledPlugin):
    """Helpers to train one installed method on a tiny model and to compute the gradient of one optimizer step."""

    group: ClassVar[Group] = "align.methods"
    capabilities: ClassVar[frozenset[Capability]] = frozenset()

    def _method(self) -> str:
        return self.name

    def _settings(self, **needed: Any) -> dict[str, Any]:
        """Return the method's settings; ``needed`` and a reward are defaults of methods that need rewards."""
        return ({"reward": "length", **needed} if "reward" in self._load().needs else {}) | dict(self.settings)

    def _sets(self) -> list[str]:
        return [f"method.{key}={json.dumps(value)}" for key, value in self._settings().items()]

    def _config(self, **train: Any) -> RunConfig:
        from alignkit.testing.engine import configuration

        return configuration({"name": self._method(), **self._settings(max_new_tokens=8)}, **train)

    def _trainer(
        self, output: Path, *, lora: bool = False, scorer: str = "auto", stop: int | None = None, **train: Any
    ) -> AlignTrainer:
        import torch

        from alignkit.testing.engine import build_trainer

        if "external" in self.capabilities:
            pytest.skip("the method builds its own trainer")
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
        return build_trainer(
            config,
            output,
            tiny.rows(kind, 24),
            model=model,
            held_out=tiny.rows(kind, 6, seed=1),
            scorer=scorer,
            callbacks=[] if stop is None else [_stop_at(stop)],
        )

    def _train(self, output: Path, **options: Any) -> tuple[AlignTrainer, list[dict[str, Any]]]:
        trainer = self._trainer(output, **options)
        trainer.train()
        return trainer, [dict(record) for record in trainer.state.log_history if "loss" in record]

    def _prepared(self, trainer: AlignTrainer) -> Batch:
        return trainer.steps.prepare(trainer.steps.rows_of_step(0), 0, 0.0)

    def _gradient(self, trainer: AlignTrainer, *ranks: Batch, cut: int | None = None) -> tuple[float, torch.Tensor]:
        """Return loss and gradient of one optimizer step over the batches of several ranks, divided as the engine does."""
        import torch

        parts = trainer.parts
        parts.policy.model = trainer.model
        trainer.model.zero_grad(set_to_none=True)
        ranks = ranks or (self._prepared(trainer),)
        totals = {name: sum(batch.counts[name] for batch in ranks) for name in ranks[0].counts}
        total = 0.0
        for batch in ranks:
            for piece in batch.cut(cut, 10**9) if cut else [batch]:
                output = parts.session.compute_loss(parts.policy, piece, 0.0)
                terms = [t.sum * (t.weight / max(totals[t.per], 1)) for t in output.terms if t.weight]
                loss = torch.stack(terms).sum()
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
        grads = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
        return total, torch.cat(grads) if grads else torch.zeros(1)

    def _same(
        self, first: tuple[float, torch.Tensor], second: tuple[float, torch.Tensor], why: str, tolerance: float = 1e-5
    ) -> None:
        off = float((first[1] - second[1]).norm() / (first[1].norm() + 1e-12))
        explanation = f"{why} (losses {first[0]:.6g} and {second[0]:.6g}, gradients {off:.1e} apart)"
        assert abs(first[0] - second[0]) <= tolerance * max(1.0, abs(first[0])), explanation
        assert off <= 10 * tolerance, explanation

    def _margin(self, trainer: AlignTrainer) -> float:
        policy = trainer.parts.policy
        policy.model = trainer.model
        scores = policy.score(tiny.rows("preference", 32, seed=1001), grad=False)  # not the rows it trains on
        good, bad = scores.split(scores.means())
        return float((good - bad).mean())


def _stop_at(step: int) -> Any:
    from transformers import TrainerCallback

    class StopAt(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                control.should_save = control.should_training_stop = True

    return StopAt()
