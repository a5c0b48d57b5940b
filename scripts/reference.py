"""The API reference, read from the package's source: what the pages in nbs/api show of each public name.

    python scripts/reference.py           # write the saved outputs of nbs/api anew
    python scripts/reference.py --check   # write nothing; exit 1 and name the pages that are stale

The source is read and not imported, since annotations, defaults and the comment beside each parameter stand in it
as they were written. A name's anchor is its full name, `gradient_surgery.surgery.GradientSurgery`.
"""

import argparse
import ast
import difflib
import inspect
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gradient_surgery"
PAGES = ROOT / "nbs" / "api"
NOTEBOOK = re.compile(r"File to edit: (?:\.\./)+nbs/(\S+\.ipynb)\.")
WIDTH = 88  # of a signature on one line
LONGEST = 100  # of a line, as in the source
LINES = 12  # of a constant's value that are shown


@dataclass
class Parameter:
    "A parameter, or a field: how it is written, and what the comment beside it says."

    name: str
    written: str
    comment: str = ""

    @property
    def told(self) -> bool:
        "Whether its type or its meaning is given."
        return bool(self.comment) or ":" in self.written.split("=")[0] or self.name.startswith("*")

    def line(self) -> str:
        "As in a signature with a parameter a line: the comment behind it, or above where it is long."
        beside = f"    {self.written}," + (f" # {self.comment}" if self.comment else "")
        return beside if len(beside) <= LONGEST or not self.comment else f"    # {self.comment}\n    {self.written},"


@dataclass
class Entry:
    "What the reference says of a name."

    name: str
    head: str  # "def name", "class name", or the assignment of a constant
    docstring: str = ""
    parameters: list[Parameter] = field(default_factory=list)
    returns: Parameter | None = None
    bases: list[str] = field(default_factory=list)
    decorators: list[str] = field(default_factory=list)
    methods: list["Entry"] = field(default_factory=list)

    @property
    def callable(self) -> bool:
        return self.head.startswith(("def ", "class "))

    def signature(self) -> str:
        "On one line where it fits and no comment needs a line, else a parameter a line with its comment."
        if not self.callable:
            return self.head
        ending = f" -> {self.returns.written}" if self.returns else ""
        comments = any(one.comment for one in self.parameters)
        line = f"{self.head}({', '.join(one.written for one in self.parameters)}){ending}"
        if len(line) > WIDTH or comments:
            line = "\n".join([f"{self.head}(", *(one.line() for one in self.parameters), f"){ending}"])
        after = f" # {self.returns.comment}" if self.returns and self.returns.comment else ""
        return "\n".join([*(f"@{name}" for name in self.decorators), line + after])


