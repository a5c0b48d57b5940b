"""Links from the names in a page's code to the API reference.

A name is linked where it is certain what it means: in a block of Python, what the page's notebook imports from the
package or defines for it; in running text, such a name, or one that the reference has once and that no word of plain
English is. Nothing is put into links and headings, and HTML is only added to, never written anew, so that it stays
as valid as the renderer made it.
"""

import ast
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

ANCHOR = re.compile(r'<span id="(gradient_surgery\.[\w.]+)">')
NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
CALL = re.compile(r"([A-Za-z_][\w.]*)(\(.*\))?", re.S)
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
LEFT_ALONE = {"a", "h1", "h2", "h3", "h4", "h5", "h6", "nav", "button", "script", "style", "svg", "title"}
NO_NAMES = {"co", "st", "ss", "im", "kw", "cf"}  # classes of comments, strings and keywords
PACKAGE = "gradient_surgery"


class Reference:
    "Where each name of the package is described."

    def __init__(self, pages: dict[str, str]):
        "From the pages of the reference, name -> HTML."
        self.page_of = {anchor: page for page, text in pages.items() for anchor in ANCHOR.findall(text)}
        self.named = defaultdict(list)  # a last part, or the last two -> full names
        for full in self.page_of:
            parts = full.split(".")
            for length in range(1, len(parts)):
                self.named[".".join(parts[-length:])].append(full)

    def only(self, name: str, below: str = PACKAGE) -> str | None:
        "The full name that a name or the end of one stands for, if there is a single one below a module."
        if name in self.page_of:
            return name
        found = [full for full in self.named.get(name, ()) if full.startswith(below)]
        return found[0] if len(found) == 1 else None

    def imported(self, module: str, name: str) -> str | None:
        "What `from module import name` gives: a name of the module, or one that the module passes on."
        return self.only(f"{module}.{name}") or self.only(name, module) or self.only(name)


def module_of(cells: list[str]) -> str | None:
    "The module that a notebook writes, by its `default_exp`."
    for source in cells:
        if found := re.search(r"^#\|\s*default_exp\s+([\w.]+)", source, re.M):
            return f"{PACKAGE}.{found[1]}".removesuffix(".__init__")
    return None


def meanings(notebook: dict, reference: Reference) -> dict[str, str | None]:
    "What names mean in a notebook: a full name, or None where another package has it or it is given a value."
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    module, found = module_of(cells), {}

    def note(name: str, meaning: str | None) -> None:
        found[name] = meaning if found.get(name, meaning) == meaning else None

    for source in cells:
        try:
            tree = ast.parse(re.sub(r"^[%!].*", "", source, flags=re.M))
        except SyntaxError:
            continue
        exported = re.search(r"^#\|\s*exporti?\b", source, re.M) and module
        for node in ast.walk(tree):
            match node:
                case ast.ImportFrom(module=origin, names=names):
                    ours = (origin or "").split(".")[0] == PACKAGE
                    for one in names:
                        note(one.asname or one.name, reference.imported(origin, one.name) if ours else None)
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name) if node in tree.body:
                    note(name, reference.only(f"{module}.{name}") if exported else None)
                case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                    note(name, reference.only(f"{module}.{name}") if exported else None)
    return found


