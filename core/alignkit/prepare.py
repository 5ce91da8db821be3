"""Everything a run needs before its first step: plugins, suites, model, data, scorer, reference log-probabilities."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alignkit.classifier import policy_of
from alignkit.config import RunConfig
from alignkit.errors import ConfigError, ModelError, PluginError
from alignkit.evaluation import Subject, data_rules, open_suites
from alignkit.models import LoadedModel, build_model
from alignkit.rewarding import open_rewards
from alignkit.session import Session
from alignkit.suites import Suite
from alignkit.types import Method, Need
from alignkit.weights import fingerprint

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from transformers import TrainingArguments

    from alignkit.arguments import StepShape
    from alignkit.classifier import ClassifierPolicy
    from alignkit.data.load import Data
    from alignkit.data.order import RowOrder
    from alignkit.data.rows import Row
    from alignkit.data.store import TokenisedRows
    from alignkit.rollouts import RolloutParts
    from alignkit.scoring.policy import ModelPolicy
    from alignkit.scoring.scorer import Scorer
    from alignkit.trainer import TrainerParts

SUPPORTED_NEEDS: frozenset[Need] = frozenset({"reference", "start", "value_head", "reward"})


@dataclass
class Prepared:
    """A run that could start: its plugins, model, data and scorer."""

    config: RunConfig
    session: Session
    suites: dict[str, Suite[Any]]
    loaded: LoadedModel
    data: Data
    policy: ModelPolicy | ClassifierPolicy
    order: RowOrder
    """Of the training rows, all margins taken for 0."""

    @property
    def scoring(self) -> Scorer | None:
        """How the model is scored; None for a reward model, whose own forward is used."""
        return getattr(self.policy, "scorer", None)

    def split(self, name: str) -> TokenisedRows:
        """Return the rows of a split: ``train`` or ``eval``."""
        return {"train": self.data.train, "eval": self.data.eval}[name]


def open_plugins(config: RunConfig) -> tuple[Session, dict[str, Suite[Any]]]:
    """Load method, services and suites: whatever is wrong with a name or a setting shows before anything is loaded."""
    session = Session.open(config)
    missing = session.method.needs - SUPPORTED_NEEDS
    if missing:
        raise ConfigError(f"method {session.method.name} needs a {min(missing)}, which this version cannot give it")
    _check_rewards(session.method)
    if config.data.group_by is not None and "reward" in session.method.needs:
        raise ConfigError("data.group_by is for methods that train on the rows themselves, not on answers to them")
    return session, open_suites(config.eval)


def _check_rewards(method: Method[Any]) -> None:
    """Refuse a method that needs a reward where none is named, and a reward that cannot be used."""
    if "reward" not in method.needs:
        return
    specs = getattr(method.settings, "rewards", None)
    if specs is None:
        raise PluginError(f"method {method.name} needs a reward, but its settings do not derive from OnPolicySettings")
    if not specs:
        raise ConfigError(
            f"method {method.name} needs a reward: --set reward=NAME (align rewards lists them), the path of a reward "
            "model, or package.module:function"
        )
    open_rewards(specs)


def load_parts(config: RunConfig, session: Session, *, meta: bool = False) -> tuple[LoadedModel, Data]:
    """Load the start model and the tokenised data; ``meta`` leaves the weights out."""
    from alignkit.data.load import load_data

    loaded = None if meta else session.build_model()
    if loaded is None:
        loaded = build_model(config.model, seed=config.run.seed, meta=meta)
        if loaded.classifier:
            raise ModelError(
                f"{config.model.name} is a reward model, and method {session.method.name} trains language models"
            )
    if "value_head" in session.method.needs and not meta:
        from alignkit.scoring.critic import add_critic

        add_critic(loaded.model, getattr(session.method.settings, "critic", "shared"))
    method = session.method
    data = load_data(config, method.rows, loaded.tokenizer, load=session.load_data)
    return loaded, data


def prepare(config: RunConfig, session: Session, suites: dict[str, Suite[Any]], device: torch.device) -> Prepared:
    """Load model and data, put the model on its device, and choose the scoring backend by a probe."""
    from alignkit.data.mixing import row_order

    loaded, data = load_parts(config, session)
    # What is wrong with the order shows before anything is evaluated.
    order = row_order(config.data, data.train, config.run.seed, lambda: np.zeros(len(data.train)))
    return Prepared(config, session, suites, loaded, data, policy_of(loaded, config.model, device), order)


def subject(prepared: Prepared, name: str, *, trained: bool) -> Subject:
    """Return the run's model, as it is now, and its held-out data for evaluation."""
    config, loaded = prepared.config, prepared.loaded
    return Subject(
        name=name,
        policy=prepared.policy,
        tokenizer=loaded.tokenizer,
        held_out=prepared.data.held_out,
        weights=fingerprint(loaded.model) if trained else loaded.fingerprint,
        rules=data_rules(config.data),
        start_weights=loaded.fingerprint,
        start_policy=lambda: _start_policy(prepared),
    )


def _start_policy(prepared: Prepared) -> ModelPolicy | ClassifierPolicy:
    """Load the start model once more, beside the trained one."""
    loaded = prepared.session.build_model() or build_model(prepared.config.model, seed=prepared.config.run.seed)
    if loaded.fingerprint != prepared.loaded.fingerprint:
        raise ModelError(f"the start model {prepared.config.model.name} has changed since the run began")
    return policy_of(loaded, prepared.config.model, next(prepared.loaded.model.parameters()).device)