class Module:
    "A module's source, and what stands in it."

    def __init__(self, path: Path):
        self.path, self.text = path, path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        self.name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self.summary = ast.get_docstring(self.tree) or ""
        owner = NOTEBOOK.search(self.text)
        self.notebook = owner[1] if owner else None
        self.lines = self.text.splitlines()
        self.encoded = [line.encode() for line in self.lines]  # positions of nodes count bytes
        self.comments = {  # of each line: its comment, and whether the line has nothing else
            token.start[0]: (token.string.lstrip("# ").rstrip(), not token.line[: token.start[1]].strip())
            for token in tokenize.generate_tokens(io.StringIO(self.text).readline)
            if token.type == tokenize.COMMENT
        }
        self.definitions: dict[str, ast.stmt] = {}
        self.imports: dict[str, tuple[str, str]] = {}
        self.public: list[str] = []
        self._read(self.tree.body)

    def _read(self, body: list[ast.stmt]) -> None:
        for node in body:
            match node:
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    self.definitions.setdefault(name, node)
                case ast.AnnAssign(target=ast.Name(id=name)):
                    self.definitions.setdefault(name, node)
                case ast.Assign(targets=targets):
                    for name in (part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)):
                        if name == "__all__":
                            self.public = ast.literal_eval(node.value)
                        self.definitions.setdefault(name, node)
                case ast.ImportFrom(module=module, names=names, level=level) if level:
                    package = self.name.split(".") if self.path.stem == "__init__" else self.name.split(".")[:-1]
                    origin = ".".join([*package[: len(package) - level + 1], *([module] if module else [])])
                    self.imports |= {one.asname or one.name: (origin, one.name) for one in names}
                case ast.If() | ast.Try() | ast.With():
                    self._read(node.body)

    def source(self, node: ast.AST) -> str:
        "A node as written, on one line. (`ast.get_source_segment` splits the whole source each time.)"
        lines = self.encoded[node.lineno - 1 : node.end_lineno]
        lines[-1] = lines[-1][: node.end_col_offset]
        lines[0] = lines[0][node.col_offset :]
        return re.sub(r"([\[({]) ", r"\1", " ".join(b" ".join(lines).decode().split()))

    def comment(self, node: ast.AST, first: int, last: int) -> str:
        "The comment behind a node, or else those that fill the lines above it."
        beside, alone = self.comments.get(last, ("", True))
        if beside and not alone:
            return beside
        above, line = [], first - 1
        while self.comments.get(line, ("", False))[1]:
            above.insert(0, self.comments[line][0])
            line -= 1
        return " ".join(above) if self.lines[first - 1][: node.col_offset].strip() == "" else ""

    def entry(self, name: str, node: ast.stmt | None = None, within: str = "") -> Entry:
        "What is known of a name that the module defines."
        node, full = node or self.definitions[name], f"{within}{name}"
        if isinstance(node, ast.FunctionDef):
            return self._function(node, full)
        if isinstance(node, ast.ClassDef):
            return self._class(node, full)
        start, end = node.lineno, node.end_lineno
        shown = self.lines[start - 1 : end]
        if len(shown) > LINES:
            shown = [*shown[: LINES - 2], "    ..."]
        return Entry(full, "\n".join(shown))

    def _function(self, node: ast.FunctionDef, name: str) -> Entry:
        decorators = [self.source(one) for one in node.decorator_list]
        entry = Entry(name, f"def {node.name}", ast.get_docstring(node) or "")
        entry.decorators = [one for one in decorators if one in ("property", "staticmethod", "classmethod", "contextmanager")]
        entry.parameters = self._parameters(node.args, skip_first=bool("." in name and "staticmethod" not in decorators))
        if node.returns:
            line = node.returns.end_lineno
            beside = self.comments.get(line, ("", True))
            entry.returns = Parameter("", self.source(node.returns), "" if beside[1] else beside[0])
            if entry.parameters and not beside[1]:  # a comment behind a signature of one line is about what it returns
                for one in entry.parameters:
                    one.comment = "" if one.comment == beside[0] else one.comment
        return entry

    def _parameters(self, arguments: ast.arguments, skip_first: bool) -> list[Parameter]:
        positional = [*arguments.posonlyargs, *arguments.args]
        defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
        found = [self._parameter(*pair) for pair in zip(positional, defaults)][int(skip_first) :]
        if arguments.vararg:
            found.append(self._parameter(arguments.vararg, None, "*"))
        elif arguments.kwonlyargs:
            found.append(Parameter("*", "*"))
        found += [self._parameter(*pair) for pair in zip(arguments.kwonlyargs, arguments.kw_defaults)]
        if arguments.kwarg:
            found.append(self._parameter(arguments.kwarg, None, "**"))
        return found

    def _parameter(self, argument: ast.arg, default: ast.expr | None, stars: str = "") -> Parameter:
        last = default or argument.annotation or argument
        kind, told = self._annotation(argument.annotation) if argument.annotation else ("", "")
        text = stars + argument.arg + (f": {kind}" if kind else "")
        if default is not None:
            text += f" = {self.source(default)}" if kind else f"={self.source(default)}"
        return Parameter(stars + argument.arg, text, told or self.comment(argument, argument.lineno, last.end_lineno))

    def _annotation(self, node: ast.expr) -> tuple[str, str]:
        "A type as written, and what it says of itself, as the options of the command line do."
        match node:
            case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[kind, ast.Call() as option])):
                return self.source(kind), self._help(option)
            case ast.Call(func=kind):
                return self.source(kind), self._help(node)
        return self.source(node), ""

    @staticmethod
    def _help(option: ast.Call) -> str:
        told = [word.value for word in option.keywords if word.arg == "help"] or option.args
        return told[0].value if told and isinstance(told[0], ast.Constant) else ""

    def _class(self, node: ast.ClassDef, name: str) -> Entry:
        entry = Entry(name, f"class {node.name}", ast.get_docstring(node) or "")
        entry.bases = [self.source(base) for base in node.bases]
        own = {one.name: one for one in node.body if isinstance(one, ast.FunctionDef)}
        if "__init__" in own:
            entry.parameters = self._parameters(own["__init__"].args, skip_first=True)
        else:
            entry.parameters = self._fields(node)
        for method in own.values():
            if not method.name.startswith("_") and ast.get_docstring(method):
                entry.methods.append(self.entry(method.name, method, f"{name}."))
        return entry

    def _fields(self, node: ast.ClassDef) -> list[Parameter]:
        "The fields of a class that writes its own constructor, those of its bases first; or its bases' constructor."
        found: dict[str, Parameter] = {}
        by_position: set[str] = set()

        def gather(module: "Module", node: ast.ClassDef) -> None:
            for base in reversed(node.bases):
                if (origin := module.find(base)) is not None:
                    gather(*origin)
            for one in node.body:
                if isinstance(one, ast.FunctionDef) and one.name == "__init__":
                    found.clear()
                    found.update({each.name: each for each in module._parameters(one.args, skip_first=True)})
                if not isinstance(one, ast.AnnAssign):
                    continue
                name, value = one.target.id, one.value
                if "ClassVar" in module.source(one.annotation):
                    found.pop(name, None)
                    continue
                text, default = f"{name}: {module.source(one.annotation)}", module.source(value) if value else ""
                if default.startswith("field("):
                    options = {word.arg: module.source(word.value) for word in value.keywords}
                    if options.get("kw_only") == "False":
                        by_position.add(name)
                    made = options.get("default_factory", "").removeprefix("lambda: ")
                    made = {"dict": "{}", "list": "[]"}.get(made, f"{made}()" if made.isidentifier() or made.endswith(".copy") else made)
                    default = options.get("default", made)
                text += f" = {default}" if default else ""
                found.pop(name, None) if not value else None
                found[name] = Parameter(name, text, module.comment(one, one.lineno, one.end_lineno))

        gather(self, node)
        if self.keyword_only(node):
            first = [one for one in found.values() if one.name in by_position]
            rest = [one for one in found.values() if one.name not in by_position]
            return first + ([Parameter("*", "*")] if rest else []) + rest
        return list(found.values())

    def find(self, base: ast.expr) -> tuple["Module", ast.ClassDef] | None:
        "Where a base class is defined, if this package defines it."
        base = base.value if isinstance(base, ast.Subscript) else base
        name = base.id if isinstance(base, ast.Name) else ""
        if isinstance(self.definitions.get(name), ast.ClassDef):
            return self, self.definitions[name]
        if name in self.imports:
            origin, original = self.imports[name]
            module = modules()[origin]
            return module, module.definitions[original]
        return None

    def keyword_only(self, node: ast.ClassDef) -> bool:
        "Whether the class or a base of it makes its fields keyword-only, as `PairLoss` does for its subclasses."
        if any("kw_only" in self.source(one) for one in node.decorator_list):
            return True
        origins = [origin for base in node.bases if (origin := self.find(base))]
        return any(module.keyword_only(base) for module, base in origins)


