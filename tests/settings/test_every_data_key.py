"""Every key of ``data:`` changes what it says, or is refused: a table of all of them, so that a new one needs a row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alignkit import RunConfig, settings
from alignkit.config import DataConfig
from alignkit.contract import registry
from alignkit.data.load import load_data
from alignkit.data.order import row_order
from alignkit.errors import AlignError, ConfigError
from alignkit.settings.layers import SECTIONS
from alignkit_checks.before_training import check_before_training
from alignkit_checks.no_effect import refuse_idle

from tests.helpers.data import TOKENIZER, write_jsonl
from tests.helpers.keys import Row, keys_of
from tests.helpers.runs import align

LONG = " and two" * 12
MIX = {"source": "demo", "sources": ["pairs.jsonl", "more.jsonl"]}
WEIGHTED = {
    "source": "demo",
    "sources": [{"source": "pairs.jsonl", "weight": 1}, {"source": "more.jsonl", "weight": 1}],
}
CURRICULUM = {"by": "length", "buckets": 2}
PHASES = [{"until": 0.5, "weights": {"pairs": 1}}, {"until": 1, "weights": {"pairs": 1, "more": 1}}]
SCRIPT = {"check": {"script": "Latin"}}


def first(**keys: Any) -> dict[str, Any]:
    """Two sources, the first with other keys."""
    return {"source": "demo", "sources": [{"source": "pairs.jsonl", **keys}, "more.jsonl"]}


ROWS: dict[str, Row] = {
    # which rows are read, and how
    "source": Row("more.jsonl", "rows"),
    "sources": Row(MIX["sources"], "rows", {"source": "demo"}),
    "subset": Row("main", "refused"),
    "split": Row("dev", "rows", {"source": "splits"}),
    "limit": Row(5, "rows"),
    "streaming": Row(True, "refused"),
    "columns": Row({"prompt": "other"}, "rows"),
    "template": Row({"prompt": "Q: {{ other }} "}, "rows"),
    "pairs": Row("all", "rows", {"source": "rated.jsonl"}),
    "max_length": Row(16, "rows"),
    "max_prompt_length": Row(8, "rows"),
    "max_completion_length": Row(4, "rows", {"max_dropped": 1.0}),
    "delimiter": Row("^", "refused"),  # tests/data/test_sources.py has what it changes
    "append_eos": Row(False, "rows"),
    "train_on": Row("all", "rows", {"source": "turns.jsonl", "kind": "completion"}),
    "max_dropped": Row(0.5, "refused", {"source": "holes.jsonl"}),
    # entries of data.sources
    "sources.source": Row(first(source="rated.jsonl", pairs="all"), "rows", first()),
    "sources.subset": Row(first(subset="main"), "refused", first()),
    "sources.split": Row(first(source="splits", split="dev"), "rows", first(source="splits")),
    "sources.limit": Row(first(limit=5), "rows", first()),
    "sources.streaming": Row(first(streaming=True), "refused", first()),
    "sources.delimiter": Row(first(delimiter="^"), "refused", first()),
    "sources.columns": Row(first(columns={"prompt": "other"}), "rows", first()),
    "sources.template": Row(first(template={"prompt": "Q: {{ other }} "}), "rows", first()),
    "sources.pairs": Row(first(source="rated.jsonl", pairs="all"), "rows", first(source="rated.jsonl")),
    "sources.name": Row(first(name="hard"), "names", first()),
    "sources.weight": Row(
        {"sources": [*WEIGHTED["sources"][:1], {"source": "more.jsonl", "weight": 3}]}, "order", WEIGHTED
    ),
    "sources.repeat": Row(first(repeat=2), "order", first()),
    # in which order
    "exhausted": Row("all", "order", WEIGHTED),
    "interleave": Row("in_turn", "order", MIX),
    "shuffle": Row(False, "order"),
    "curriculum": Row(CURRICULUM, "order"),
    "curriculum.by": Row({"curriculum": {**CURRICULUM, "by": "score"}}, "order", {"curriculum": CURRICULUM}),
    "curriculum.descending": Row(
        {"curriculum": {**CURRICULUM, "descending": True}}, "order", {"curriculum": CURRICULUM}
    ),
    "curriculum.buckets": Row({"curriculum": {**CURRICULUM, "buckets": 4}}, "order", {"curriculum": CURRICULUM}),
    "curriculum.epochs": Row({"curriculum": {**CURRICULUM, "epochs": 1}}, "order", {"curriculum": CURRICULUM}),
    "phases": Row(PHASES, "order", MIX),
    "phases.until": Row({"phases": [{**PHASES[0], "until": 0.2}, PHASES[1]]}, "order", {**MIX, "phases": PHASES}),
    "phases.weights": Row(
        {"phases": [{**PHASES[0], "weights": {"more": 1}}, PHASES[1]]}, "order", {**MIX, "phases": PHASES}
    ),
    "group_by": Row("category", "order"),
    "steps_per_group": Row(2, "order", {"group_by": "category"}),
    # what is held out
    "eval_source": Row("more.jsonl", "held out"),
    "eval_split": Row(0.4, "held out"),
    "folds": Row(2, "held out"),
    "fold": Row(1, "held out", {"folds": 2}),
    "eval_limit": Row(2, "held out", {"eval_split": 0.5}),
    # checks
    "check": Row({"near": 0.3}, "findings"),
    "check.enabled": Row({"check": {"enabled": False}}, "findings"),
    "check.rows": Row({"check": {"rows": 5}}, "findings"),
    "check.near": Row({"check": {"near": 0.3}}, "findings"),
    "check.min_words": Row({"check": {"min_words": 4}}, "findings"),
    "check.script": Row({"check": {"script": "Greek"}}, "findings"),
    "check.script_share": Row({"check": {"script": "Latin", "script_share": 0.5}}, "findings", SCRIPT),
    "check.most": Row({"check": {"most": {"duplicate": 0}}}, "refused"),
    "cache": Row(False, "files"),
}

ELSEWHERE = {"workers": "tests/data/test_size.py: the rows are the same for every number of processes"}


def words(number: int) -> dict[str, Any]:
    pair = {"prompt": f"How much is {number} and two{LONG * (number % 3)}? ", "chosen": f"It is {number + 2}."}
    more = {"rejected": f"It is {number}5.", "other": f"Where does Anna number {number} live? "}
    return {"id": f"p{number}", **pair, **more, "score": -number, "category": "ab"[number % 2]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    doubled = {**words(3), "id": "again"}
    mixed = {**words(30), "chosen": "The sky is \u03b1\u03b2\u03b3\u03b4."}
    write_jsonl(path / "pairs.jsonl", [*map(words, range(16)), doubled, mixed])
    write_jsonl(path / "more.jsonl", [{**words(number), "id": f"m{number}"} for number in range(100, 108)])
    rated = {"answers": ["It is four.", "It is five.", "I do not know that."], "ratings": [1, 2, 3]}
    write_jsonl(path / "rated.jsonl", [{"prompt": f"How much is {number}? ", **rated} for number in range(6)])
    talks = [
        [{"role": role, "content": f"{role} {number}"} for role in ("user", "assistant") * 2] for number in range(16)
    ]
    write_jsonl(path / "turns.jsonl", [{"messages": talk} for talk in talks])
    write_jsonl(path / "holes.jsonl", [*map(words, range(16)), {**words(20), "chosen": None}])
    (path / "splits").mkdir()
    for split, numbers in {"train": range(16), "dev": range(50, 60)}.items():
        write_jsonl(path / "splits" / f"{split}.jsonl", list(map(words, numbers)))
    return path


@pytest.fixture
def outcome(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    monkeypatch.chdir(folder)

    def of(keys: dict[str, Any]) -> dict[str, Any]:
        """Load the data and return everything that a key can change."""
        cache = tmp_path / str(len([*tmp_path.iterdir()]))
        monkeypatch.setenv("ALIGN_CACHE", str(cache))
        kind = keys.pop("kind", "preference")
        method = registry.load_method("sft" if kind == "completion" else "orpo")[1]
        try:
            config = RunConfig(method=method.name, data={"source": "pairs.jsonl", **keys})
            refuse_idle(config, method(method.settings_type()))
            data = load_data(config, kind, TOKENIZER)
            findings = check_before_training(data, config.data.check)
        except AlignError as error:
            return {"refused": str(error)}
        order = row_order(config.data, data.train, 0)
        total = 12
        return {
            "refused": None,
            "rows": [(example.prompt, example.completions, example.masks) for example in [*data.train, *data.eval]],
            "held out": [example.id for example in data.eval],
            "names": config.data.names,
            "order": [[data.train[i].id for i in order.step(4, step, total)] for step in range(total)],
            "findings": findings,
            "files": len([*cache.rglob("*.arrow")]),
        }

    return of


def test_every_key_has_a_row() -> None:
    assert {*ROWS, *ELSEWHERE} == {*keys_of(DataConfig)}
    assert not {*ROWS} & {*ELSEWHERE}


@pytest.mark.parametrize("key", ROWS)
def test_the_key_changes_what_it_says(key: str, outcome: Callable[..., dict[str, Any]]) -> None:
    row = ROWS[key]
    given = row.value if "." in key else {key: row.value}
    without, with_it = outcome(dict(row.beside)), outcome({**row.beside, **given})
    assert row.seen == "refused" or not (with_it["refused"] or without["refused"]), (with_it, without)
    assert with_it[row.seen] != without[row.seen]
    if row.seen == "refused":
        assert key.rpartition(".")[2] in (with_it["refused"] or without["refused"])


def idle(method: str, sets: list[str]) -> str:
    """Return why a run is refused."""
    config = settings.resolve(method=method, sets=sets).config
    made = registry.load_method(method)[1]
    with pytest.raises(ConfigError) as refused:
        refuse_idle(config, made(settings.method_settings(made, config)))
    return str(refused.value)


HUB = "[{source: org/set, weight: 1}, {source: org/other, weight: 2}]"
PARTS = "data.phases=[{until: 1, weights: {set: 1}}]"


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["data.fold=2"], "data.fold has no effect without data.folds"),
        (["data.max_prompt_length=256"], "data.max_prompt_length has no effect with data.max_length: 256: set less"),
        (["data.max_completion_length=300"], "data.max_completion_length has no effect with data.max_length: 256"),
        (["data.folds=2", "data.eval_source=d"], "data.eval_source has no effect beside data.folds"),
        (["data.folds=2", "data.eval_split=dev"], "data.eval_split has no effect beside data.folds"),
        (
            ["data.eval_source=d", "data.eval_split=0.2"],
            "data.eval_split has no effect as a share beside data.eval_source",
        ),
        (["data.eval_split=0.2"], "data.eval_split has no effect as a share on the demo"),
        (
            ["data.source=org/set", "data.eval_split=0.0", "data.eval_limit=5"],
            "data.eval_limit has no effect with data.eval_split: 0",
        ),
        (["data.steps_per_group=3"], "data.steps_per_group has no effect without data.group_by"),
        (["data.exhausted=all"], "data.exhausted has no effect without a weight for every source"),
        (["data.interleave=even"], "data.interleave has no effect without several data.sources"),
        (
            ["data.interleave=even", "data.group_by=category"],
            "data.interleave has no effect without several data.sources",
        ),
        (
            [f"data.sources={HUB}", "data.interleave=even", "data.curriculum={by: length}"],
            "data.interleave has no effect beside data.curriculum",
        ),
        (
            ["data.sources=[{source: org/set, weight: 2}]"],
            "data.sources.weight has no effect without several data.sources",
        ),
        ([f"data.sources={HUB}", PARTS], "data.sources.weight has no effect beside data.phases"),
        (["data.sources=[{source: org/set, repeat: 2}, org/other]", PARTS], "data.sources.repeat has no effect beside"),
        (
            ["data.sources=[{source: org/set, limit: 2}]", "data.limit=5"],
            "data.limit has no effect: every one of data.sou",
        ),
        (["data.streaming=true"], "data.streaming has no effect without a hub data set or a URL"),
        (["data.check.script_share=0.5"], "data.check.script_share has no effect without data.check.script"),
        (
            ["data.check.enabled=false", "data.check.rows=5"],
            "data.check.rows has no effect with data.check.enabled: false",
        ),
        (
            ["data.check.enabled=false", "data.check.most={leak: 0}"],
            "data.check.most has no effect with data.check.enabled",
        ),
        (["data.train_on=all"], "data.train_on has no effect with orpo: it does not train on completion rows"),
        (["model.revision=v2"], "model.revision has no effect on demo, which is not on the hub"),
        (["eval.samples=0", "eval.sample_tokens=9"], "eval.sample_tokens has no effect with eval.samples: 0"),
        (["eval.suites=[]", "eval.before=false"], "eval.before has no effect without eval.suites"),
    ],
    ids=str,
)
def test_a_key_that_changes_nothing_beside_the_others_is_refused(sets: list[str], message: str) -> None:
    assert idle("orpo", sets).startswith(message)


def test_what_the_demo_and_the_method_set_is_accepted_beside_any_other_key() -> None:
    sets = ["eval.samples=0", "eval.suites=[]", "train.logging_strategy=epoch"]
    config = settings.check_config(settings.resolve(method="orpo", sets=sets).config)  # as from the run.yaml of the run
    made = registry.load_method("orpo")[1]
    refuse_idle(config, made(made.settings_type()))


def test_an_unknown_script_is_refused(folder: Path) -> None:
    done = align("data", "check", "pairs.jsonl", "--script", "Klingon", cwd=folder)
    assert (done.returncode, done.stderr.strip()) == (
        2,
        'Error: data.check.script: no letter is of the script "Klingon" (such as Latin, Arabic or CJK)',
    )


@pytest.mark.parametrize("section", SECTIONS)
def test_an_empty_section_is_refused(section: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"{section}:\n" if section == "method" else f"method: orpo\n{section}: null\n")
    with pytest.raises(ConfigError, match=rf"run.yaml:\d: {section} must be a mapping of keys to values: it is empty"):
        settings.resolve(file)
