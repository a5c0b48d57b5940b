"""The website, built without Quarto: its links lead somewhere, it needs no network, its formulas are valid, its lists
of losses, words, symbols and works are whole, and in Chromium its tables sort and its gallery filters.

The last part needs Chromium and playwright, as tests/test_browser.py does.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

from gradient_surgery.losses import CATALOGUE, components_of


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
    anchors = {path: {tag["id"] for tag in page.select("[id]")} for path, page in pages.items()}
    for path, page in pages.items():
        for link in {tag.get("href") or tag.get("src") or "" for tag in page.select("[href], [src]")}:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link in ("", "#"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.is_file() or (anchor and target in pages and anchor not in anchors[target]):
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


def sources(notebook: Path, kind: str | None = None) -> str:
    "What is written in a notebook's cells, or in those of one kind."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if kind in (None, cell["cell_type"]))


# ---- gallery


def test_gallery_shows_every_loss_of_the_catalogue(site: Path, pages: dict[Path, BeautifulSoup]) -> None:
    path = site / "nbs" / "losses" / "gallery.html"
    assert path.stat().st_size < 2_000_000
    cards = {card.a.text: card for card in pages[path].select("#gallery > li")}
    assert list(cards) == [name.removesuffix("Loss") for name in CATALOGUE]
    for name in CATALOGUE:
        card, module = cards[name.removesuffix("Loss")], CATALOGUE[name].__module__.removeprefix("gradient_surgery.")
        assert (path.parent / card.a["href"]).resolve() == site / "nbs" / (module.replace(".", "/") + ".html")
        assert [part.text for part in card.select("p span")] == [said.replace("_", " ") for said in components_of(name)]
        assert re.match(r"Arrows at \d+% of the points above the diagonal", card.img["alt"]), name


def test_gallery_page_holds_the_files_of_the_site(root: Path) -> None:
    notebook = (root / "nbs" / "losses" / "gallery.ipynb").read_text(encoding="utf-8")
    outputs = [output for cell in json.loads(notebook)["cells"] for output in cell.get("outputs", [])]
    saved = "".join("".join(output.get("data", {}).get("text/html", "")) for output in outputs)
    for kind in ("css", "html", "js"):
        assert (root / "site" / f"gallery.{kind}").read_text(encoding="utf-8") in saved, f"run nbs/losses/gallery.ipynb: gallery.{kind} has changed"


# ---- glossary and notation


def test_each_term_of_the_glossary_links_to_a_page(site: Path, pages: dict[Path, BeautifulSoup]) -> None:
    page = pages[site / "nbs" / "glossary.html"]
    terms = [span.parent for span in page.select("main p > span[id]")]
    assert len(terms) > 50
    assert [term.text for term in terms if not term.select("a[href*='.html']")] == []
    listed = {link["href"].partition("#")[2] for link in page.select("main a[href^='#']")}
    assert {term.span["id"] for term in terms} <= listed


def test_each_symbol_of_the_notation_occurs_on_its_page(root: Path, site: Path, pages: dict[Path, BeautifulSoup]) -> None:
    path = site / "nbs" / "glossary.html"
    (table,) = [table for table in pages[path].select("main table") if table.th.text == "symbol"]
    wrong = []
    for row in table.select("tbody tr"):
        symbol, code, _, link = row.select("td")
        owner = (path.parent / link.a["href"]).resolve()
        ((tex, _),) = formulas(symbol)
        on_page = " ".join(tex for tex, _ in formulas(pages[owner]))
        begins = r"(?<![\\a-zA-Z])" if tex[0].isalpha() else ""  # not within a word
        ends = r"(?![a-zA-Z])" if tex[-1].isalpha() else ""
        spaced = r"\s*".join(map(re.escape, re.sub(r"\s", "", tex)))
        if not re.search(begins + spaced + ends, on_page):
            wrong.append(f"{tex} on {owner.stem}")
        notebook = (root / owner.relative_to(site)).with_suffix(".ipynb")
        if not re.search(rf"\b{re.escape(code.text)}\b", sources(notebook, "code")):
            wrong.append(f"{code.text} in the code of {owner.stem}")
    assert wrong == []


# ---- bibliography


@pytest.fixture(scope="module")
def works(root: Path) -> dict[str, dict[str, str]]:
    text = (root / "nbs" / "references.bib").read_text(encoding="utf-8")
    entries = re.findall(r"^@\w+\{(\w+),\n(.*?)\n\}$", text, re.MULTILINE | re.DOTALL)
    assert len(entries) == text.count("\n@")
    return {key: dict(re.findall(r"^  (\w+) = \{(.*)\},?$", fields, re.MULTILINE)) for key, fields in entries}


def surnames(work: dict[str, str]) -> list[str]:
    return [author.partition(",")[0] for author in work["author"].split(" and ")]


def test_each_loss_has_its_papers_in_the_bibliography(root: Path, works: dict[str, dict[str, str]]) -> None:
    key_of = {re.sub(r"\W", "", work["title"]).lower(): key for key, work in works.items()}
    seen, lists = set(), {"catalogue", "gallery"}
    for notebook in sorted((root / "nbs" / "losses").glob("*.ipynb")):
        if notebook.stem in lists:
            continue
        (facts,) = re.findall(r"^\*(.*?Components:)", sources(notebook, "markdown"), re.MULTILINE)
        cited = re.findall(r'([^"]*)"([^"]+)",? (?:\(SimCLR\), )?([^"]*?\b(?:19|20)\d\d\b(?!\.\d))', facts)
        assert cited, f"{notebook.name} names no paper"
        for authors, title, venue in cited:
            key = key_of.get(re.sub(r"\W", "", title).lower())
            assert key, f"{title} is not in references.bib"
            assert venue.split()[-1] == works[key]["year"], key
            assert [name for name in surnames(works[key]) if name not in authors] == [], key
            where = works[key].get("booktitle") or works[key]["journal"]
            assert venue.split()[0].strip(",") in where, key
            seen.add(key)
    assert len(seen) > 25


def test_every_work_is_cited_and_every_citation_is_known(root: Path, site: Path, pages: dict[Path, BeautifulSoup], works: dict[str, dict[str, str]]) -> None:
    path = site / "nbs" / "bibliography.html"
    for key in works:
        entry = pages[path].find(id=key)
        assert entry is not None, f"run nbs/bibliography.ipynb: {key} is not in its page"
        links = [link["href"] for link in entry.parent.select("a[href$='.html']") if not urlsplit(link["href"]).scheme]
        assert links, f"no page cites {key}"
    by = {(surnames(work)[0], work["year"]) for work in works.values()}
    citation = re.compile(r"\b((?:van den |Oh )?[A-Z][\w-]+)(?: et al\.| and [A-Z][\w-]+) \(?((?:19|20)\d\d)\b")
    unknown = set()
    for notebook in (root / "nbs").rglob("*.ipynb"):
        if not any(part.startswith(".") for part in notebook.parts):
            unknown |= {f"{name} {year} in {notebook.name}" for name, year in citation.findall(sources(notebook)) if (name, year) not in by}
    assert unknown == set()


# ---- in Chromium


CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium, or set CHROMIUM")


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:  # noqa: F821
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: "Browser", site: Path) -> Iterator[Callable[..., "Page"]]:  # noqa: F821
    "Opens a page of the site from disk; an error in it fails the test."
    contexts, errors = [], []

    def open_page(name: str, address: str = "", **options) -> "Page":  # noqa: F821
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((site / "nbs" / f"{name}.html").as_uri() + address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


def column(table: "Locator", number: int) -> list[str]:  # noqa: F821
    return [text.strip() for text in table.locator(f"tbody tr td:nth-child({number})").all_text_contents()]


@needs_chromium
def test_tables_sort_by_numbers_and_back(opened: Callable) -> None:
    table = opened("paper/comparison").locator("main table").first
    as_written, heading = column(table, 4), table.locator("th", has_text="Recall@1")
    recall = [float(text.split(" ±")[0]) for text in as_written]
    assert all(" ± " in text for text in as_written)

    heading.get_by_role("button").focus()
    heading.page.keyboard.press("Enter")  # by the keyboard alone
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [float(text.split(" ±")[0]) for text in column(table, 4)] == sorted(recall)
    heading.page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert [float(text.split(" ±")[0]) for text in column(table, 4)] == sorted(recall, reverse=True)
    heading.page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") is None and column(table, 4) == as_written

    table.get_by_role("button", name="difference").click()  # -0.76 (-2.06 to +0.55), and a dash for the reference
    difference = column(table, 6)
    assert difference[-1] == "–" and [float(text.split()[0]) for text in difference[:-1]] == sorted(float(text.split()[0]) for text in difference[:-1])
    assert table.locator("th[aria-sort]").count() == 1


@needs_chromium
def test_tables_sort_powers_of_ten_units_and_words(opened: Callable) -> None:
    page = opened("paper/unification")
    table = page.locator("main table").first
    table.get_by_role("button", name="factorisation error").click()
    errors = [float(text) for text in column(table, 7)]
    assert errors == sorted(errors) and errors[0] < errors[-1]
    table.get_by_role("button", name="loss").click()
    names = column(table, 1)
    assert names == sorted(names, key=str.lower)
    ordered = page.evaluate("""() => {
        const texts = ["1.2 GB", "–", "800 MB", "3 kB"], rows = [...texts];
        return [sorted(rows, texts, 1), sorted(rows, texts, -1),
                sorted(["b10", "b9", "a"], ["b10", "b9", "a"], 1), sorted(["5,864", "40 %", "< 0.001"], ["5,864", "40 %", "< 0.001"], 1)]}""")
    assert ordered == [
        ["3 kB", "800 MB", "1.2 GB", "–"], ["1.2 GB", "800 MB", "3 kB", "–"],
        ["a", "b9", "b10"], ["< 0.001", "40 %", "5,864"]]


@needs_chromium
def test_long_tables_filter_and_keep_their_groups(opened: Callable) -> None:
    page = opened("losses/catalogue")
    table = page.locator("main table").first
    left = lambda: [text.strip() for text in table.locator("tbody tr:not(.filtered) td:first-child").all_text_contents()]
    page.get_by_label("Filter").first.fill("proxies softmax")
    assert left() == ["proxies", "NormalizedSoftmaxLoss", "CosFaceLoss", "ArcFaceLoss", "SoftTripleLoss"]
    assert f"4 of {len(CATALOGUE)}" in page.get_by_role("status").first.inner_text()
    table.get_by_role("button", name="direction").click()  # of the rows alone: groups head nothing once sorted
    assert sorted(left()) == ["ArcFaceLoss", "CosFaceLoss", "NormalizedSoftmaxLoss", "SoftTripleLoss"]
    page.get_by_label("Filter").first.fill("")
    assert len(left()) == len(CATALOGUE)


@needs_chromium
@pytest.mark.parametrize("name", ["paper/comparison", "losses/catalogue", "index"])
def test_tables_do_not_move_when_they_become_sortable(opened: Callable, name: str) -> None:
    boxes = []
    for scripts in (False, True):
        page = opened(name, java_script_enabled=scripts, viewport={"width": 1280, "height": 900})
        boxes.append([table.bounding_box() for table in page.locator("main table").all()])
    sizes = [[(box["width"], box["height"]) for box in found] for found in boxes]
    assert sizes[0] and sizes[0] == sizes[1]
    assert page.locator("main th button").count() > 0


@needs_chromium
def test_gallery_filters_and_keeps_its_choice_in_the_address(opened: Callable) -> None:
    page = opened("losses/gallery")
    shown = lambda page: page.locator("#gallery > li:visible a").all_text_contents()
    assert len(shown(page)) == len(CATALOGUE)
    page.get_by_label("family").select_option("lists")
    page.get_by_label("triplet weight").select_option("softmax over the list")
    assert shown(page) == ["NPairs", "NTXent", "SupCon"]
    assert page.get_by_role("status").first.inner_text() == f"3 of {len(CATALOGUE)} losses."
    assert page.evaluate("location.hash") == "#family=lists&triplet_weight=softmax+over+the+list"
    assert shown(opened("losses/gallery", page.evaluate("location.hash"))) == ["NPairs", "NTXent", "SupCon"]

    page.get_by_role("button", name="Show all").focus()
    page.keyboard.press("Enter")
    assert len(shown(page)) == len(CATALOGUE) and page.evaluate("location.hash") == ""
    assert page.evaluate("document.activeElement.name") == "family"  # the focus is not lost with the button


@needs_chromium
@pytest.mark.parametrize("address", ["#family=none&direction=toString", "#all-losses", "#pair_weight=%"])
def test_gallery_withstands_an_address_that_says_nothing(opened: Callable, address: str) -> None:
    page = opened("losses/gallery", address)
    assert page.locator("#gallery > li:visible").count() == len(CATALOGUE)
    assert page.locator("#gallery-filter").is_visible()


@needs_chromium
def test_gallery_shows_all_without_scripts(opened: Callable) -> None:
    page = opened("losses/gallery", java_script_enabled=False)
    assert page.locator("#gallery > li:visible").count() == len(CATALOGUE)
    assert not page.locator("#gallery-filter").is_visible()


@needs_chromium
@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 390)])
@pytest.mark.parametrize("name", ["losses/gallery", "glossary", "bibliography", "paper/unification", "paper/comparison"])
def test_lists_are_accessible(opened: Callable, name: str, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs pip install axe-playwright-python")
    page = opened(name, color_scheme=scheme, viewport={"width": width, "height": 800})
    page.wait_for_timeout(300)  # the theme is read by a timer
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    assert [
        f"{one['id']} ({one['impact']}): {node['html'][:200]}"
        for one in found if one["impact"] in ("serious", "critical") for node in one["nodes"]] == []
