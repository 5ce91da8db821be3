"""Directories as sources of which only a part would be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from alignkit.errors import DataError

from tests.data.test_sources import load
from tests.helpers import data as helpers

UNREAD = {
    ("train-00000-of-00003", "train-00002-of-00003"): r"has 2 of the 3 shards train-\*-of-00003: download the others",
    ("rows", "more/rows"): r"folders with more of them \(more\), which would not be read",
    ("rows", "test-00000-of-00001"): r"has files of other splits \(test\) and none of train: set data\.split",
}
"""Files of a directory -> why it is refused, as some of them would be left out, or held-out rows trained on."""


@pytest.mark.parametrize(("names", "expected"), UNREAD.items(), ids=lambda value: value[0])
def test_directory_of_which_only_a_part_is_meant(tmp_path: Path, names: tuple[str, ...], expected: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        helpers.write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": name}])
    with pytest.raises(DataError, match=expected):
        load(tmp_path)
