"""The documentation's site: navigation, links, llms.txt, every key of the settings, and every command that a page shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from alignkit.cli import align
from alignkit_commands.known_keys import keys_of
from alignkit_eval.schemas.files import run_schema

from tests.docs.test_docs import DOCS, builder
from tests.helpers.pages import PAGES, commands

ROOT = DOCS.parent
SITE = builder("build_site")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("build")
    SITE.stage(path)
    return path


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as mkdocs names them."""
    found = set()
    for heading in re.findall(
        r"^#+ +(.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    ):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\s-]", "", plain).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", slug))
    return found


def test_every_link_of_the_site_leads_to_a_page_and_a_heading(build: Path) -> None:
    pages = {path.relative_to(build / "pages").as_posix(): path for path in (build / "pages").rglob("*.md")}
    wrong = []
    for name, path in pages.items():
        text = re.sub(r"^```.*?^```|^    .*$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target, anchor in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
            if "://" in target or target.startswith("mailto:"):
                continue
            to = (path.parent / target).resolve() if target else path
            if not to.is_file() or (anchor and anchor not in anchors(to.read_text(encoding="utf-8"))):
                wrong.append(f"{name}: {target}#{anchor}")
    assert wrong == []


def test_every_page_is_in_the_navigation_and_in_llms_txt(build: Path) -> None:
    config = yaml.safe_load((build / "mkdocs.yml").read_text())
    listed = [
        file for section in config["nav"] for pages in section.values() for page in pages for file in page.values()
    ]
    assert len(set(listed)) == len(listed)
    assert set(listed) | {"contributing.md"} >= set(SITE.sources())
    llms = (build / "pages" / "llms.txt").read_text()
    assert re.findall(r"\]\(([^)]*)\):", llms) == listed
    assert not re.search(r"\): *$", llms, re.MULTILINE), "a page without a first sentence"


def test_the_site_needs_no_network_and_shows_pictures_by_its_own_scheme(build: Path) -> None:
    config = yaml.safe_load((build / "mkdocs.yml").read_text())
    (script,) = config["extra"]["polyfills"]
    assert "IFrameWorker" in (build / "pages" / script).read_text(), "the plugin offline would load it from unpkg.com"
    index = (build / "pages" / "index.md").read_text()
    assert "<picture" not in index
    for scheme in ("light", "dark"):
        (image,) = re.findall(rf'<img src="([^"]*)#only-{scheme}" alt="Differences', index)
        assert (build / "pages" / image).is_file()


def test_arguments_are_lists_in_the_reference() -> None:
    page = (DOCS / "reference.md").read_text(encoding="utf-8")
    assert "Args:\n\n- `config`: the `model` section" in page.replace("``", "`")
    assert not re.search(r"^(Args|Returns|Raises):\n {4}", page, re.MULTILINE)


def named_keys(schema: dict[str, Any], node: dict[str, Any], path: str = "") -> Iterator[str]:
    node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    for part in node.get("anyOf", []):
        yield from named_keys(schema, part, path)
    if "items" in node:
        yield from named_keys(schema, node["items"], f"{path.removesuffix('.')}[].")
    for key, inner in node.get("properties", {}).items():
        yield f"{path}{key}"
        yield from named_keys(schema, inner, f"{path}{key}.")


@pytest.mark.parametrize("section", ["model", "data", "train", "eval", "compare", "run", "method"])
def test_every_key_of_a_section_is_on_the_page_of_settings(section: str) -> None:
    page = (DOCS / "settings.md").read_text(encoding="utf-8")
    schema = run_schema("orpo")
    keys = [key for key in named_keys(schema, schema["properties"][section], f"{section}.") if ".settings." not in key]
    if section == "method":
        keys = [key.removeprefix("method.") for key in keys if key != "method.name"]
    assert len(keys) > 2
    assert [key for key in keys if f"`{key}`" not in page] == []


@pytest.mark.parametrize("page", [page for page in PAGES if [*commands(page)]], ids=lambda page: page.stem)
def test_every_command_of_a_page_has_its_options_and_keys(page: Path) -> None:
    for words in commands(page):
        command: click.Command = align
        context = click.Context(align, info_name="align", resilient_parsing=True)
        rest = words
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            found = command.get_command(context, rest[0])
            assert found is not None, f"{page.name}: align {' '.join(words)}"
            command, rest = found, rest[1:]
            context = click.Context(command, parent=context, resilient_parsing=True)
        parser = command.make_parser(click.Context(command, parent=context))
        given, *_ = parser.parse_args(list(rest))
        for text in given.get("sets") or []:
            check_key(text.partition("=")[0], f"{page.name}: align {' '.join(words)}")


def check_key(key: str, place: str) -> None:
    """Fail for a key of a section that there is not; settings of plugins are theirs."""
    section = key.partition(".")[0]
    known = {name for name, _ in keys_of(section, None)} if "." in key and not key.isupper() else set()
    if known:
        assert any(key == name or key.startswith(f"{name}.") for name in known), f"{place}: unknown key {key}"


def test_commands_that_are_said_to_run_elsewhere_are_those_of_a_page() -> None:
    from tests.accept.page_commands import ELSEWHERE

    shown = [" ".join(words) for page in PAGES for words in commands(page)]
    assert [start for start in ELSEWHERE if not any(line.startswith(start) for line in shown)] == []
