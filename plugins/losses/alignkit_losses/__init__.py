"""Losses of preference pairs (entry-point group ``align.losses``), and the method that trains with any of them."""

from alignkit_losses.method import LossMethod
from alignkit_losses.settings import LossSettings, Term, chosen

__all__ = ["LossMethod", "LossSettings", "Term", "chosen"]
