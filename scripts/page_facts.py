"""Say at the top of each notebook how long it takes and what it needs.

The line is measured and derived here, not typed: the time is that of the processor for a fresh kernel and all
cells with one thread, rounded coarsely, so that it holds on a busy machine as well; the needs are what the page
imports, by itself or through the package, that the package alone does not bring, with the extra that does.
Everything else in a notebook stays as it is. `--check` looks whether the needs are still true, and runs nothing.
"""

import argparse
import ast
import configparser
import json
import os
import re
import resource
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS, PACKAGE = ROOT / "nbs", ROOT / "gradient_surgery"
LEFT_OUT = {"index"}  # it is README.md as well, which nobody runs
EXTRAS = ["pretrained", "data", "onnx", "paper", "docs", "dev"]  # the first that lists a distribution is named
OTHER_NAMES = {"PIL": "pillow", "yaml": "pyyaml", "faiss": "faiss-cpu", "bs4": "beautifulsoup4"}
WITH_JUPYTER = {"IPython", "ipykernel", "nbformat", "nbclient", "jupyter_client"}  # whoever opens a notebook has it
FEATURES = ["heads", "studies"]  # modules of the package that train on frozen features
NOTEBOOK_RUNS = re.compile(r'experiment(", "| )(quickstart|end_to_end|frozen)("| --)')  # experiments whose runs are notebooks
BESIDE = re.compile(r"__file__\)\.parents\[1\]")  # what lies beside the package is in a clone only
LINE = re.compile(r"\n\nRuns in about [^\n]*\. Needs: [^\n]*\.(?=\n\n|$)")
LEADS_ON = re.compile(r"(\n\n[^\n]*:)?$")  # a last sentence that introduces the next cell keeps its place


def names() -> list[str]:
    "Every notebook, by its path inside nbs without suffix."
    paths = (path.relative_to(NOTEBOOKS).with_suffix("") for path in NOTEBOOKS.rglob("*.ipynb"))
    return sorted({path.as_posix() for path in paths if ".ipynb_checkpoints" not in path.parts} - LEFT_OUT)


@cache
def requirements() -> dict[str, str]:
    "The distributions that settings.ini names, and the extra that brings each, or an empty text for the package itself."
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "settings.ini")
    brings = {}
    for extra in ["", *EXTRAS]:
        listed = config["DEFAULT"][f"{extra}_requirements".lstrip("_")].split()
        for requirement in listed:
            brings.setdefault(normalised(re.split(r"[<>=!~\[;]", requirement)[0]), extra)
    return brings


def normalised(distribution: str) -> str:
    return distribution.lower().replace("_", "-")


def code_cells(notebook: dict) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def code_of(notebook: dict) -> str:
    "The code cells as Python."
    from IPython.core.inputtransformer2 import TransformerManager  # turns what is for IPython only into calls

    return "\n".join(map(TransformerManager().transform_cell, code_cells(notebook)))


def imported(tree: ast.AST) -> list[tuple[str, str | None]]:
    "What the code imports: modules, each with the name that is taken from it. What it only tries to import is left out."
    if isinstance(tree, ast.Try):
        return []
    if isinstance(tree, ast.Import):
        return [(alias.name, None) for alias in tree.names]
    if isinstance(tree, ast.ImportFrom):
        return [(tree.module, alias.name) for alias in tree.names if not tree.level]
    return [one for child in ast.iter_child_nodes(tree) for one in imported(child)]


