"""Training on rankings: all answers to a prompt at once."""

from alignkit_listwise.method import ListwiseDPO, ListwiseDPOSettings, plackett_luce_loss

__all__ = ["ListwiseDPO", "ListwiseDPOSettings", "plackett_luce_loss"]