class Spots(HTMLParser):
    "The text of inline code and of Python blocks that may get links: pieces of (position, text), by element."

    def __init__(self, html: str):
        super().__init__(convert_charrefs=False)
        self.starts = [0]
        for line in html.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.open: list[tuple[str, list[str]]] = []
        self.inline: list[list[tuple[int, str, bool]]] = []
        self.blocks: list[list[tuple[int, str, bool]]] = []
        self.current: list[tuple[int, str, bool]] | None = None
        self.feed(html)
        self.close()

    @property
    def position(self) -> int:
        line, column = self.getpos()
        return self.starts[line - 1] + column

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in VOID:
            return
        classes = (dict(attributes).get("class") or "").split()
        tags = {name for name, _ in self.open}
        self.open.append((tag, classes))
        if tag != "code" or tags & LEFT_ALONE or "main" not in tags:
            return
        if "pre" not in tags:
            self.current = []
            self.inline.append(self.current)
        elif "python" in classes:
            self.current = []
            self.blocks.append(self.current)

    def handle_endtag(self, tag: str) -> None:
        if tag not in [name for name, _ in self.open]:
            return  # an end without a start, of HTML that is not ours to mend
        while self.open.pop()[0] != tag:
            pass
        if tag == "code":
            self.current = None

    def handle_data(self, text: str) -> None:
        if self.current is not None:
            tag, classes = self.open[-1]
            known = tag == "code" or (tag == "span" and not NO_NAMES & set(classes))
            self.current.append((self.position, text, known))

    def _reference(self, text: str) -> None:
        if self.current is not None:
            self.current.append((self.position, text, False))

    def handle_entityref(self, name: str) -> None:
        self._reference("\0")

    def handle_charref(self, name: str) -> None:
        self._reference("\0")


def names_in(pieces: list[tuple[int, str, bool]]) -> Iterator[tuple[int, str]]:
    "The names in a block of code that stand for themselves: no attributes, no keywords of a call, no strings."
    text = "".join(piece for _, piece, _ in pieces)
    where = [(position + offset) if known else None for position, piece, known in pieces for offset in range(len(piece))]
    for found in NAME.finditer(text):
        start, end = found.span()
        if re.match(r"\s*=(?!=)", text[end:]) or text[:start].rstrip().endswith("."):
            continue
        span = where[start:end]
        if None not in span and span[-1] - span[0] == end - start - 1:  # in one piece
            yield span[0], found[0]


def certain(name: str, called: bool) -> bool:
    "Whether a name is one of code and no word that a sentence could mean otherwise."
    return called or "_" in name.strip("_") or "." in name or name != name.lower()


def link(html: str, reference: Reference, known: dict[str, str | None], prefix: str, describes: bool = False) -> str:
    """The HTML with links to the reference, whose folder is at `prefix`.
    A page of the reference `describes` names: there names in blocks of code are understood as in text."""
    spots, places = Spots(html), []
    for pieces in spots.inline:
        text = "".join(piece for _, piece, _ in pieces)
        if found := CALL.fullmatch(text):
            name = found[1]
            full = known.get(name)
            if name not in known and certain(name, bool(found[2])):
                full = reference.only(name)
            places.append((pieces[0][0], name, full))
    for pieces in spots.blocks:
        for position, name in names_in(pieces):
            full = known.get(name) or (reference.only(name) if describes and certain(name, False) else None)
            places.append((position, name, full))
    for position, name, full in sorted(places, reverse=True):
        if full and html.startswith(name, position):
            address = f"{prefix}{reference.page_of[full]}#{full}"
            html = f'{html[:position]}<a class="api" href="{address}">{name}</a>{html[position + len(name) :]}'
    return html


def link_site(site: Path, notebooks: Path) -> int:
    "Link every page of the site that was rendered from a notebook; how many links were made."
    folder, total = site / "nbs" / "api", 0
    reference = Reference({page.name: page.read_text(encoding="utf-8") for page in sorted(folder.glob("*.html"))})
    for page in sorted((site / "nbs").rglob("*.html")):
        notebook = notebooks / page.relative_to(site / "nbs").with_suffix(".ipynb")
        if not notebook.is_file():
            continue
        known = meanings(json.loads(notebook.read_text(encoding="utf-8")), reference)
        prefix = "" if page.parent == folder else "../" * (len(page.relative_to(site / "nbs").parts) - 1) + "api/"
        html = page.read_text(encoding="utf-8")
        linked = link(html, reference, known, prefix, describes=page.parent == folder)
        total += linked.count('<a class="api"')
        page.write_text(linked, encoding="utf-8")
    return total
