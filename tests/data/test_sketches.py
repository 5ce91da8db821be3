"""Similar texts are found without comparing all pairs."""

from __future__ import annotations

from alignkit_checks.similar import Sketches


def test_sketches_find_what_overlaps() -> None:
    sketches = Sketches()
    words = [f"w{i}" for i in range(60)]
    sketches.add(sketches.runs(" ".join(words)))
    changed = [*words[:57], "x", "y", "z"]
    ((number, share),) = sketches.like(sketches.runs(" ".join(changed)), 0.8)
    a, b = ({tuple(text[i : i + 3]) for i in range(58)} for text in (words, changed))
    assert (number, share) == (0, len(a & b) / len(a | b))
    assert not list(sketches.like(sketches.runs("nothing of the kind at all"), 0.1))
    assert len(sketches.runs("one two")) == len(sketches.runs("one")) == 1
    assert sketches.most_like(sketches.runs(""), 0.1) is None
