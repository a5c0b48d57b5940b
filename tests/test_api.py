"""The API reference: complete, current, and linked from the pages' code and from nothing else."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))

import linking  # noqa: E402
import offline  # noqa: E402
import reference  # noqa: E402

PAGES = sorted(reference.PAGES.glob("*.ipynb"))
MODULES = [name.partition(".")[2] for name in reference.modules() if "." in name]
WITHOUT_NAMES = {"data"}  # a folder of modules


def saved(path: Path) -> Iterator[tuple[str, list[str]]]:
    "What the cells of a notebook that show references have saved, and of which modules."
    for cell, names in reference.shown_on(json.loads(path.read_text(encoding="utf-8"))):
        yield reference.saved(cell), names


def test_every_module_is_on_one_page() -> None:
    shown = [name for path in PAGES for _, names in saved(path) for name in names]
    assert sorted(shown) == sorted(set(MODULES) - WITHOUT_NAMES)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_pages_are_what_the_source_says(path: Path) -> None:
    for text, names in saved(path):
        assert text == "".join(map(reference.module_markdown, names)), "run `python scripts/reference.py`"


def test_every_public_name_has_an_anchor() -> None:
    anchors = [anchor for path in PAGES for text, _ in saved(path) for anchor in linking.ANCHOR.findall(text)]
    assert len(anchors) == len(set(anchors))
    assert len(reference.modules()) > 50
    passed_on = {}
    for module in reference.modules().values():
        for name in module.public:
            if name in module.imports:  # described where it is defined
                passed_on[f"{module.name}.{name}"] = ".".join(module.imports[name])
    public = {f"{module.name}.{name}" for module in reference.modules().values() for name in module.public}
    assert {passed_on.get(name, name) for name in public} - set(anchors) == set()


def test_public_names_are_those_of_python() -> None:
    "Reading the source finds what an import finds: all names of __all__, and the arguments of classes and functions."
    import importlib
    import inspect

    for module in reference.modules().values():
        imported = importlib.import_module(module.name)
        assert module.public == getattr(imported, "__all__", []), module.name
        for entry in reference.entries(module):
            found = getattr(imported, entry.name)
            if not entry.callable or inspect.isclass(found) and (issubclass(found, BaseException) or "Protocol" in entry.bases):
                continue  # not called with what their fields are
            expected = [name for name, one in inspect.signature(found).parameters.items()]
            told = [one.name.lstrip("*") for one in entry.parameters if one.name != "*"]
            assert told == expected, f"{module.name}.{entry.name}"


def test_nothing_is_left_unsaid() -> None:
    assert reference.gaps() == []


def test_gaps_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "gradient_surgery"
    package.mkdir()
    (package / "made.py").write_text(
        "__all__ = ['told', 'silent', 'Made']\n"
        "def told(\n    a, # what it is\n    b: int,\n    # how it is done\n    c=1,\n    *rest, **options,\n):\n    'Done.'\n"
        "def silent(a): return a\n"
        "class Made:\n    'Made.'\n    def work(self, b):\n        'Works.'\n"
    )
    monkeypatch.setattr(reference, "PACKAGE", package)
    reference.modules.cache_clear()
    try:
        assert reference.gaps() == [
            "gradient_surgery.made.silent has no docstring",
            "gradient_surgery.made.silent: a has neither a type nor a comment",
            "gradient_surgery.made.Made.work: b has neither a type nor a comment",
        ]
        (entry, *_) = reference.entries(reference.documented("made"))
        assert entry.signature() == (
            "def told(\n    a, # what it is\n    b: int,\n    c=1, # how it is done\n    *rest,\n    **options,\n)"
        )
    finally:
        reference.modules.cache_clear()


def test_a_stale_page_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    page = json.loads((reference.PAGES / "experiments.ipynb").read_text(encoding="utf-8"))
    (cell, _) = next(reference.shown_on(page))
    cell["outputs"][0]["data"]["text/markdown"][-1] = "Something else.\n"
    (tmp_path / "experiments.ipynb").write_text(json.dumps(page), encoding="utf-8")
    monkeypatch.setattr(reference, "PAGES", tmp_path)
    monkeypatch.setattr(sys, "argv", ["reference.py", "--check"])
    assert reference.main() == 1
    assert "-Something else." in capsys.readouterr().out


NAMES = linking.Reference(
    {
        "one.html": '<span id="gradient_surgery.one"></span><span id="gradient_surgery.one.Composed"></span>'
        '<span id="gradient_surgery.one.Composed.curl"></span><span id="gradient_surgery.one.take_apart"></span>'
        '<span id="gradient_surgery.one.work"></span><span id="gradient_surgery.one.check_batch"></span>',
        "two.html": '<span id="gradient_surgery.two"></span><span id="gradient_surgery.two.check_batch"></span>',
    }
)
COMPOSED = '<a class="api" href="../api/one.html#gradient_surgery.one.Composed">Composed</a>'


def linked(body: str, known: dict[str, str | None] | None = None) -> str:
    html = f"<main>{body}</main>"
    return linking.link(html, NAMES, known or {}, "../api/").removeprefix("<main>").removesuffix("</main>")


@pytest.mark.parametrize(
    "before, after",
    [
        ("<p><code>Composed</code></p>", f"<p><code>{COMPOSED}</code></p>"),
        ("<code>Composed(mining=&quot;all&quot;)</code>", f"<code>{COMPOSED}(mining=&quot;all&quot;)</code>"),
        ("<code>gradient_surgery.one.Composed</code>", None),
        ("<code>Composed.curl</code>", None),
        ("<code>work()</code>", None),
    ],
)
def test_names_in_text_are_linked(before: str, after: str | None) -> None:
    found = linked(before)
    assert found == after if after else found.count('<a class="api"') == 1
    assert re.sub(r'<a class="api"[^>]*>|(?<=\w)</a>', "", found) == before


@pytest.mark.parametrize(
    "text",
    [
        "<code>work</code>",  # a word of English, unless the page imports it
        "<code>check_batch</code>",  # there are two
        '<code>"Composed"</code>',
        "<code>composed</code>",
        "Composed",
        '<a href="x"><code>Composed</code></a>',
        "<h2><code>Composed</code></h2>",
        "<nav><code>Composed</code></nav>",
        "<pre><code>Composed()</code></pre>",  # an output
        '<pre><code class="sourceCode sh">Composed</code></pre>',
        '<script>"<code>Composed</code>"</script>',
        "<!-- <code>Composed</code> -->",
    ],
)
def test_other_text_is_left_alone(text: str) -> None:
    assert linked(text, {"composed": None}) == text


def test_html_that_is_not_well_formed_is_only_added_to() -> None:
    odd = "<p>a<br>b <img src=x> <b><i>c</b> &lt; &#955; </div><code>Composed</code> <code>a < b</code>"
    assert linked(odd).replace(COMPOSED, "Composed") == odd
    assert COMPOSED in linked(odd)


def test_code_follows_the_imports_of_its_notebook() -> None:
    cells = [
        "from gradient_surgery.one import Composed, take_apart, work\nfrom elsewhere import check_batch",
        "work = 3\nloss = Composed()\nloss.take_apart(take_apart=1)",
    ]
    notebook = {"cells": [{"cell_type": "code", "source": source} for source in cells]}
    known = linking.meanings(notebook, NAMES)
    assert known["Composed"] == "gradient_surgery.one.Composed"
    assert known["work"] is None and known["check_batch"] is None and known["loss"] is None
    code = (
        '<pre><code class="sourceCode python"><span class="im">from</span> one <span class="im">import</span> Composed\n'
        '<span class="co"># Composed</span> <span class="st">"Composed"</span>\n'
        'loss <span class="op">=</span> Composed(work)\n'
        'loss<span class="op">.</span>take_apart(take_apart<span class="op">=</span>take_apart)</code></pre>'
    )
    found = linked(code, known)
    assert found.count(COMPOSED) == 2
    assert re.findall(r'<a [^>]*>(\w+)</a>\)</code>', found) == ["take_apart"]
    assert found.count('<a class="api"') == 3


def test_a_module_that_passes_a_name_on() -> None:
    losses = linking.Reference(
        {"a.html": '<span id="gradient_surgery.losses.triplet.Loss"></span><span id="gradient_surgery.losses.build"></span>'}
    )
    assert losses.imported("gradient_surgery.losses", "Loss") == "gradient_surgery.losses.triplet.Loss"
    assert losses.imported("gradient_surgery.losses", "build") == "gradient_surgery.losses.build"
    assert losses.imported("gradient_surgery.losses", "nothing") is None


class Nesting(HTMLParser):
    "Finds links within links or headings, and end tags that close nothing."

    def __init__(self) -> None:
        super().__init__()
        self.open, self.wrong = [], []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "a" and dict(attributes).get("class") == "api" and {"a", "h1", "h2", "h3", "h4"} & set(self.open):
            self.wrong.append(dict(attributes)["href"])
        if tag not in linking.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass


def test_the_site_links_names(site: Path) -> None:
    "Whether the links lead somewhere, tests/test_site.py asks."
    page = BeautifulSoup((site / "nbs" / "losses" / "circle.html").read_text(encoding="utf-8"), "html.parser")
    links = {link.text: link["href"] for link in page.select("main pre a.api")}
    assert links["PairLoss"] == "../api/mathematics.html#gradient_surgery.pair_loss.PairLoss"
    assert links["CircleLoss"] == "../api/losses.html#gradient_surgery.losses.circle.CircleLoss"
    home = BeautifulSoup((site / "nbs" / "index.html").read_text(encoding="utf-8"), "html.parser")
    assert "api/mathematics.html#gradient_surgery.anatomy.dissect" in {link["href"] for link in home.select("code a.api")}
    wrong = []
    for path in sorted((site / "nbs").rglob("*.html")):
        nesting = Nesting()
        nesting.feed(path.read_text(encoding="utf-8"))
        wrong += nesting.wrong
    assert wrong == []


def test_the_reading_path_leads_on(site: Path) -> None:
    folder = site / "nbs"
    steps = offline.reading_path((folder / "index.html").read_text(encoding="utf-8"))
    assert len(steps) > 5
    for number, (address, title) in enumerate(steps):
        page = BeautifulSoup((folder / address).read_text(encoding="utf-8"), "html.parser")
        (path,) = page.select("nav.reading-path")
        assert f"{number + 1} of {len(steps)}" in path.text
        targets = [(folder / address).parent.joinpath(link["href"]).resolve() for link in path.select("a")]
        expected = [folder / other for other, _ in (*steps[number - 1 : number], *steps[number + 1 : number + 2])]
        assert targets == [other.resolve() for other in expected]


def test_check_says_nothing_of_current_pages() -> None:
    done = subprocess.run([sys.executable, "scripts/reference.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
