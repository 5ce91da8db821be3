"""From a run's configuration and its plugins to its data: the one way for training, evaluation, checks, export and reports.

A service or method may load a source itself (``align_load_data``), so reading the rows of a run needs its plugins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit.config import RunConfig
from alignkit.data.load import Data, HeldOut, load_data, load_held_out
from alignkit.data.sources.open import Load
from alignkit.models.positions import room
from alignkit.training.session import Session

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def loader(config: RunConfig) -> Load:
    """Return what the run's plugins answer for a source; raises ``PluginError`` for one that cannot be used."""
    return Session.open(config, only="align_load_data").load_data


def run_data(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, limit: int | None, session: Session | None = None
) -> Data:
    """Return the training and held-out rows of a run, tokenised as its method takes them.

    ``limit`` is the model's number of positions (None: no limit). ``session`` holds the run's plugins, if they are open already. Raises ``DataError`` for a source or row and
    ``PluginError`` for a plugin that cannot be used.
    """
    session = session or Session.open(config, only="align_load_data")
    return load_data(config, session.method.rows, tokenizer, session.load_data, room(limit, session.method))


def held_out_data(config: RunConfig, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> HeldOut:
    """Return every row of ``data.eval_source``, for a model evaluated on rows it did not come with; raises as :func:`run_data`."""
    return load_held_out(config.data, tokenizer, loader(config), room(limit))
