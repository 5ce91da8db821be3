"""``align generate --with NAME:ARGUMENT``: a plugin adds to each prompt."""

from __future__ import annotations

import json

from tests.helpers.third_party import Site, site  # noqa: F401

SOURCE = """
def plus(argument, prompts):
    return [f"{argument} {prompt}" for prompt in prompts]

def none(argument, prompts):
    return []
"""


def test_a_plugin_adds_to_the_prompts(site: Site) -> None:  # noqa: F811
    site.install("align-plus", SOURCE, group="contexts", plus="align_plus:plus", none="align_plus:none")
    words = ["generate", "demo", "--json", "--max-new-tokens", "8", "--prompt"]
    found = site.align(*words, "two plus two ?", "--with", "plus:what is")
    whole = site.align(*words, "what is two plus two ?")
    assert json.loads(found.stdout)["answers"] == json.loads(whole.stdout)["answers"]
    assert json.loads(found.stdout)["prompt"] == "two plus two ?"
    wrong = site.align(*words, "two", "--with", "none:")
    assert "returned 0 prompts for 1" in wrong.stderr
    unknown = site.align(*words, "two", "--with", "pluss:x")
    assert (unknown.returncode, 'did you mean "plus"' in unknown.stderr) == (2, True), unknown.stderr
