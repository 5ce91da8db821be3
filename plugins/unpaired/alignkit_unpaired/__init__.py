"""Training on answers labelled good or bad, without pairs."""

from alignkit_unpaired.kto import KTO, KTOSettings, kto_loss

__all__ = ["KTO", "KTOSettings", "kto_loss"]
