"""The distill method: its hooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from alignkit import (
    Batch,
    LoadedModel,
    LossOutput,
    LossTerm,
    Method,
    Policy,
    Reuse,
    Rollouts,
    RunConfig,
    TrainerParts,
    build_model,
    hookimpl,
    rollout_metrics,
)
from alignkit.errors import ModelError
from alignkit_onpolicy import GROUP_DEMO
from torch import Tensor

from alignkit_distill.divergence import coarsened, divergence, within
from alignkit_distill.settings import DistillSettings
from alignkit_distill.stored import StoredTeacher, write_stored
from alignkit_distill.teacher import DEMO, Teacher


class Distill(Method[DistillSettings]):
    """Knowledge distillation: the policy learns a teacher's distribution of every token, of its own answers and of the data's."""

    name = "distill"
    paper = "Agarwal et al. 2024, On-Policy Distillation of Language Models, https://arxiv.org/abs/2306.13649"
    rows = "completion"
    needs = frozenset({"reward", "distributions"})
    settings_type = DistillSettings
    defaults = {"train.learning_rate": 1e-5}
    lora_defaults = {"train.learning_rate": 1e-4}
    demo = {key: value for key, value in GROUP_DEMO.items() if key != "method.rewards"} | {"method.teacher": DEMO}

    def __init__(self, settings: DistillSettings) -> None:
        super().__init__(settings)
        if settings.share == 1:  # the data's completions are not used
            self.__dict__["rows"] = "prompt"
        if not self._from_file:
            self.unsharded = "use ddp or zero2, or a file with the teacher's log-probabilities (method.teacher_logps)"
        self._batches = 0  # prepared for training
        self._config: RunConfig | None = None
        self._teacher: Teacher | None = None
        self._stored: StoredTeacher | None = None

    @property
    def reuse(self) -> Reuse:
        return self.settings.reuse

    def state(self) -> dict[str, float]:
        return {"batches": self._batches}

    def load_state(self, state: Mapping[str, float]) -> None:
        self._batches = int(state.get("batches", 0))

    def teacher(self) -> Teacher:
        """Return the teacher's model."""
        if self._teacher is None:
            config = self._config or RunConfig.model_validate({"method": self.name, "model": {"dtype": "float32"}})
            self._teacher = Teacher(self.settings, config)
        return self._teacher

    def stored(self) -> StoredTeacher:
        """Return the teacher's log-probabilities from the file."""
        if self._stored is None:
            self._stored = StoredTeacher.read(self.settings)
        return self._stored

    @property
    def _from_file(self) -> bool:
        return self.settings.teacher_logps is not None

    @property
    def _written(self) -> bool:
        return self._from_file and (self.settings.teacher is None or Path(self.settings.teacher_logps or "").exists())

    def models(self, config: RunConfig) -> list[LoadedModel]:
        return [] if self._written else [Teacher(self.settings, config).built(meta=True)]

    @hookimpl
    def align_build_model(self, config: RunConfig) -> LoadedModel:
        """Load the student, and a teacher with the same tokens."""
        self._config = config
        student = build_model(config.model, seed=config.run.seed)
        if student.classifier:
            raise ModelError(f"{config.model.name} is a reward model, but method distill trains language models")
        if self._written:
            self.stored().require_same_tokens(student.tokenizer)
        else:
            self.teacher().require_same_tokens(student.tokenizer)
        return student

    @hookimpl
    def align_build_trainer(self, parts: TrainerParts) -> None:
        """Write the file of the teacher's log-probabilities if it is missing, and check that it has the rows of the run."""
        if not self._from_file:
            return
        path = Path(self.settings.teacher_logps or "")
        rows = [*parts.train, *parts.eval]
        if not path.exists():
            write_stored(path, self.teacher(), rows, self.settings, parts)
            self._teacher = None  # frees its memory
        self.stored().require(rows)

    @hookimpl
    def align_prepare_batch(self, batch: Batch, rollouts: Rollouts) -> Batch:
        """Replace the completions by answers of the policy, in the share of batches that is on-policy (algorithm 1)."""
        share, n = self.settings.share, self._batches
        sampled = share == 1.0
        if rollouts.training:
            self._batches += 1
            sampled = int((n + 1) * share + 1e-9) > int(n * share + 1e-9)
        if not sampled:
            return batch.with_shared(on_policy=0.0)
        batch = rollouts.sample(batch).with_shared(on_policy=1.0)
        logged = {name: values for name, values in batch.columns.items() if name != "reward" or self.settings.rewards}
        return replace(batch, columns=logged)

    @hookimpl
    def align_compute_loss(self, policy: Policy, batch: Batch) -> LossOutput:
        """Compute the divergence of the student from the teacher, a mean over tokens (eq. 3)."""
        s, examples = self.settings, batch.examples
        device = next(policy.model.parameters()).device
        width = self.stored().width if self._from_file else self.teacher().width(policy.model)
        teacher: tuple[Any, ...]
        if self._from_file:
            teacher = self.stored().of(examples, device)
        elif s.teacher_top_k:
            teacher = self.teacher().most_likely(examples, device, s, width)
        else:
            own = self.teacher().policy(device)
            found = own.score(examples, grad=False, temperature=s.temperature, distributions=lambda given: given)
            teacher = (found.distributions,)

        def compare(student: Tensor, *given: Tensor) -> Tensor:
            student = within(student, width)
            if len(given) == 1:
                return divergence(student, within(given[0], width), beta=s.beta)
            ids, logps = given
            return divergence(coarsened(student, ids), logps, beta=s.beta)

        scores = policy.score(
            examples, temperature=s.temperature, distributions=lambda student: student.map(compare, *teacher)
        )
        total: torch.Tensor = scores.distributions.sum()
        return LossOutput([LossTerm("divergence", total, "completion_tokens")], rollout_metrics(batch, total.detach()))