def references(
    prepared: Prepared, arguments: TrainingArguments, tick: Callable[[int], None] = lambda rows: None
) -> tuple[dict[str, Sequence[Any]], bool]:
    """Return the step-0 log-probabilities of the training and held-out rows, and whether all came from the cache.

    They are computed in the precision training will use, so that a preference loss starts at its exact start value, and
    where the method needs them, or the order of the rows goes by the start model's margin.
    With several processes the first one computes, the others read what it cached.
    """
    from alignkit.data.cache import cache_directory
    from alignkit.distributed import rank, wait_for_all
    from alignkit.reference import reference_logps

    needs = prepared.session.method.needs
    evaluates = str(getattr(arguments.eval_strategy, "value", arguments.eval_strategy)) != "no"
    curriculum = prepared.config.data.curriculum
    wanted: dict[str, TokenisedRows] = {}
    if "reference" in needs and "reward" not in needs:  # what an on-policy method scores is not there yet
        wanted = {"train": prepared.data.train} | ({"eval": prepared.data.eval} if evaluates else {})
    elif curriculum is not None and curriculum.by == "margin" and prepared.data.kind == "preference":
        wanted = {"train": prepared.data.train}
    found: dict[str, Sequence[Any]] = {}
    cached = True
    for turn in ("first", "others") if wanted else ():
        if (rank() == 0) == (turn == "first"):
            for split, rows in wanted.items():
                with autocast(arguments):
                    found[split], hit = reference_logps(
                        prepared.policy,
                        rows,
                        rows_fingerprint=rows.fingerprint,
                        weights_fingerprint=prepared.loaded.fingerprint,
                        dtype=f"{prepared.config.model.dtype} {precision(arguments)} {prepared.config.model.quantization}",
                        cache=cache_directory(),
                        max_tokens=prepared.config.train.tokens_per_micro_batch,
                        tick=tick,
                    )
                cached = cached and hit
        wait_for_all()
    return found, cached


def order_of(prepared: Prepared, references: dict[str, Sequence[Any]]) -> RowOrder:
    """Return the order of the training rows, by the start model's margin where that is asked for."""
    from alignkit.data.mixing import row_order

    config, train = prepared.config, prepared.data.train
    if config.data.curriculum is None or config.data.curriculum.by != "margin":
        return prepared.order

    def margins() -> NDArray[np.float64]:
        lengths = train.segment_lengths()[:, 1].tolist()
        pairs = zip(references["train"], lengths, strict=True)
        return np.array([float(logps[:chosen].sum() - logps[chosen:].sum()) for logps, chosen in pairs])

    return row_order(config.data, train, config.run.seed, margins)


def precision(arguments: TrainingArguments) -> str:
    """Return the precision of the forward pass: bf16, fp16 or fp32."""
    return "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "fp32"


def autocast(arguments: TrainingArguments) -> contextlib.AbstractContextManager[Any]:
    """Return the autocast the trainer will use."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision(arguments))
    return contextlib.nullcontext() if dtype is None else torch.autocast(arguments.device.type, dtype=dtype)


def source_rows(prepared: Prepared) -> dict[str, Callable[[], Sequence[Row]]]:
    """Return the rows of both splits as text or messages, the training rows where they were kept."""
    data = prepared.data
    return {"train": lambda: data.train_rows, "eval": lambda: data.held_out.rows(data.kind)}


def rollout_parts(prepared: Prepared) -> RolloutParts | None:
    """Put together what a method that needs a reward samples with; None for the others."""
    method, loaded = prepared.session.method, prepared.loaded
    if "reward" not in method.needs:
        return None
    from alignkit.onpolicy import make_sampler
    from alignkit.rollouts import RolloutParts

    return RolloutParts(
        settings=method.settings,
        sampler=make_sampler(loaded.model, loaded.tokenizer, method.settings, loaded.path),
        rewards=open_rewards(method.settings.rewards),
        tokenizer=loaded.tokenizer,
        rows=source_rows(prepared),
        max_tokens=prepared.config.train.tokens_per_micro_batch,
        seed=prepared.config.run.seed,
    )


def trainer_parts(
    prepared: Prepared,
    arguments: TrainingArguments,
    shape: StepShape,
    references: dict[str, Sequence[Any]],
    callbacks: Sequence[Any],
    order: RowOrder,
) -> TrainerParts:
    """Put together what a trainer is built from; the model must hold its start weights, which the reference is made of."""
    from alignkit.reference import StartWeights, keeps_start
    from alignkit.scoring.policy import ModelPolicy
    from alignkit.trainer import TrainerParts

    needs = prepared.session.method.needs
    if keeps_start(needs) and isinstance(prepared.policy, ModelPolicy):
        prepared.policy.start = StartWeights(prepared.loaded.model)
    return TrainerParts(
        session=prepared.session,
        model=prepared.loaded.model,
        tokenizer=prepared.loaded.tokenizer,
        policy=prepared.policy,
        train=prepared.data.train,
        eval=prepared.data.eval,
        arguments=arguments,
        rows_per_step=shape.rows,
        rows_per_micro_batch=shape.rows_per_micro_batch,
        tokens_per_micro_batch=shape.tokens_per_micro_batch,
        seed=prepared.config.run.seed,
        references=references if "reference" in needs else {},
        rollouts=rollout_parts(prepared),
        row_order=order,
        source_rows=source_rows(prepared),
        callbacks=callbacks,
    )
