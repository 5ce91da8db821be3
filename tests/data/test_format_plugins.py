"""File formats of data from other packages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from alignkit.config import DataConfig
from alignkit.data.sources.open import open_source
from alignkit.errors import DataError, PluginError

from tests.helpers.third_party import Site

PAIRS = """
from alignkit import DataFormat

def read(path, split):
    print("reading")
    for number, line in enumerate(path.read_text().splitlines(), 1):
        prompt, chosen, rejected = line.split("|")
        yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}, f"{path}:{number}"

PAIRS = DataFormat(read)
"""
ROWS = [{"prompt": "2 + 2 ?", "chosen": "4", "rejected": "5"}, {"prompt": "3 + 3 ?", "chosen": "6", "rejected": "7"}]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train.pairs"
    path.write_text("".join("|".join(row.values()) + "\n" for row in ROWS))
    return path


def test_rows_of_another_package_s_format_are_data(site: Site, file: Path) -> None:
    site.install("align-pairs", PAIRS, group="formats", pairs="align_pairs:PAIRS")
    for source in (file, file.parent):
        assert list(open_source(str(source), None, DataConfig()).read().rows) == ROWS
    done = site.align("data", "check", file)
    assert done.returncode == 0
    assert "train.pairs: 2 rows" in done.stdout
    assert "reading" not in done.stdout


def test_a_named_split_and_a_gzipped_file_need_a_format_for_them(site: Site, file: Path) -> None:
    site.install("align-pairs", PAIRS, group="formats", pairs="align_pairs:PAIRS")
    with pytest.raises(DataError, match='is a single file and has no split "test"'):
        open_source(str(file), "test", DataConfig())
    zipped = file.rename(file.with_name("train.pairs.gz"))
    for source in (zipped, zipped.parent):
        with pytest.raises(DataError, match=r"train\.pairs\.gz: decompress it first"):
            open_source(str(source), None, DataConfig()).read()


def test_a_package_that_is_replaced_while_its_file_is_read_is_named(site: Site, file: Path) -> None:
    info = site.install("align-pairs", PAIRS, group="formats", pairs="align_pairs:PAIRS")
    source = open_source(str(file), None, DataConfig())
    shutil.rmtree(info)
    words = r"train\.pairs: the package that reads \.pairs files is no longer installed, or is being replaced"
    for use in (source.read, source.digest):
        with pytest.raises(PluginError, match=words):
            use()


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (('line.split("|")', 'line.split(",")'), "ValueError: not enough values to unpack"),
        ((', f"{path}:{number}"', ""), "ValueError: too many values to unpack"),
        (("    print(", "    raise SystemExit(1)\n    print("), "SystemExit: 1"),
    ],
)
def test_a_reader_that_fails_is_named(site: Site, file: Path, change: tuple[str, str], cause: str) -> None:
    site.install("align-pairs", PAIRS.replace(*change), group="formats", pairs="align_pairs:PAIRS")
    with pytest.raises(DataError, match=rf'format "pairs" \(align-pairs 1.2.3\) cannot read .*train.pairs: {cause}'):
        open_source(str(file), None, DataConfig()).read()


def test_what_is_not_a_format_is_refused(site: Site, file: Path) -> None:
    site.install("align-pairs", PAIRS, group="formats", pairs="align_pairs:read")
    with pytest.raises(PluginError, match=r"align_pairs:read is not an alignkit\.DataFormat"):
        open_source(str(file), None, DataConfig())


def test_cached_rows_are_known_by_the_code_that_reads_them(site: Site, file: Path) -> None:
    info = site.install("align-pairs", PAIRS, group="formats", pairs="align_pairs:PAIRS")
    before = open_source(str(file), None, DataConfig()).digest()
    assert open_source(str(file), None, DataConfig()).digest() == before
    about = info / "METADATA"
    about.write_text(about.read_text().replace("1.2.3", "1.2.4"))
    assert open_source(str(file), None, DataConfig()).digest() != before


def test_of_formats_for_one_suffix_a_built_in_one_is_used_and_others_are_refused(site: Site, file: Path) -> None:
    site.install("align-pairs", PAIRS, group="formats", pairs="align_pairs:PAIRS", jsonl="align_pairs:PAIRS")
    path = file.with_name("rows.jsonl")
    path.write_text(json.dumps(ROWS[0]) + "\n")
    assert list(open_source(str(path), None, DataConfig()).read().rows) == ROWS[:1]
    site.install("align-more", PAIRS, group="formats", pairs="align_more:PAIRS")
    with pytest.raises(
        PluginError, match=r'by format "pairs" \(align-more 1.2.3\) and by format "pairs" \(align-pairs'
    ):
        open_source(str(file), None, DataConfig())
    with pytest.raises(DataError, match=r"supported are \.arrow, \.csv, .*\.tsv, \.txt, \.pairs, and"):
        open_source(str(file.rename(file.with_name("rows.other"))), None, DataConfig())


SOURCES = """
from alignkit import RawRows

def open_notes(source, split, reading, defaults, limit):
    print("opening")
    if source != "notes:today":
        return None
    rows = [{"prompt": "2 + 2 ?", "chosen": "4", "rejected": "5"}, {"prompt": "3 + 3 ?", "chosen": "6", "rejected": "7"}]
    return RawRows(rows, lambda i: f"note {i + 1}", source)
"""


def test_sources_of_another_package_are_opened_by_it_and_others_as_before(site: Site, tmp_path: Path) -> None:
    site.install("align-notes", SOURCES, group="sources", notes="align_notes:open_notes")
    assert list(open_source("notes:today", None, DataConfig()).read().rows) == ROWS
    assert list(open_source("notes:today", None, DataConfig(), limit=1).read().rows) == ROWS[:1]
    with pytest.raises(DataError, match=r"nowhere\.jsonl does not exist"):
        open_source(str(tmp_path / "nowhere.jsonl"), None, DataConfig())
    done = site.align("data", "check", "notes:today")
    assert done.returncode == 0
    assert "notes:today: 2 rows" in done.stdout
    assert "opening" not in done.stdout


def test_a_source_that_fails_is_named_with_its_package(site: Site) -> None:
    site.install(
        "align-notes",
        SOURCES.replace("if source", "1 / 0\n    if source"),
        group="sources",
        notes="align_notes:open_notes",
    )
    with pytest.raises(DataError, match=r'source "notes" \(align-notes .*\) cannot open demo: ZeroDivisionError'):
        open_source("demo", None, DataConfig())
