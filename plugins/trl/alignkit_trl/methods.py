"""One method per TRL trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from alignkit import Method, Settings, hookimpl, open_rewards
from alignkit.errors import ConfigError

from alignkit_trl.settings import load, settings_of

_OWN_TOKENS = "TRL tokenises the rows itself"
_UNUSED = {
    "train.tokens_per_micro_batch": "TRL divides a step by train.per_device_train_batch_size",
    "data.append_eos": _OWN_TOKENS,
    "model.head": "TRL's trainer multiplies with the weights of the output layer itself",
    "data.phases": "TRL's trainer takes the same rows in every epoch",
}
_OWN_ORDER = "TRL's trainer takes the prompts in an order of its own"


class TRLMethod(Method[Settings]):
    """Base of the methods that train with a TRL trainer."""

    trainer: ClassVar[str]
    """``module:Trainer``."""
    config: ClassVar[str]
    """``module:Config``."""
    has_reference: ClassVar[bool] = False
    has_rewards: ClassVar[bool] = False
    own_order: ClassVar[bool] = True
    """Whether rows come in alignkit's order; trainers that sample answers repeat prompts in their own order."""
    fixed: ClassVar[Mapping[str, Any]] = {}
    """Values of TRL's configuration that the trainer requires."""
    unused = _UNUSED

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.settings_type = settings_of(cls.config, rewards=cls.has_rewards)

    def given(self) -> dict[str, Any]:
        """Return the method's values of TRL's configuration."""
        return self.settings.model_dump(exclude={"rewards"}) | dict(self.fixed)

    @hookimpl
    def align_build_trainer(self, parts: Any) -> Any:
        """Build TRL's trainer with the run's model, rows, arguments and callbacks."""
        from alignkit_trl import bridge

        given = self.given()
        if given.get("max_length", 0) is None:
            given["max_length"] = parts.max_length
        train = bridge.columns(parts.rows("train"), self.rows)
        if self.fixed:  # sequential rows: in the engine's order of the first epoch
            train = train.select(parts.rows_of_epoch(0))
        evaluates = parts.arguments.eval_strategy != "no"
        more: dict[str, Any] = {}
        if self.has_reference and not hasattr(parts.model, "disable_adapter"):
            # TRL would load the reference from the model's path, whose content may have changed.
            more["ref_model"] = parts.start_model()
        if self.has_rewards:
            if not (rewards := open_rewards(getattr(self.settings, "rewards", []))):
                raise ConfigError(f"method {self.name} needs a reward: --set reward=NAME (align rewards lists them)")
            rows, tokenizer = parts.rows("train"), parts.tokenizer
            more["reward_funcs"] = [bridge.as_trl_reward(reward, rows, tokenizer) for reward in rewards]
            given["reward_weights"] = [reward.weight for reward in rewards]
        kind = parts.staged(load(self.trainer))
        if self.own_order and not self.fixed:
            kind = bridge.in_our_order(kind, parts)
            given["train_sampling_strategy"] = "sequential"  # a plain sampler, which ours replaces
        trainer = kind(
            model=parts.model,
            args=bridge.arguments(load(self.config), parts, given),
            train_dataset=train,
            eval_dataset=bridge.columns(parts.rows("eval"), self.rows) if evaluates else None,
            processing_class=parts.tokenizer,
            callbacks=[bridge.RunMetrics(parts, parts.memory_gb), *parts.callbacks],
            **more,
        )
        if self.own_order and (lost := len(train) - len(trainer.train_dataset)) > 0:
            raise ConfigError(
                f"{self.name}: TRL truncates rows on the right, and {lost} prompts alone fill max_length "
                f"{given.get('max_length')}, which leaves no answer: shorten these prompts or remove the rows"
            )
        return trainer


class TRLSFT(TRLMethod):
    """Supervised fine-tuning by trl.SFTTrainer."""

    name, rows = "trl-sft", "completion"
    paper = "TRL, SFTTrainer, https://huggingface.co/docs/trl/sft_trainer"
    trainer, config = "trl:SFTTrainer", "trl:SFTConfig"
    defaults = {"train.learning_rate": 2e-5}
    lora_defaults = {"train.learning_rate": 2e-4}


class TRLDPO(TRLMethod):
    """Direct preference optimisation by trl.DPOTrainer."""

    name, rows = "trl-dpo", "preference"
    paper = "TRL, DPOTrainer, https://huggingface.co/docs/trl/dpo_trainer"
    trainer, config = "trl:DPOTrainer", "trl:DPOConfig"
    has_reference = True
    defaults = {"train.learning_rate": 1e-6}
    lora_defaults = {"train.learning_rate": 1e-5}


class TRLKTO(TRLMethod):
    """Training on answers labelled good or bad by trl.KTOTrainer."""

    name, rows = "trl-kto", "unpaired"
    paper = "Ethayarajh et al. 2024, KTO, https://arxiv.org/abs/2402.01306, in TRL's KTOTrainer"
    trainer, config = "trl:KTOTrainer", "trl:KTOConfig"
    has_reference = True
    unused = {
        **_UNUSED,
        "data.curriculum.epochs": "TRL's trainer takes the rows of every epoch in the order of the first",
    }
    fixed = {"train_sampling_strategy": "sequential"}  # its KL is estimated over neighbours in a fixed order
    defaults = {"train.learning_rate": 1e-6}
    lora_defaults = {"train.learning_rate": 1e-5}


class TRLGRPO(TRLMethod):
    """Group-relative policy optimisation by trl.GRPOTrainer."""

    name, rows = "trl-grpo", "prompt"
    paper = "Shao et al. 2024, DeepSeekMath, https://arxiv.org/abs/2402.03300, in TRL's GRPOTrainer"
    trainer, config = "trl:GRPOTrainer", "trl:GRPOConfig"
    has_rewards, own_order = True, False
    defaults = {"train.learning_rate": 1e-6}
    lora_defaults = {"train.learning_rate": 1e-5}
    unused = {
        **_UNUSED,
        "data.shuffle": f"{_OWN_ORDER}, see method.shuffle_dataset",
        **dict.fromkeys(("data.curriculum", "data.group_by", "data.interleave", "data.exhausted"), _OWN_ORDER),
        **dict.fromkeys(("data.sources.weight", "data.sources.repeat"), _OWN_ORDER),
    }
    demo = {"method.rewards": "alignkit.demo.world:quality", "method.max_completion_length": 32}


class TRLRLOO(TRLGRPO):
    """REINFORCE with a leave-one-out baseline by trl.RLOOTrainer."""

    name = "trl-rloo"
    paper = "Ahmadian et al. 2024, Back to Basics, https://arxiv.org/abs/2402.14740, in TRL's RLOOTrainer"
    trainer, config = "trl:RLOOTrainer", "trl:RLOOConfig"
