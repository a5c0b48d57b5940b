"""The website, built without Quarto: its links lead somewhere, it needs no network, and its formulas are valid."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, BeautifulSoup]:
    return {path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in sorted(site.rglob("*.html"))}


def test_has_a_page_for_each_notebook(root: Path, site: Path, repository_files: list[str]) -> None:
    notebooks = [name for name in repository_files if name.startswith("nbs/") and name.endswith(".ipynb")]
    assert [name for name in notebooks if not (site / name).with_suffix(".html").is_file()] == []


def test_every_page_is_in_the_sidebar(site: Path, pages: dict[Path, BeautifulSoup]) -> None:
    home = site / "nbs" / "index.html"
    linked = {(home.parent / urlsplit(link["href"]).path).resolve() for link in pages[home].select("#quarto-sidebar a[href]")}
    assert [path.relative_to(site).as_posix() for path in pages if path not in linked and path != site / "index.html"] == []


def test_links_resolve(site: Path, pages: dict[Path, BeautifulSoup]) -> None:
    broken = []
    for path, page in pages.items():
        for tag in page.select("[href], [src]"):
            link = tag.get("href") or tag.get("src") or ""
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link in ("", "#"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.is_file() or (anchor and target in pages and not pages[target].find(id=anchor)):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


def test_needs_no_network(site: Path, pages: dict[Path, BeautifulSoup]) -> None:
    external = []
    for path, page in pages.items():
        loads = [tag["src"] for tag in page.select("[src]")] + [tag["href"] for tag in page.select("link[rel=stylesheet]")]
        external += [f"{path.relative_to(site)}: {link[:80]}" for link in loads if re.match(r"(https?:)?//", link)]
        for script in page.select("script:not([src])"):
            external += [f"{path.relative_to(site)}: {link}" for link in re.findall(r"(?:import|from)\s*\(?[\"'](https?:[^\"']+)", script.text)]
    for sheet in site.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']+", sheet.read_text(encoding="utf-8"))
        external += [f"{sheet.relative_to(site)}: {link[:80]}" for link in found]
    assert external == []


def formulas(page: BeautifulSoup) -> list[tuple[str, bool]]:
    "The TeX of each formula, and whether it stands on its own line."
    return [(unescape(span.text).strip()[2:-2], "display" in span["class"]) for span in page.select("span.math")]


def test_pages_with_formulas_load_katex(site: Path, pages: dict[Path, BeautifulSoup]) -> None:
    with_formulas = {path: page for path, page in pages.items() if formulas(page)}
    assert with_formulas
    for path, page in with_formulas.items():
        loads = [tag.get("src") or tag.get("href") for tag in page.select("script[src], link[rel=stylesheet]")]
        loads = {(path.parent / link).resolve().relative_to(site).as_posix() for link in loads}
        assert {"katex/katex.min.js", "katex/katex.min.css", "katex/contrib/auto-render.min.js"} <= loads, path


def test_formulas_are_valid(root: Path, site: Path, pages: dict[Path, BeautifulSoup]) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("checking formulas needs node, which is not on PATH")
    program = """
        const katex = require(process.argv[1]);
        for (const [page, tex, displayMode] of JSON.parse(require("fs").readFileSync(0, "utf8")))
            try { katex.renderToString(tex, {displayMode}); } catch (error) { console.log(`${page}: ${error.message}`); }
    """
    listed = [(str(path.relative_to(site)), *formula) for path, page in pages.items() for formula in formulas(page)]
    command = [node, "-e", program, str(root / "site" / "katex" / "katex.min.js")]
    done = subprocess.run(command, input=json.dumps(listed), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_shows_the_exported_code(site: Path, root: Path) -> None:
    module = (root / "gradient_surgery" / "surgery.py").read_text(encoding="utf-8")
    assert "class GradientSurgery" in module
    page = BeautifulSoup((site / "nbs" / "surgery.html").read_text(encoding="utf-8"), "html.parser")
    assert any("class GradientSurgery" in block.text for block in page.select("pre"))
