"""``data.delimiter``, the separator of CSV columns."""

from pathlib import Path

import pytest
from alignkit.config import DataConfig
from alignkit.data.sources.open import open_source
from alignkit.errors import DataError

from tests.data.test_sources import ROWS, write_csv
from tests.helpers import data as helpers


@pytest.mark.parametrize(
    ("name", "delimiter", "message"),
    [
        ("a.csv", "ab", "data.delimiter must be one character, or tab, not 'ab'"),
        ("a.csv", "^", r"a.csv:1: the header does not contain data.delimiter '\^'"),
        ("a.jsonl", ";", "data.delimiter is for CSV files, and .*a.jsonl is not one"),
        ("org/set", ";", "data.delimiter is for CSV files, and org/set is a hub data set"),
    ],
)
def test_wrong_delimiter(
    tmp_path: Path, name: str, delimiter: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "a.csv")
    helpers.write_jsonl(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(DataError, match=message):
        open_source(name, None, DataConfig(delimiter=delimiter)).read()


@pytest.mark.parametrize(("delimiter", "named"), [("|", "|"), ("\t", "tab"), ("\t", "\\t"), ("^", "^")])
def test_named_delimiter(tmp_path: Path, delimiter: str, named: str) -> None:
    write_csv(tmp_path / "a.csv", delimiter)
    source = open_source(str(tmp_path / "a.csv"), None, DataConfig(delimiter=named))
    assert list(source.read().rows) == ROWS
    assert source.digest() != open_source(str(tmp_path / "a.csv"), None, DataConfig(delimiter=";")).digest()