@cache
def module(name: str) -> tuple[list[ast.stmt], dict[str, ast.stmt], dict[str, str]] | None:
    "Of a module of the package: what runs at its import, what it defines, and where it has other names from."
    path = ROOT / name.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.exists():
        return None
    body = ast.parse(path.read_text()).body
    defined = {node.name: node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    at_import = [node for node in body if node not in defined.values()]
    given = {taken: origin for node in at_import for origin, taken in imported(node)
             if taken and origin.split(".")[0] == PACKAGE.name}
    return at_import, defined, given


def reached(name: str, taken: str | None, seen: set[tuple[str, str | None]]) -> set[str]:
    """The modules of others that are imported with a module, and by the function or class that is taken from it
    and whatever it uses of the same module."""
    if name.split(".")[0] != PACKAGE.name:
        return {name.split(".")[0]}
    if (name, taken) in seen or module(name) is None:
        return set()
    seen.add((name, taken))
    at_import, defined, given = module(name)
    found = set().union(*(reached(origin, None, seen) for node in at_import for origin, _ in imported(node)))
    if taken in given:
        return found | reached(given[taken], taken, seen)
    if taken in defined:
        found |= set().union(*(reached(origin, None, seen) for origin, _ in imported(defined[taken])))
        for other in {node.id for node in ast.walk(defined[taken]) if isinstance(node, ast.Name)} & defined.keys():
            found |= reached(name, other, seen)
    elif taken is not None:
        found |= reached(f"{name}.{taken}", None, seen)
    return found


@cache
def on_features() -> set[str]:
    "The functions of `FEATURES` that come to frozen features, by themselves or by one another."
    uses = {name: {node.id for node in ast.walk(body) if isinstance(node, ast.Name)}
            for part in FEATURES for name, body in module(f"{PACKAGE.name}.{part}")[1].items()}
    found = {"frozen_features"}
    while more := {name for name, used in uses.items() if used & found} - found:
        found |= more
    return found


def needs(notebook: dict) -> str:
    "What a page needs, in words."
    code = code_of(notebook)
    taken, seen = imported(ast.parse(code)), set()
    found = set().union(*(reached(*one, seen) for one in taken)) - set(sys.stdlib_module_names) - WITH_JUPYTER
    beside = {path.stem for path in (ROOT / "scripts").glob("*.py")}  # what only the pages use
    by_extra, brings = {}, requirements()
    found |= {"papermill"} if NOTEBOOK_RUNS.search(code) else set()
    for name in sorted(found - beside, key=str.lower):
        distribution = normalised(OTHER_NAMES.get(name, name))
        if brings.get(distribution) != "":
            by_extra.setdefault(brings.get(distribution), []).append(distribution)
    words = ["the package"] + [
        ", ".join(by_extra[extra]) + (f" (the extra `{extra}`)" if extra else "")
        for extra in [*EXTRAS, None] if extra in by_extra]
    modules = {f"{PACKAGE.name}.{name}" for name in FEATURES}
    own = {f"{PACKAGE.name}.{name}" for name in re.findall(r"default_exp (\w+)", code)}
    if own & modules or any(origin in modules and name in on_features() for origin, name in taken):
        words.append("frozen features, which the extra `pretrained` makes, cached after the first time")
    elif "pretrained=True" in code and "pretrained" not in by_extra:
        words.append("a network trained on ImageNet, which the extra `pretrained` brings")
    if NOTEBOOK_RUNS.search(code) or any(BESIDE.search(cell) for cell in code_cells(notebook) if "#| export" not in cell):
        words.append("a clone, installed with `pip install -e .`")
    return "; ".join(words)


def measured(path: Path) -> float:
    "Processor seconds of a fresh kernel that runs a copy of the notebook, with one thread, where the notebook lies."
    import nbformat
    from nbclient import NotebookClient

    os.environ["OMP_NUM_THREADS"] = "1"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    NotebookClient(
        nbformat.read(path, 4), timeout=600, kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}}).execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def rounded(seconds: float) -> str:
    for most, words in ((6, "5 s"), (12, "10 s"), (24, "20 s"), (40, "half a minute"), (80, "a minute")):
        if seconds <= most:
            return words
    return f"{round(seconds / 60)} minutes"


def first_text(notebook: dict) -> dict:
    return next(cell for cell in notebook["cells"] if cell["cell_type"] == "markdown")


def write_line(path: Path, seconds: float) -> str:
    "Put the line at the end of the first text and in place of one that is there; no other byte changes."
    text = path.read_text()
    notebook = json.loads(text)
    cell = first_text(notebook)
    old = cell["source"]
    source = LINE.sub("", "".join(old).rstrip())
    line = f"Runs in about {rounded(seconds)} on one processor core. Needs: {needs(notebook)}."
    cell["source"] = LEADS_ON.sub(lambda last: f"\n\n{line}{last.group()}", source, count=1).splitlines(keepends=True)
    shown = lambda value: json.dumps(value, ensure_ascii=False, indent=1).replace("\n", "\n   ")
    assert text.count(shown(old)) == 1, f"{path}: its first text was not found as nbdev writes it; run nbdev_clean"
    path.write_text(text.replace(shown(old), shown(cell["source"])))
    return line


def problem(path: Path) -> str | None:
    "What is wrong with a notebook's line, if anything is."
    notebook = json.loads(path.read_text())
    found = LINE.search("".join(first_text(notebook)["source"]).rstrip())
    if not found:
        return "has no line that says how long it takes and what it needs"
    said = found.group().split(" Needs: ")[1].removesuffix(".")
    return None if said == needs(notebook) else f"says that it needs {said}; its imports need {needs(notebook)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="paths inside nbs without suffix (default: all)")
    parser.add_argument("--check", action="store_true", help="only say which lines are missing or not true any more")
    arguments = parser.parse_args()
    complaints = 0
    for name in arguments.names or names():
        path = NOTEBOOKS / f"{name}.ipynb"
        if arguments.check:
            if what := problem(path):
                complaints += 1
                print(f"nbs/{name}.ipynb {what}. Run: python scripts/page_facts.py {name}", file=sys.stderr)
            continue
        from nbclient.exceptions import CellControlSignal, DeadKernelError  # here, since --check does without

        try:
            seconds = measured(path)
        except (CellControlSignal, DeadKernelError) as error:  # the others are measured all the same
            complaints += 1
            print(f"nbs/{name}.ipynb does not run: {str(error).strip().splitlines()[-1]}", file=sys.stderr, flush=True)
            continue
        print(f"{name}: {write_line(path, seconds)} ({seconds:.1f} s)", flush=True)
    return min(complaints, 1)


if __name__ == "__main__":
    sys.exit(main())
