"""Conformance tests of engines outside torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pytest
import torch

from alignkit.contract import Example, LoadedModel
from alignkit.models.generate import generate
from alignkit.scoring.policy import ModelPolicy
from alignkit.settings.training_arguments import training_arguments
from alignkit.testing import tiny
from alignkit.testing.engine import build_trainer, configuration
from alignkit.testing.installed import InstalledPlugin

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

    from alignkit.scoring.outside import OutsidePolicy

Weights = Mapping[str, torch.Tensor]


class EngineConformance(InstalledPlugin):
    """Tests of one installed engine against torch, on the same weights and rows; set ``name``."""

    group = "align.engines"
    optimizers: ClassVar[Sequence[str]] = ("adamw_torch", "sgd")
    """Values of ``train.optim`` that it knows; ``sgd`` is needed to see its gradients."""
    tolerance: ClassVar[float] = 1e-4

    def torch_model(self) -> PreTrainedModel:
        """Return a small model that the engine can train; override it where a Llama of two layers is none."""
        return tiny.tiny_llama()

    # ------------------------------------------------------------------ scores

    def test_scores_are_those_of_torch(self) -> None:
        """Log-probabilities of completions and prompts, and entropies, at a temperature."""
        policies: list[Any] = [self._policy(), ModelPolicy(self.torch_model())]
        wanted = {"prompt": True, "entropy": True, "temperature": 1.5, "grad": False}
        got, want = (policy.score(self._rows(), **wanted) for policy in policies)
        for name in ("logps", "prompt_logps", "entropy", "sequence", "lengths", "prompt_row"):
            self._close(getattr(got, name), getattr(want, name), f"{name} of the scores")

    def test_masked_tokens_are_not_scored(self) -> None:
        """A row with a mask has the log-probabilities of its marked tokens only."""
        row = Example("masked", [4, 5, 6], ([7, 8, 9, 10],), masks=([True, False, False, True],))
        got, want = (p.score([row], grad=False).logps for p in (self._policy(), ModelPolicy(self.torch_model())))
        self._close(got, want, "scores of a masked row")

    def test_stock_code_runs_with_it(self) -> None:
        """Logits of padded rows, and greedy answers of ``generate``, are torch's."""
        model, stock = self._policy().model, self.torch_model().eval()
        ids, mask = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]]), torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
        with torch.no_grad():
            got, want = (one(input_ids=ids, attention_mask=mask).logits[mask.bool()] for one in (model, stock))
        self._close(got, want, "logits")
        prompts, words = [[5, 6, 7], [9]], cast("Any", tiny.Words())
        answers = [generate(one, words, prompts, max_new_tokens=6) for one in (model, stock)]
        assert answers[0] == answers[1], f"greedy answers are {answers[0]}, and torch's are {answers[1]}"

    # ------------------------------------------------------------------ steps

    def test_steps_are_those_of_torch(self, tmp_path: Path) -> None:
        """Three steps of every optimizer give torch's weights, decay and clipped gradients included."""
        for name in self.optimizers:
            arguments = self._arguments(tmp_path, name)
            policy, stock = self._policy(), self.torch_model()
            decayed = {name for name, _ in stock.named_parameters() if "norm" not in name}
            policy.engine.begin(arguments, decayed)
            optimizer = _torch_optimizer(arguments, stock, decayed)
            for k in range(3):
                norm = self._step(policy, scale=0.5, part=k)
                _backward(ModelPolicy(stock), self._rows()[k::3])
                want = torch.nn.utils.get_total_norm([p.grad for p in stock.parameters() if p.grad is not None])
                assert norm == pytest.approx(float(want), rel=1e-4), f"the norm of the gradients is {norm}, not {want}"
                for gradient in (p.grad for p in stock.parameters() if p.grad is not None):
                    gradient.mul_(0.5)
                optimizer.step()
                optimizer.zero_grad()
            for key, found in policy.engine.weights().items():
                self._close(found, stock.state_dict()[key], f"{key} after three steps of {name}")

    def test_the_cut_into_micro_batches_changes_nothing(self, tmp_path: Path) -> None:
        """Gradients add up: a step from whole rows and from rows one by one gives the same weights."""
        found = []
        for size in (len(self._rows()), 1):
            policy = self._policy()
            policy.engine.begin(self._arguments(tmp_path, "sgd"), ())
            self._step(policy, size=size)
            found.append(policy.engine.weights())
        for key in found[0]:
            self._close(found[0][key], found[1][key], f"{key} after a step that was cut", 1e-5)

    def test_without_gradient_nothing_is_kept(self, tmp_path: Path) -> None:
        """Scores without gradient, and cleared gradients, leave the next step as it is."""
        policy = self._policy()
        policy.engine.begin(self._arguments(tmp_path, "sgd"), ())
        policy.score(self._rows(), grad=False)
        _backward(policy, self._rows())
        policy.engine.clear()
        assert policy.engine.gradient_norm() == 0.0, "clear() leaves a gradient"

    def test_the_reference_stays(self, tmp_path: Path) -> None:
        """``score(reference=True)`` is that of the weights at ``keep_start()``."""
        if "start" not in self._load().needs:
            pytest.skip("it does not meet the need start")
        policy = self._policy()
        before = policy.score(self._rows(), grad=False).logps
        policy.keep_start()
        policy.engine.begin(self._arguments(tmp_path, "sgd"), ())
        self._step(policy)
        assert bool((policy.score(self._rows(), grad=False).logps != before).any()), "a step changed no score"
        self._close(policy.score(self._rows(), reference=True).logps, before, "the reference after a step", 0.0)

    # ------------------------------------------------------------------ files

    def test_it_resumes_to_the_same_bits(self, tmp_path: Path) -> None:
        """A run from a checkpoint ends as one without; a checkpoint holds the trained weights once, in its stock model."""
        for name in self.optimizers:
            config = configuration(
                "orpo", optim=name, weight_decay=0.1, max_steps=4, save_strategy="steps", save_steps=2, warmup_steps=3
            )
            whole, again = (
                build_trainer(
                    config,
                    tmp_path / name,
                    self._rows(),
                    model=copy.deepcopy(self.torch_model()),
                    engine=self._load()(),
                )
                for _ in range(2)
            )
            whole.train()
            checkpoint = tmp_path / name / "checkpoint-2"
            again.train(resume_from_checkpoint=str(checkpoint))
            ends: list[Weights] = [cast("Any", one).engine.weights() for one in (whole, again)]
            for key, found in ends[1].items():
                self._close(found, ends[0][key], f"{key} of a resumed run with {name}", 0.0)
            state, model = ((checkpoint / file).stat().st_size for file in ("engine_0.pt", "model.safetensors"))
            assert 2 * state < model, f"engine_0.pt of a checkpoint has {state:,} bytes, and its stock model {model:,}"

    def test_the_saved_model_is_a_stock_one(self, tmp_path: Path) -> None:
        """``transformers`` loads what is saved after a step, and scores alike."""
        from transformers import AutoModelForCausalLM

        policy = self._policy()
        policy.engine.begin(self._arguments(tmp_path, "sgd"), ())
        self._step(policy)
        policy.model.save_pretrained(tmp_path / "saved")
        stock = ModelPolicy(AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="auto"))
        got, want = (one.score(self._rows(), grad=False).logps for one in (policy, stock))
        self._close(got, want, "scores of the saved model")

    # ------------------------------------------------------------------ helpers

    def _rows(self) -> list[Example]:
        return tiny.rows("preference", 6)

    def _policy(self) -> OutsidePolicy:
        loaded = LoadedModel(copy.deepcopy(self.torch_model()), tiny.Words(), "tiny", "", is_adapter=False)
        policy: OutsidePolicy = self._load()().policy(loaded, configuration("orpo"), torch.device("cpu"))
        return policy

    def _arguments(self, directory: Path, optimizer: str) -> TrainingArguments:
        config = configuration("orpo", optim=optimizer, learning_rate=0.01, weight_decay=0.1)
        return training_arguments(config, directory)[0]

    def _step(self, policy: OutsidePolicy, *, scale: float = 1.0, part: int | None = None, size: int = 6) -> float:
        """Make a step from all rows, or a third of them, in micro-batches; return the norm of the gradients."""
        rows = self._rows() if part is None else self._rows()[part % 3 :: 3]
        for first in range(0, len(rows), size):
            _backward(policy, rows[first : first + size])
        norm = policy.engine.gradient_norm()
        policy.engine.step(0.01, scale)
        return norm

    def _close(self, got: Any, want: Any, what: str, tolerance: float | None = None) -> None:
        allowed = self.tolerance if tolerance is None else tolerance
        assert got.shape == want.shape, f"{what}: {tuple(got.shape)} numbers, not {tuple(want.shape)}"
        difference = float((got.double() - want.double()).abs().max())
        assert difference <= allowed, f"{what}: differs by {difference:.2e}, at most {allowed} is allowed"


def _backward(policy: Any, rows: Sequence[Example]) -> None:
    """Run the backward of a loss of every kind of score: sums over rows, so that it does not depend on the cut."""
    scores = policy.score(rows, prompt=True, entropy="grad")
    chosen, rejected = scores.split(scores.means())
    loss = -torch.nn.functional.logsigmoid(chosen - rejected).sum()
    torch.autograd.backward(loss - 0.1 * scores.prompt_sums().sum() - 0.01 * scores.entropy.sum())


def _torch_optimizer(arguments: TrainingArguments, model: torch.nn.Module, decayed: set[str]) -> torch.optim.Optimizer:
    """Return the optimizer that Trainer makes of ``arguments``."""
    from transformers import Trainer

    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if (name in decayed) == decays], "weight_decay": rate}
        for decays, rate in ((True, arguments.weight_decay), (False, 0.0))
    ]
    optimizer: torch.optim.Optimizer = kind(groups, **options)
    return optimizer
