"""What documentation says is what the code is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.pages import PAGES

DOCS = Path(__file__).parents[2] / "docs"


def builder(name: str = "build_reference") -> Any:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date() -> None:
    assert (DOCS / "reference.md").read_text(encoding="utf-8") == builder().page(), "run: make docs"


@pytest.mark.parametrize(
    ("script", "page"),
    [("build_settings", "settings"), ("build_settings", "catalogue"), ("build_migrating", "migrating")],
)
def test_the_pages_of_settings_plugins_and_other_libraries_are_up_to_date(script: str, page: str) -> None:
    made = getattr(builder(script), f"{page}_page")()
    assert (DOCS / f"{page}.md").read_text(encoding="utf-8") == made, f"run: python docs/{script}.py"


def test_the_page_of_metrics_is_up_to_date_and_has_every_contrast_of_the_built_in_suites() -> None:
    from alignkit_eval import glossary
    from alignkit_eval.suites import generate, kl, perplexity, prefs
    from alignkit_judge import suite as judge

    assert (DOCS / "metrics.md").read_text(encoding="utf-8") == glossary.page(), "run: make docs"
    for suite, module in {
        "prefs": prefs,
        "perplexity": perplexity,
        "kl": kl,
        "generate": generate,
        "judge": judge,
    }.items():
        for contrast in module.CONTRASTS:
            assert glossary.meaning(suite, contrast.metric), f"{suite}/{contrast.metric}"
    assert glossary.meaning("prefs", "accuracy_sum/shorter").startswith("Accuracy by sum on the pairs whose")
    assert not glossary.meaning("lm-eval", "task/acc")


def test_links_lead_somewhere() -> None:
    import re

    for page in [*DOCS.glob("*.md"), *(DOCS.parent / n for n in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"))]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def tables(page: Path) -> list[list[str]]:
    """Return the Markdown tables of a page, each as its lines; code blocks are skipped."""
    import re

    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [block.splitlines() for block in re.findall(r"(?:^ *\|.*\n?)+", text, flags=re.MULTILINE)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_table_is_one_block_with_a_header_and_equal_columns(page: Path) -> None:
    import re

    for header, *rows in tables(page):
        assert rows, f"a row apart from its table: {header}"
        assert re.fullmatch(r" *\|( *:?-+:? *\|)+ *", rows[0]), f"no separator below: {header}"
        columns = {line: len(re.findall(r"(?<!\\)\|", line)) for line in (header, *rows)}
        assert len(set(columns.values())) == 1, f"unequal numbers of cells: {columns}"


CONFIGURED = [page for page in PAGES if "```yaml\n" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", CONFIGURED, ids=lambda page: page.stem)
def test_the_configurations_of_a_page_are_valid(page: Path, tmp_path: Path) -> None:
    import re
    from textwrap import dedent

    from alignkit.settings import resolve
    from alignkit_eval.pipelines.pipeline import read_pipeline

    for block in re.findall(r"^ *```yaml\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        file, text = tmp_path / "shown.yaml", dedent(block)
        file.write_text(text if re.search(r"^(method|stages):", text, re.MULTILINE) else f"{text}\nmethod: orpo\n")
        read_pipeline(file) if "\nstages:" in text else resolve(file)


def test_every_rule_stands_in_the_data_page() -> None:
    from alignkit_checks.rules import RULES
    from alignkit_checks.tokenised import TOKEN_RULES

    page = (DOCS / "data.md").read_text(encoding="utf-8")
    names = ["broken", *(rule.name for rule in RULES), *(name for name, *_ in TOKEN_RULES)]
    assert [name for name in names if f"`{name}`" not in page] == []


DISTILL = ("divergence", "method", "settings", "stored", "teacher")


@pytest.mark.parametrize(
    ("row", "files"),
    [
        ("SimPO", ["plugins/cpo/alignkit_cpo/simpo.py"]),
        ("KTO", ["plugins/unpaired/alignkit_unpaired/kto.py"]),
        ("Listwise DPO", ["plugins/listwise/alignkit_listwise/method.py"]),
        ("RAFT", ["plugins/raft/alignkit_raft/method.py"]),
        ("Online DPO", ["plugins/online_dpo/alignkit_online_dpo/method.py"]),
        ("Distillation", [f"plugins/distill/alignkit_distill/{name}.py" for name in DISTILL]),
        ("ORPO", ["plugins/orpo/alignkit_orpo/losses.py", "plugins/orpo/alignkit_orpo/method.py"]),
    ],
)
def test_the_readme_counts_the_lines_of_a_method(row: str, files: list[str]) -> None:
    root = DOCS.parent
    lines = sum(len((root / file).read_text(encoding="utf-8").splitlines()) for file in files)
    (found,) = [line for line in (root / "README.md").read_text().splitlines() if line.startswith(f"| {row} |")]
    assert found.split("|")[2].strip().startswith(f"{lines}, "), f"{row} is {lines} lines"
