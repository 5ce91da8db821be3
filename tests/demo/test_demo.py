"""The embedded demo: properties of the world, the tokenizer, and that the shipped files are those the code builds."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from alignkit import demo
from alignkit.demo.world import quality
from alignkit.errors import ConfigError, DataError
from alignkit_demo import build, corpus, pretrain, world
from alignkit_demo.pairs import pairs
from alignkit_demo.tokenizer import train_tokenizer

pytestmark = pytest.mark.slow

ASSETS = demo.model_path().parent
SPLITS: tuple[world.Split, ...] = ("train", "dev", "test")


def read(split):
    return [json.loads(line) for line in demo.data_path(split).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo.model_path())


# ------------------------------------------------------------------------------------------------- world


def test_no_cluster_and_no_prompt_is_in_two_splits():
    for what in (lambda r: r["cluster"], lambda r: r["prompt"][-1]["content"]):
        seen = [{what(row) for row in pairs(split)} for split in SPLITS]
        assert not (seen[0] & seen[1])
        assert not (seen[0] & seen[2])
        assert not (seen[1] & seen[2])


@pytest.mark.parametrize("kind", ["person", "sum", "thing", "object"])
def test_every_entity_is_in_exactly_one_split(kind):
    parts = [world.entities(kind, split) for split in SPLITS]
    assert len(set().union(*parts)) == sum(map(len, parts))


def test_a_person_keeps_to_one_split_across_categories():
    people = [{q.entity for q in world.questions(s) if q.entity in world.NAMES} for s in SPLITS]
    assert [len(p) for p in people] == [26, 6, 16]
    assert not (people[0] & people[1])
    assert not (people[0] & people[2])
    assert not (people[1] & people[2])


def test_the_splits_are_large_enough():
    assert len(pairs("train")) >= 800
    assert len(pairs("dev")) >= 200
    assert len(pairs("test")) >= 800
    assert len({row["cluster"] for row in pairs("test")}) >= 100
    assert {row["category"] for row in pairs("test")} == set(world.CATEGORIES)


@pytest.mark.parametrize("split", [*SPLITS, "neutral"])
def test_ids_are_unique(split):
    assert max(Counter(row["id"] for row in read(split)).values()) == 1


@pytest.mark.parametrize("split", SPLITS)
def test_chosen_is_better_by_the_world_itself(split):
    for row in pairs(split):
        assert quality(row["prompt"], row["chosen"]) > quality(row["prompt"], row["rejected"])


def test_imitation_alone_is_not_enough():
    """In graded categories of the training data, the mediocre answer is chosen more often than the best one."""
    chosen = Counter(
        quality(row["prompt"], row["chosen"])
        for row in pairs("train")
        if row["category"] in {"tone", "hedge", "brief", "full"}
    )
    assert chosen[0.5] > 1.5 * chosen[1.0] > 0


def test_quality_reads_text_messages_and_rendered_answers():
    question = next(q for q in world.questions("test") if q.category == "tone")
    worst, middle, best = question.answers
    assert [quality(question.prompt, a) for a in (worst, middle, best)] == [0.0, 0.5, 1.0]
    assert quality(f"<s><|user|> {question.prompt}<|assistant|>", f" {best}<|end|>") == 1.0
    assert quality(question.prompt, best + " " + best) == 0.0
    with pytest.raises(DataError, match="no question 'what is love"):
        quality("what is love ?", best)


def test_the_control_scores_one_half_for_whoever_ignores_the_person():
    """Tastes come in mirrored pairs, so any score of the value alone is correct exactly half of the time."""
    draw = random.Random(0)
    for split in SPLITS:
        rows = [q for q in world.questions(split) if q.category in world.CONTROLS]
        score = {value: draw.random() for values in world.TASTES.values() for value in values}
        liking = [[score[a.split()[-2]] for a in q.answers] for q in rows]
        assert sum(good > bad for bad, good in liking) == len(rows) / 2


# ------------------------------------------------------------------------------------------------ corpus


def test_the_corpus_never_mentions_chat_tokens_held_out_questions_or_neutral_texts():
    texts = set(corpus.corpus(4000))
    assert not any("<" in text for text in texts)
    assert texts.isdisjoint(row["text"] for row in corpus.neutral())
    held_out = {q.prompt for split in ("dev", "test") for q in world.questions(split)}
    asked = {t.removeprefix("ask : ").partition(" say : ")[0] for t in texts if t.startswith("ask : ")}
    assert asked
    assert asked.isdisjoint(held_out)


def test_likings_stand_in_no_document_about_held_out_people():
    held_out = {*world.entities("person", "dev"), *world.entities("person", "test")}
    likers = {t.split()[-4] for t in corpus.corpus(4000) if " likes " in t}
    assert likers
    assert likers.isdisjoint(held_out)


# ---------------------------------------------------------------------------------------------- tokenizer


def test_one_bos_and_a_prompt_that_begins_its_answer(tokenizer):
    for row in pairs("dev"):
        prompt = tokenizer(tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True))
        whole = tokenizer(tokenizer.apply_chat_template(row["prompt"] + row["chosen"], tokenize=False)).input_ids
        assert whole[: len(prompt.input_ids)] == prompt.input_ids
        assert whole[0] == tokenizer.bos_token_id
        assert whole.count(tokenizer.bos_token_id) == 1
        assert whole[-1] == tokenizer.eos_token_id
        assert whole.count(tokenizer.eos_token_id) == 1


def test_plain_text_gets_one_bos_and_comes_back(tokenizer):
    text = "naïve café: ½ ✓\n\ttabs"
    ids = tokenizer(text).input_ids
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_every_row_fits_the_preset(tokenizer):
    for split in SPLITS:
        texts = [
            tokenizer.apply_chat_template(r["prompt"] + r[k], tokenize=False)
            for r in pairs(split)
            for k in ("chosen", "rejected")
        ]
        assert max(map(len, tokenizer(texts).input_ids)) <= pretrain.WINDOW <= demo.PRESET["data.max_length"]


# ------------------------------------------------------------------------------------------------- assets


def test_the_shipped_files_match_their_checksums_and_are_small():
    listed = dict(reversed(line.split("  ")) for line in (ASSETS / build.CHECKSUMS).read_text().splitlines())
    assert listed == build.checksums(ASSETS)
    assert sum(p.stat().st_size for p in ASSETS.rglob("*")) <= 3e6


def test_data_and_tokenizer_are_made_anew_byte_for_byte(tmp_path):
    build.write_data(tmp_path / "data")
    train_tokenizer(corpus.corpus(build.TEXTS)).save_pretrained(tmp_path / "model")
    made = build.checksums(tmp_path)
    shipped = build.checksums(ASSETS)
    assert {"data/test.jsonl", "data/neutral.jsonl", "model/tokenizer.json", "model/chat_template.jinja"} <= made.keys()
    assert made == {name: shipped[name] for name in made}


def test_two_builds_are_equal_byte_for_byte_and_leave_torch_as_it_was(tmp_path):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    build.build(tmp_path / "one", steps=20)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    build.build(tmp_path / "two", steps=20)
    assert build.checksums(tmp_path / "one") == build.checksums(tmp_path / "two")
    assert {p.name for p in tmp_path.iterdir()} == {"one", "two"}


def test_build_refuses_a_directory_that_is_not_its_own(tmp_path):
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not a build of the demo"):
        build.build(tmp_path, steps=1)
    assert (tmp_path / "keep.txt").read_text() == "mine"


def test_the_model_is_small_bf16_and_knows_its_documents(tokenizer):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(demo.model_path(), dtype="auto")
    assert model.dtype == torch.bfloat16
    assert 0.8e6 < model.num_parameters() < 1.1e6
    model.float()
    texts = [row["text"] for row in read("neutral")[:64]]
    total = count = 0.0
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([tokenizer(text).input_ids])
            total += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
    # The perplexity of the corpus is near 1.9; guessing among the 751 tokens would give 751.
    assert torch.exp(torch.tensor(total / count)) < 2.5


# ------------------------------------------------------------------------------------------------- module


def test_paths():
    assert demo.model_path().is_dir()
    assert [demo.data_path(split).name for split in ("train", "neutral")] == ["train.jsonl", "neutral.jsonl"]
    with pytest.raises(DataError, match=r"no split 'valid': use one of train, dev, test, neutral"):
        demo.data_path("valid")


def test_importing_the_demo_and_its_world_loads_neither_torch_nor_transformers():
    code = "import sys, alignkit.demo, alignkit_demo.build, alignkit.demo.world, alignkit_demo.world, alignkit_demo.pairs; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_preset_is_read_only():
    with pytest.raises(TypeError):
        demo.PRESET["train.max_steps"] = 1  # type: ignore[index]


def test_assets_are_inside_the_package():
    assert ASSETS.is_relative_to(Path(demo.__file__).parent)
