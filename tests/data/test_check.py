"""``align data check``: every rule on rows that violate it and rows that do not; no row is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from alignkit.__main__ import main
from alignkit.config import CheckConfig, DataConfig, ModelConfig
from alignkit.demo import data_path
from alignkit.errors import DataError
from alignkit.models.load import build_model
from alignkit_checks.check import check_source
from alignkit_checks.fix import write_fixed
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.runs import align


def pair(
    prompt: str = "what is one ?", chosen: str = " one is one .", rejected: str = " two .", **more: Any
) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def talk(*turns: tuple[str, str], answer: str = "assistant") -> dict[str, Any]:
    prompt = [{"role": role, "content": text} for role, text in turns]
    return {
        "prompt": prompt,
        "chosen": [{"role": answer, "content": "good day"}],
        "rejected": [{"role": answer, "content": "bad day"}],
    }


def written(path: Path, *rows: Any) -> str:
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return str(path)


FINE = pair("a first question about rain ?"), pair("some other thing to ask of snow ?", " white .", " black .")
USER = ("user", "hello there my friend")

# Rows added to two good ones, the rule that finds them, their lines, and the text of the finding.
CASES: dict[str, tuple[list[Any], str, list[int], str]] = {
    "broken JSON": ([b'{"prompt": "a'], "broken", [3], "invalid JSON: column 12"),
    "no UTF-8": ([b'{"prompt": "\xff"}'], "broken", [3], "not UTF-8 (byte 0xff)"),
    "no object": ([b"[1, 2]"], "broken", [3], "the line is a list, expected an object"),
    "number": ([b"17"], "broken", [3], "the line is a number"),
    "nested too deeply": ([b"[" * 100_000], "broken", [3], "invalid JSON"),
    "missing column": ([{"prompt": "x", "chosen": "y"}], "unusable", [3], 'no column "rejected"'),
    "wrong type": ([pair(chosen=3)], "broken", [3], '"chosen" is a number'),
    "null": ([pair(rejected=None)], "unusable", [3], '"rejected" is null'),
    "surrogate": ([b'{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}'], "broken", [3], "surrogate"),
    "message without a role": ([{**talk(USER), "prompt": [{"content": "x"}]}], "broken", [3], "no role"),
    "empty completion": ([pair("q ?", " ", "b")], "unusable", [3], "empty completion"),
    "same answers": ([pair("q ?", "a", "a")], "unusable", [3], "chosen and rejected are the same"),
    "twice": ([FINE[0]], "duplicate", [3], "d.jsonl:1"),
    "thrice": ([FINE[0], FINE[0]], "duplicate", [3, 4], "d.jsonl:1"),
    "both ways": (
        [pair("q ?", "a", "b"), pair("q ?", "b", "a")],
        "contradiction",
        [3, 4],
        "has the opposite preference",
    ),
    "nearly the same": (
        [
            pair("tell me a long story about the old king of the far hills ?", " one day ."),
            pair("tell me a long story about the old king of the far hills !", " one day ."),
        ],
        "near-duplicate",
        [4],
        "d.jsonl:3",
    ),
    "mojibake": ([pair("caf\u00c3\u00a9 ?")], "encoding", [3], "prompt: ...caf"),
    "smart quote": ([pair(chosen="it\u00e2\u20ac\u2122s fine")], "encoding", [3], "chosen"),
    "replacement": ([pair(rejected="b\ufffdd")], "encoding", [3], "rejected"),
    "NUL": ([pair("a\x00b ?")], "control", [3], "prompt contains U+0000"),
    "zero width": ([pair(chosen="in\u200bvisible")], "control", [3], "chosen contains U+200B"),
    "byte order mark inside": ([pair(rejected="\ufeffx")], "control", [3], "U+FEFF"),
    "right to left": ([pair("a\u202eb ?")], "control", [3], "U+202E"),
    "system in the middle": (
        [talk(USER, ("assistant", "hi"), ("system", "x"))],
        "roles",
        [3],
        "a system turn is not the first turn",
    ),
    "two users": ([talk(USER, USER)], "roles", [3], "two consecutive user turns"),
    "assistant first": ([talk(("assistant", "hi"), USER)], "roles", [3], "begins with an assistant turn"),
    "a list written as text": (
        [pair(rejected=' ["one", "two"]'), pair(rejected=" [one]")],
        "list-text",
        [3],
        "rejected is one text, ",
    ),
    "no space between prompt and answer": (
        [pair(chosen="white"), pair("as in (", "white", "black"), pair("\u5929\u7a7a", "\u767d", "\u9ed1")],
        "joined",
        [3],
        "are read as 'hat is one ?white': begin the answers with a space",
    ),
    "answer of a user": ([talk(USER, ("assistant", "a"), answer="user")], "roles", [3], "the answer has the role user"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_rule_finds_its_rows_and_no_other(tmp_path: Path, case: str) -> None:
    rows, rule, lines, expected = CASES[case]
    chat = any(isinstance(row, dict) and isinstance(row.get("prompt"), list) for row in rows)
    good = (talk(USER), talk(("user", "a wholly different matter"))) if chat else FINE
    source = written(tmp_path / "d.jsonl", *good, *rows)
    found = check_source(source)
    assert found.rows == 2 + len(rows)
    by_rule = {finding.rule: finding for finding in found.findings}
    assert rule in by_rule, found.lines()
    assert [e["place"] for e in by_rule[rule].examples] == [f"{source}:{line}" for line in lines]
    assert expected in by_rule[rule].examples[0]["about"]
    assert by_rule[rule].count == len(lines)
    assert by_rule[rule].rate == pytest.approx(len(lines) / found.rows)
    assert found.to_json()["findings"]
    assert json.dumps(found.to_json())


def test_what_is_fine_is_fine(tmp_path: Path) -> None:
    found = check_source(
        written(
            tmp_path / "d.jsonl",
            *FINE,
            pair("\u043a\u0430\u043a \u0434\u0435\u043b\u0430 ?", " caf\u00e9 na\u00efve \u2019tis", " \u2014 no"),
        )
    )
    assert found.findings == []
    assert "no problems found" in found.lines()[0]


def limited(**limits: Any) -> DataConfig:
    return DataConfig(check=CheckConfig(**limits))


def test_limits(tmp_path: Path) -> None:
    rows = [
        pair(
            "\u0447\u0442\u043e \u044d\u0442\u043e \u0442\u0430\u043a\u043e\u0435 ?",
            "\u0434\u0430 \u044d\u0442\u043e \u0434\u043e\u043c",
            "\u043d\u0435\u0442 \u044d\u0442\u043e \u043d\u0435 \u0442\u0430\u043a",
        ),
        pair("what is it ?", "yes it is", "no it is not"),
    ]
    source = written(tmp_path / "d.jsonl", *rows)
    found = check_source(source, config=limited(script="Cyrillic", min_words=3))
    (script,) = [finding for finding in found.findings if finding.rule == "script"]
    assert script.count == 1
    assert script.examples[0]["place"].endswith(":2")
    assert "0% of the letters of prompt are Cyrillic" in script.examples[0]["about"]
    (short,) = [f for f in check_source(source, config=limited(min_words=4)).findings if f.rule == "short"]
    assert short.count == 2


def test_leaks(tmp_path: Path) -> None:
    held = written(tmp_path / "held.jsonl", FINE[0], pair("how does one build a very small boat from paper at home ?"))
    rows = FINE[0], FINE[1], pair("how does one build a very small boat from paper at home !")
    found = check_source(written(tmp_path / "d.jsonl", *rows), held_out=held)
    (leak,) = [finding for finding in found.findings if finding.rule == "leak"]
    assert leak.count == 2
    assert "same prompt as" in leak.examples[0]["about"]
    assert "held.jsonl:2" in leak.examples[1]["about"]


HH = "\n\nHuman: {}\n\nAssistant: Yes.\n\nHuman: {}\n\nAssistant:"


def test_dialogues_that_begin_as_a_held_out_one(tmp_path: Path) -> None:
    turns = ("assistant", "yes"), ("user", "and the other bird ?")
    held = written(
        tmp_path / "held.jsonl",
        pair(HH.format("How tall is  a wren ?", "And is it loud in spring ?")),
        talk(("user", "Why is it cold today ?"), *turns),
        pair(HH.format("Hi there", "How do I bake bread at home ?")),
    )
    rows = [
        pair(HH.format("how tall is a wren ?", "What does it eat all day long ?")),
        talk(("system", "be brief"), ("user", "why is it cold today ?"), ("assistant", "so"), ("user", "Is it so ?")),
        pair(HH.format("Hi there", "What can one read on a train ?")),
    ]
    found = check_source(written(tmp_path / "d.jsonl", *rows), held_out=held)
    (leak,) = [finding for finding in found.findings if finding.rule == "leak-first-turn"]
    assert [example["place"][-2:] for example in leak.examples] == [":1", ":2"]
    assert f"the first turn is that of {held}:1" in leak.examples[0]["about"]
    assert not leak.drops


def test_lengths_by_hand(tmp_path: Path) -> None:
    rows = [
        pair("a ?", "one two", "one"),
        pair("b ?", "one", "one two"),
        pair("c ?", "x y", "z w"),
        pair("d ?", "x y z", "z"),
    ]
    found = check_source(written(tmp_path / "d.jsonl", *rows))
    assert dict(found.length) == {
        "chosen_longer": 0.5,
        "same_length": 0.25,
        "chosen_shorter": 0.25,
        "longer_is_better": 0.625,
    }


def test_what_tokenisation_would_do() -> None:
    tokenizer = build_model(ModelConfig()).tokenizer
    found = check_source(str(data_path("dev")), config=DataConfig(max_length=20), tokenizer=tokenizer)
    assert found.tokens["truncated_prompts"] > 0
    assert any("truncated prompts" in line for line in found.lines())
    whole = check_source(str(data_path("dev")), config=DataConfig(max_length=256), tokenizer=tokenizer)
    assert whole.tokens["truncated_prompts"] == 0


def test_a_cleaned_copy_holds_the_rest_as_it_stood(tmp_path: Path) -> None:
    extra = pair("kept ?", " a", " b", origin={"file": "x", "n": [1, 2]})
    source = written(tmp_path / "d.jsonl", *FINE, b"{broken", FINE[0], pair("q ?", "a", "a"), extra)
    found = check_source(source)
    kept, left = write_fixed(found, tmp_path / "fixed.jsonl")
    assert (kept, left) == (3, 3)
    rows = [json.loads(line) for line in (tmp_path / "fixed.jsonl").read_text().splitlines()]
    assert rows == [*FINE, extra], "unused columns are kept"
    log = [json.loads(line) for line in (tmp_path / "fixed.jsonl.dropped.jsonl").read_text().splitlines()]
    assert [(entry["place"].rpartition(":")[2], entry["rule"]) for entry in log] == [
        ("3", "broken"),
        ("4", "duplicate"),
        ("5", "unusable"),
    ]
    assert check_source(str(tmp_path / "fixed.jsonl")).findings == []
    with pytest.raises(DataError, match="exists already"):
        write_fixed(found, tmp_path / "fixed.jsonl")


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
VALUE = st.one_of(TEXT, st.none(), st.integers(), st.booleans(), st.lists(TEXT, max_size=2))
ROW = st.one_of(
    st.fixed_dictionaries({"prompt": VALUE, "chosen": VALUE, "rejected": VALUE}),
    st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "text", "other"]), VALUE, max_size=4),
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(ROW, max_size=6))
def test_whatever_goes_in_the_counts_add_up(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    source = written(folder / "d.jsonl", pair(), *rows)
    found = check_source(source)
    assert found.rows == 1 + len(rows)
    kept, left = write_fixed(found, folder / "fixed.jsonl")
    assert kept + left >= found.rows, "several rejected answers are several rows"
    again = check_source(str(folder / "fixed.jsonl")) if kept else None
    assert again is None or not [f for f in again.findings if f.drops]


@pytest.mark.slow
def test_on_the_command_line(tmp_path: Path) -> None:
    written(tmp_path / "d.jsonl", *FINE, b"{broken", FINE[0])
    done = align("data", "check", "d.jsonl", "--fix", "out.jsonl", "--strict", cwd=tmp_path)
    assert done.returncode == 1
    assert "d.jsonl:3: invalid JSON" in done.stdout
    assert "d.jsonl:4: the same as d.jsonl:1" in done.stdout
    assert "2 rows written to out.jsonl, 2 dropped rows to out.jsonl.dropped.jsonl" in done.stderr
    missing = align("data", "check", "nowhere.jsonl", cwd=tmp_path)
    assert missing.returncode == 2
    assert "nowhere.jsonl" in missing.stderr


def test_a_configuration_is_checked_source_by_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "one.jsonl", *FINE, FINE[0])
    written(
        tmp_path / "two.jsonl", {"q": "c\u0430t ?", "chosen": " yes .", "rejected": " no ."}, pair("<b>&", "x", "x")
    )
    (tmp_path / "run.yaml").write_text(
        "method: orpo\nmodel: demo\ndata:\n  max_length: 8\n  check: {min_words: 1, script: Latin}\n"
        "  sources: [one.jsonl, {source: two.jsonl, columns: {prompt: q}}]\n"
    )
    assert main(["data", "check", "run.yaml", "--json", "--html", "page.html"]) == 0
    one, two = json.loads(capsys.readouterr().out)
    assert [one["source"], two["source"]] == ["one.jsonl", "two.jsonl"]
    rules = {finding["rule"]: finding for finding in one["findings"]}
    assert rules["duplicate"]["examples"][0]["about"] == "the same as one.jsonl:1"
    assert rules["truncated"]["count"] > 0
    assert one["token_lengths"]["most"] > one["max_length"] == 8
    found = {finding["rule"]: finding for finding in two["findings"]}
    assert found["mixed-script"]["examples"][0]["about"] == '"c\u0430t" in prompt mixes Cyrillic and Latin letters'
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/svg+xml") == 6, "words, differences and tokens of either source"
    assert "one.jsonl:3" in page
    assert "<b>&" not in page
    assert main(["data", "check", "run.yaml", "--fix", "out.jsonl"]) == 2
    assert "one source at a time" in capsys.readouterr().err


def test_what_a_model_would_make_of_conversations(tmp_path: Path) -> None:
    tokenizer = build_model(ModelConfig()).tokenizer
    tokenizer.chat_template = (
        "{{ bos_token }}{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}"
        "{% endif %}{{ m.content }}\\n{% endfor %}"
    )
    refused = talk(USER, ("tool", "x"))
    source = written(tmp_path / "d.jsonl", talk(USER), refused, talk(("user", "a wholly different matter")))
    found = check_source(source, config=DataConfig(append_eos=False), tokenizer=tokenizer)
    rules = {finding.rule: finding for finding in found.findings}
    assert rules["template"].examples[0] == {
        "place": f"{source}:2",
        "row": rules["template"].examples[0]["row"],
        "about": "the chat template rejects this conversation: no tools",
    }
    assert rules["double-bos"].count == rules["no-end"].count == 2
    kept, left = write_fixed(found, tmp_path / "fixed.jsonl")
    assert (kept, left) == (2, 1)