@cache
def modules() -> dict[str, Module]:
    "Every module of the package by its full name."
    found = [Module(path) for path in sorted(PACKAGE.rglob("*.py")) if path.name != "_modidx.py"]
    return {module.name: module for module in found}


def documented(name: str) -> Module:
    "A module by its name within the package. Raises `ValueError` for a name that is none."
    full = f"gradient_surgery.{name}"
    if full not in modules():
        raise ValueError(f"module is {name!r}; expected one of {', '.join(known.partition('.')[2] for known in modules())}")
    return modules()[full]


def entries(module: Module) -> Iterator[Entry]:
    "The public names that a module defines, in the order of its source; names that it passes on are where they come from."
    own = [name for name in module.public if name in module.definitions]
    yield from map(module.entry, sorted(own, key=lambda name: module.definitions[name].lineno))


def paragraphs(docstring: str) -> str:
    "A docstring as Markdown: what it raises in a paragraph of its own."
    return re.sub(r"\n(?=Raises? )", "\n\n", inspect.cleandoc(docstring))


def as_markdown(entry: Entry, module: str, level: int) -> str:
    anchor = f'<span id="{module}.{entry.name}"></span>'
    parts = [anchor, f"{'#' * level} `{entry.name}`"]
    if entry.head:
        parts.append(f"```python\n{entry.signature()}\n```")
    if entry.bases and entry.bases != ["NamedTuple"]:
        parts.append(f"A subclass of {', '.join(f'`{base}`' for base in entry.bases)}.")
    elif entry.bases:
        parts.append("A `NamedTuple`.")
    if entry.docstring:
        parts.append(paragraphs(entry.docstring))
    parts += [as_markdown(method, module, level + 1) for method in entry.methods]
    return "\n\n".join(parts)


