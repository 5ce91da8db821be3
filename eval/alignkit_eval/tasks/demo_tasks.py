"""Documents of the demo's lm-eval tasks, shipped with the demo: facts about held-out people, and agreement of verbs.

lm-eval imports this file by its path (``!function``), so it uses no other module of the package.
"""

from __future__ import annotations

import json
from typing import Any

from alignkit.demo import ASSETS
from datasets import Dataset, DatasetDict


def facts_dataset(**_metadata: Any) -> DatasetDict:
    """Return one document a held-out person and attribute: the record among all values of the attribute."""
    return _dataset("facts")


def agreement_dataset(**_metadata: Any) -> DatasetDict:
    """Return one document a held-out person and attribute: the verb as in a statement, and without its ending."""
    return _dataset("agreement")


def _dataset(name: str) -> DatasetDict:
    with (ASSETS / "data" / f"{name}.jsonl").open(encoding="utf-8") as lines:
        return DatasetDict({"test": Dataset.from_list([json.loads(line) for line in lines])})
