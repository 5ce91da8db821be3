"""The content cache: damaged entries, several processes, directories that cannot be used, planted files."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alignkit.config import CheckConfig, EvalConfig
from alignkit.runs.evaluation import Subject, open_suites, run_suites
from alignkit.scoring.reference import reference_logps
from alignkit.system.cache import ContentCache, cache_directory
from alignkit.system.files import digest
from alignkit_checks.before_training import check_before_training
from alignkit_commands.entries import entries
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.helpers.data import TOKENIZER, load, pairs, write_jsonl
from tests.helpers.eval import ReferencePolicy, random_pairs, tiny_model
from tests.helpers.scoring import build

CACHE = ContentCache("checks", ".txt")
KEY = digest("a key")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path: Path, made: Callable[[], bytes]) -> None:
    path.write_bytes(made())


def write_tree(path: Path, made: Callable[[], bytes]) -> None:
    (path / "inner").mkdir(parents=True)
    (path / "first").write_bytes(made())
    (path / "inner" / "second").write_bytes(made()[:1])


def fetch(value: bytes = b"value", key: str = KEY) -> tuple[bytes, bool]:
    return CACHE.fetch(key, lambda: value, read=Path.read_bytes, write=write)


def files(entry: Path) -> dict[str, bytes]:
    """Return the content of a file, or of the files of a directory."""
    found = [entry] if entry.is_file() else [path for path in sorted(entry.rglob("*")) if path.is_file()]
    return {str(path.relative_to(entry)): path.read_bytes() for path in found}


def flip(path: Path, byte: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.unlink()  # the old one may be mapped
    path.write_bytes(content)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# ------------------------------------------------------------------------------------------------ damage


def tokens(source: Path) -> object:
    return list(load(source).train)


def checks(source: Path) -> object:
    return check_before_training(load(source), CheckConfig())


def reference(source: Path) -> object:
    names = {"rows_fingerprint": str(source), "weights_fingerprint": "w", "computed": "fp32"}
    policy: Any = ReferencePolicy(tiny_model())
    return reference_logps(policy, random_pairs(4), **names, max_tokens=64)[0].flat.tolist()


def evaluation(source: Path) -> object:
    policy: Any = ReferencePolicy(build(vocab_size=len(TOKENIZER)))
    held_out = load(source, eval_split=0.5).held_out
    subject = Subject("test", policy, TOKENIZER, held_out, weights="w", rules={}, scored_by="cpu auto")
    return run_suites(open_suites(EvalConfig(suites=["prefs"])), subject)["prefs"].items


@pytest.mark.parametrize("use", [tokens, checks, reference, evaluation], ids=lambda use: use.__name__)
def test_a_flipped_bit_in_an_entry_of_any_section_is_noticed(
    use: Callable[[Path], object], cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", [*pairs(8), *pairs(2)])
    expected = use(source)
    (entry,) = (cache / use.__name__).iterdir()
    whole = files(entry)
    draw = random.Random(0)
    for name in draw.choices(list(whole), k=6):
        flip(entry / name, draw.randrange(len(whole[name])), draw.randrange(8))
        caplog.clear()
        assert use(source) == expected
        assert [r.message for r in caplog.records if "cache" in r.message] == [
            f"the cache entry {entry} is damaged (its checksum is wrong) and is made again"
        ]
        (entry,) = (cache / use.__name__).iterdir()  # an evaluation's name is new: its seconds are recorded
        assert files(entry).keys() == whole.keys()
        whole = files(entry)
        caplog.clear()
        assert use(source) == expected
        assert not caplog.records


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.binary(max_size=40), other=st.binary(max_size=40), tree=st.booleans())
@example(value=b"", other=b"\n", tree=False)
@example(value=b"ab", other=b"ab", tree=True)
def test_an_entry_with_any_other_content_is_noticed(cache: Path, value: bytes, other: bytes, tree: bool) -> None:
    shutil.rmtree(cache, ignore_errors=True)
    read = (lambda path: (path / "first").read_bytes()) if tree else Path.read_bytes
    store = write_tree if tree else write
    assert CACHE.fetch(KEY, lambda: value, read=read, write=store) == (value, False)
    assert CACHE.fetch(KEY, lambda: b"not made", read=read, write=store) == (value, True)
    (entry,) = (cache / "checks").iterdir()
    whole = files(entry)
    (entry / "first" if tree else entry).write_bytes(other)
    assert CACHE.fetch(KEY, lambda: value, read=read, write=store) == (value, other == value)
    assert files(entry) == whole
    if tree:
        (entry / "inner" / "second").rename(entry / "inner" / "third")
        assert CACHE.fetch(KEY, lambda: value, read=read, write=store) == (value, False)
        assert files(entry) == whole


def test_an_entry_under_the_name_of_another_is_noticed(cache: Path) -> None:
    fetch(b"value")
    (entry,) = (cache / "checks").iterdir()
    entry.rename(entry.with_name(entry.name.replace(KEY, digest("another key"))))
    assert fetch(b"another", digest("another key")) == (b"another", False)


def test_an_entry_that_cannot_be_read_is_made_again(caplog: pytest.LogCaptureFixture) -> None:
    fetch(b"old form")
    read: Any = lambda path: {b"new form": 1}[path.read_bytes()]
    assert CACHE.fetch(KEY, lambda: b"new form", read=read, write=write) == (1, False)
    assert "is damaged (b'old form') and is made again" in caplog.text


# ------------------------------------------------------------------------------------------------ processes

FETCH = """
import os, resource, signal, sys, time
from pathlib import Path
from alignkit.system.cache import ContentCache

