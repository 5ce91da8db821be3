"""The cache of tokenised rows: hits equal misses, corrupt files, concurrent processes, key, directory."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.helpers.data import TOKENIZER, load, make_tokenizer, pairs, same, write_jsonl
from tests.helpers.forked import python


def test_cache_hit_equals_miss_and_corrupt_files_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(
        tmp_path / "rows.jsonl", [*pairs(10), {"id": "x", "prompt": "a", "chosen": "</s>", "rejected": "b"}]
    )
    miss = load(path, max_dropped=0.2)
    (file,) = (tmp_path / "cache" / "tokens").iterdir()
    with monkeypatch.context() as patched:
        patched.setattr("alignkit.data.load.encode", lambda *a: pytest.fail("tokenised in spite of the cache"))
        hit = load(path, max_dropped=0.2)
    assert same(hit.train, miss.train)
    assert same(hit.eval, miss.eval)
    assert hit.report == miss.report
    whole = file.read_bytes()
    for corrupt in (
        b"",
        whole[:-30],
        whole[: len(whole) // 2],
        b"\0" * len(whole),
        whole.replace(b"ARROW1", b"ARROW2"),
    ):
        file.unlink()  # the rows of the first load are still mapped from it
        file.write_bytes(corrupt)
        assert same(load(path, max_dropped=0.2).train, miss.train)
        assert file.read_bytes() == whole
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]  # nothing temporary is left behind


def test_processes_may_share_the_cache(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", pairs(50))
    code = (
        "import sys; from pathlib import Path; from tests.helpers.data import load; "
        "print(load(Path(sys.argv[1])).report.fingerprint)"
    )
    (tmp_path / "load.py").write_text(code)
    command = [python(), str(tmp_path / "load.py"), str(path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {process.communicate()[0].strip() for process in running}
    assert printed == {load(path).report.fingerprint}
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 1


def test_cache_key_is_rows_tokenizer_and_rules(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", pairs(10))
    folder = tmp_path / "cache" / "tokens"
    other_template = make_tokenizer()
    other_template.chat_template = "{{ messages }}"
    for files, (tokenizer, options) in enumerate(
        [
            (TOKENIZER, {}),
            (make_tokenizer(adds_bos=False), {}),
            (make_tokenizer(eos=False), {}),
            (other_template, {}),
            (TOKENIZER, {"max_length": 30}),
            (TOKENIZER, {"append_eos": False}),
            (TOKENIZER, {"limit": 9}),
        ],
        1,
    ):
        load(path, tokenizer=tokenizer, **options)
        assert len(list(folder.iterdir())) == files
    load(path, eval_split=0.3, max_dropped=0.5)  # neither changes a token
    load(path, tokenizer=make_tokenizer())
    assert len(list(folder.iterdir())) == files


def test_cache_directory_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "file"))
    data = load(write_jsonl(tmp_path / "rows.jsonl", pairs(10)))
    assert len(data.train) + len(data.eval) == 10
    assert "tokenised rows are not cached" in caplog.text
