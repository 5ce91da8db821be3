"""Stages the pages of the documentation in build/pages and builds the site in build/site, with llms.txt and every page as Markdown.

python docs/build_site.py           # needs mkdocs-material: pip install -e ".[docs]"
python docs/build_site.py --stage   # the pages and llms.txt alone
"""

from __future__ import annotations

import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).parent
ROOT = DOCS.parent
BUILD = ROOT / "build"
TOP = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Pages outside docs/ -> their names in the site."""

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")
_PICTURE = re.compile(r"<picture>.*?</picture>", re.DOTALL)
_IMAGE = re.compile(r"(?:!\[[^\]]*\]\(|(?:src|srcset)=\")([^)\"#\s]+)")


def configuration() -> dict[str, Any]:
    """Return the configuration of mkdocs, with the plugins' own pages in the navigation."""
    found: dict[str, Any] = yaml.safe_load((DOCS / "mkdocs.yml").read_text(encoding="utf-8"))
    methods = [{_title(path): name} for name, path in sources().items() if name.startswith("plugins/")]
    found["nav"].insert(-2, {"Methods": methods})
    return found


def _title(page: Path) -> str:
    return next(
        (line[2:] for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("# ")), page.stem
    )


def navigation() -> list[tuple[str, str, str]]:
    """Return section, title and file of every page, in order."""
    return [
        (section, title, file)
        for each in configuration()["nav"]
        for section, pages in each.items()
        for page in pages
        for title, file in page.items()
    ]


def sources() -> dict[str, Path]:
    """Return every page of the site with its source: docs/, the top of the repository, and the plugins' own pages."""
    found = {path.name: path for path in sorted(DOCS.glob("*.md"))}
    found |= {name: ROOT / source for source, name in TOP.items() if (ROOT / source).is_file()}
    found |= {f"plugins/{path.parent.name}.md": path for path in sorted(ROOT.glob("plugins/*/*/README.md"))}
    return found


def staged(name: str, source: Path) -> str:
    """Return a page's text with links that lead to pages of the site; a link to another file becomes its path."""
    names = {path.resolve(): page for page, path in sources().items()}

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = (source.parent / target).resolve()
        path = path / "README.md" if (path / "README.md") in names else path
        if path in names:
            text = _title(path) if text == Path(target).name else text
            return f"[{text}]({posixpath.relpath(names[path], posixpath.dirname(name) or '.')}{anchor})"
        if path.suffix == ".md" or not path.exists():
            return match[0]  # reported by the build
        return f"{text} (`{path.relative_to(ROOT).as_posix()}`)"

    blocks = re.split(r"(^```.*?^```)", source.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return "".join(
        block if block.startswith("```") else _PICTURE.sub(_by_scheme, _LINK.sub(link, block)) for block in blocks
    )


def _by_scheme(picture: re.Match[str]) -> str:
    """Return a picture in two versions as two images: the site shows that of its own scheme, a browser the system's."""
    (dark,), (light,), (about,) = (re.findall(rf'{name}="([^"]*)"', picture[0]) for name in ("srcset", "src", "alt"))
    return f'<img src="{light}#only-light" alt="{about}">\n<img src="{dark}#only-dark" alt="{about}">'


def stage(build: Path) -> None:
    """Write every page, the images that they show, llms.txt, and mkdocs.yml to a directory."""
    pages = build / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    for name, source in sources().items():
        text = staged(name, source)
        (pages / name).parent.mkdir(parents=True, exist_ok=True)
        (pages / name).write_text(text, encoding="utf-8")
        for image in _IMAGE.findall(text):
            if "://" not in image:
                copy = pages / posixpath.dirname(name) / image
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source.parent / image, copy)
    shutil.copytree(DOCS / "assets", pages / "assets")
    (build / "mkdocs.yml").write_text(
        yaml.safe_dump(configuration() | {"docs_dir": "pages", "site_dir": "site"}, sort_keys=False), encoding="utf-8"
    )
    (pages / "llms.txt").write_text("\n".join(_llms(pages)) + "\n", encoding="utf-8")


def _llms(pages: Path) -> Iterator[str]:
    """Yield the lines of llms.txt (llmstxt.org): every page as Markdown, with its first sentence."""
    config = configuration()
    yield f"# {config['site_name']}"
    yield ""
    yield f"> {config['site_description']}"
    last = ""
    for section, title, file in navigation():
        if section != last:
            yield from ("", f"## {section}", "")
        last = section
        yield f"- [{title}]({file}): {summary((pages / file).read_text(encoding='utf-8'))}"


def summary(text: str) -> str:
    """Return the first sentence of a page below its title."""
    body = re.sub(r"^(#.*|\s*<[^>]*>.*|>.*|\|.*)$", "", text, flags=re.MULTILINE)
    paragraph = next(
        (block for block in body.split("\n\n") if block.strip() and not block.startswith(("    ", "!["))), ""
    )
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.split()))
    return re.split(r"(?<=[.:]) ", plain)[0].rstrip(":")


def main() -> int:
    """Stage, build, and put the Markdown of every page beside its HTML."""
    stage(BUILD)
    if "--stage" in sys.argv:
        return 0
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--quiet",
        "--strict",
        "--clean",
        "-f",
        str(BUILD / "mkdocs.yml"),
    ]
    if code := subprocess.run(command, check=False).returncode:
        return code
    pages, site = BUILD / "pages", BUILD / "site"
    for page in [*pages.rglob("*.md"), pages / "llms.txt"]:
        shutil.copy(page, site / page.relative_to(pages))
    print(f"{site / 'index.html'}: {len(sources())} pages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