def make():
    with Path(sys.argv[2]).open("a") as log:
        log.write("made\\n")
    time.sleep(0.5)
    return "value" * 1000

def write(path, made):
    path.mkdir()
    (path / "half").write_text(made())
    if sys.argv[3] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[3] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
value, cached = ContentCache("checks").fetch(sys.argv[1], make, read=lambda p: (p / "half").read_text(), write=write)
print(value == "value" * 1000, cached)
"""


def fetching(log: Path, how: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCH, KEY, str(log), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_several_processes_one_makes_an_entry_and_the_others_wait(cache: Path, tmp_path: Path) -> None:
    running = [fetching(tmp_path / "log") for _ in range(4)]
    printed = sorted(process.communicate()[0] for process in running)
    assert printed == ["True False\n"] + ["True True\n"] * 3
    assert (tmp_path / "log").read_text() == "made\n"
    assert len(names(cache / "checks")) == 1


def test_what_a_killed_process_left_is_removed(cache: Path, tmp_path: Path) -> None:
    fetching(tmp_path / "log", "killed").communicate()
    assert names(cache / "checks") == [f"{KEY}.lock", f"{KEY}.partial"]
    assert fetch(key=digest("another key")) == (b"value", False)
    (entry,) = (cache / "checks").iterdir()
    assert entry.read_bytes() == b"value"


# ------------------------------------------------------------------------------------------------ directories that cannot be used


def test_a_full_disk_ends_nothing(cache: Path, tmp_path: Path) -> None:
    out, err = fetching(tmp_path / "log", "full").communicate()
    assert out == "True False\n"
    assert err.startswith("data checks are not cached: ")
    assert err.count("\n") == 1
    assert (tmp_path / "log").read_text() == "made\n"
    assert names(cache / "checks") == []


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere", "closed/cache"])
def test_a_directory_that_cannot_be_made_ends_nothing(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir(mode=0o500)
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / place))
    root = os.geteuid() == 0
    if root:  # who may write anywhere
        os.seteuid(65534)
    try:
        assert fetch() == (b"value", False)
    finally:
        if root:
            os.seteuid(0)
    assert [record.message[:28] for record in caplog.records] == ["data checks are not cached: "]
    assert entries() == []


def test_an_entry_is_read_without_a_lock(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    fetch()
    (cache / "checks" / f"{KEY}.lock").mkdir()  # cannot be made, as in a directory that may only be read
    assert fetch() == (b"value", True)
    assert not caplog.records
    assert fetch(b"another", digest("another key"))[1] is False


# ------------------------------------------------------------------------------------------------ planted files


def test_directories_are_the_users_alone(cache: Path) -> None:
    before = os.umask(0)
    try:
        fetch()
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (cache, cache / "checks")] == [0o700, 0o700]


def test_a_linked_section_is_not_used(cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (cache / "checks").symlink_to(tmp_path / "elsewhere")
    assert fetch() == (b"value", False)
    assert "is a link or belongs to another user" in caplog.text
    assert names(tmp_path / "elsewhere") == []


def test_links_to_other_files_are_not_followed(cache: Path, tmp_path: Path) -> None:
    fetch()
    (entry,) = (cache / "checks").iterdir()
    victim = entry.rename(tmp_path / "victim")
    entry.symlink_to(victim)
    assert fetch() == (b"value", False)
    assert not entry.is_symlink()
    for suffix in (".partial", ".lock"):
        entry.unlink()
        (cache / "checks" / f"{KEY}{suffix}").symlink_to(victim)
        assert fetch(b"VALUE") == (b"VALUE", False)
        assert victim.read_bytes() == b"value"
        if suffix == ".partial":
            (entry,) = (cache / "checks").iterdir()


def test_another_users_entry_is_ignored(cache: Path) -> None:
    fetch()
    (entry,) = (cache / "checks").iterdir()
    if os.geteuid() == 0:
        os.chown(entry, 65534, -1)
        assert entries() == []
        assert fetch() == (b"value", False)
    assert entry.stat().st_uid == os.geteuid()
    assert fetch() == (b"value", True)


def test_where_the_cache_is(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_directory() == cache
    monkeypatch.delenv("ALIGN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_directory() == Path("/x/alignkit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "alignkit"


def test_a_cache_that_cannot_be_used_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "file"))
    for number in range(3):
        assert fetch(key=digest(number)) == (b"value", False)
    assert len(caplog.records) == 1


def test_a_user_without_a_home_directory_works_without_a_cache(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nowhere(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nowhere)
    assert fetch() == (b"value", False)
    assert "Set HOME or ALIGN_CACHE" in caplog.text
