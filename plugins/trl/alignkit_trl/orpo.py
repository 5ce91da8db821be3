"""ORPO in a module of its own: it is experimental in TRL, and a release without it must not break the other methods."""

from __future__ import annotations

from alignkit_trl.methods import TRLMethod


class TRLORPO(TRLMethod):
    """Odds-ratio preference optimisation by trl.experimental.orpo.ORPOTrainer."""

    name, rows = "trl-orpo", "preference"
    paper = "Hong et al. 2024, ORPO, https://arxiv.org/abs/2403.07691, in TRL's experimental ORPOTrainer"
    trainer, config = "trl.experimental.orpo:ORPOTrainer", "trl.experimental.orpo:ORPOConfig"
    defaults = {"train.learning_rate": 8e-6}
    lora_defaults = {"train.learning_rate": 8e-5}