def title_of(notebook: str) -> str:
    "The title of a notebook, given by its path within nbs."
    first = json.loads((ROOT / "nbs" / notebook).read_text(encoding="utf-8"))["cells"][0]
    return "".join(first["source"]).splitlines()[0].lstrip("# ")


def together(module: Module) -> Iterator[str]:
    "The entries as Markdown; constants that one line assigns share a heading."
    for _, group in groupby(entries(module), key=lambda entry: module.definitions[entry.name].lineno):
        first, *others = group
        text = as_markdown(first, module.name, 3)
        for entry in others:
            text = text.replace("</span>", f'</span><span id="{module.name}.{entry.name}"></span>', 1)
        yield text.replace(f"`{first.name}`", ", ".join(f"`{entry.name}`" for entry in (first, *others)), 1)


def module_markdown(name: str) -> str:
    "The reference of a module, given by its name within the package."
    module = documented(name)
    short = module.name.removeprefix("gradient_surgery.")
    parts = [f'<span id="{module.name}"></span>', f"## `{short}`", module.summary]
    if module.notebook:
        parts.append(f"Explained and tested in [{title_of(module.notebook)}](../{module.notebook}).")
    if passed_on := [name for name in module.public if name in module.imports]:
        parts.append(f"`{short}` also has {', '.join(f'`{name}`' for name in passed_on)}, which are described with their modules.")
    parts += together(module)
    return "\n\n".join(part for part in parts if part) + "\n"


def show(*names: str) -> None:
    "Show the reference of these modules in a notebook."
    from IPython.display import Markdown, display

    for name in names:
        display(Markdown(module_markdown(name)))


def shown_on(page: dict) -> Iterator[tuple[dict, list[str]]]:
    "The cells of a notebook that show references, and of which modules."
    for cell in page["cells"]:
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
        for call in calls:
            if isinstance(call.func, ast.Name) and call.func.id == "show":
                yield cell, [ast.literal_eval(argument) for argument in call.args]


def outputs(names: list[str]) -> list[dict]:
    "What a notebook saves of `show(*names)`."
    return [
        {
            "data": {
                "text/markdown": module_markdown(name).splitlines(keepends=True),
                "text/plain": ["<IPython.core.display.Markdown object>"],
            },
            "metadata": {},
            "output_type": "display_data",
        }
        for name in names
    ]


def saved(cell: dict) -> str:
    return "".join("".join(output.get("data", {}).get("text/markdown", "")) for output in cell["outputs"])


def gaps() -> list[str]:
    "What the reference lacks: docstrings of public functions and classes, and parameters that nothing is said of."
    found = []
    for module in modules().values():
        for entry in chain.from_iterable((one, *one.methods) for one in entries(module)):
            if entry.callable and not entry.docstring:
                found.append(f"{module.name}.{entry.name} has no docstring")
            silent = [each.name for each in entry.parameters if not each.told]
            found += [f"{module.name}.{entry.name}: {name} has neither a type nor a comment" for name in silent]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 and show what is stale")
    check = parser.parse_args().check
    stale = 0
    for path in sorted(PAGES.glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        page = json.loads(text)
        for cell, names in shown_on(page):
            fresh = outputs(names)
            before, after = saved(cell).splitlines(keepends=True), saved({"outputs": fresh}).splitlines(keepends=True)
            if check and before != after:
                stale += 1
                name = f"nbs/api/{path.name}"
                sys.stdout.writelines(difflib.unified_diff(before, after, name, f"{name} from the source"))
            cell["outputs"] = fresh
        if not check:
            path.write_text(json.dumps(page, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    if stale:
        print("The reference is stale: run `python scripts/reference.py`.")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
