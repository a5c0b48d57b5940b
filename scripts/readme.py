"""Write README.md from the home page's notebook, nbs/index.ipynb. With --check, only say whether it is up to date.

Pictures among the notebook's saved outputs become files in nbs/images. Cells that the site hides are left out.
"""

import argparse
import difflib
import posixpath
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "nbs" / "index.ipynb"
NOTE = "<!-- Written by scripts/readme.py from nbs/index.ipynb: edit that. -->\n\n"
IMAGE = "images/index_{cell_index}_{index}{extension}"  # beside the notebook
OPTION = re.compile(r"^#\|\s*(.*?)\s*$\n?", re.M)
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.M | re.S)
LINK = re.compile(r"(\]\(|\bsrc=\"|\bhref=\")(?!#|/|[a-z]+:)([^)\"\s]+)")
PICTURE = re.compile(r"!\[\w+\]\((images/index_(\d+)_[^)]*)\)")
CONFIG = Config(
    {
        "ExtractOutputPreprocessor": {"enabled": True, "output_filename_template": IMAGE},
        "MarkdownExporter": {"display_data_priority": ["text/markdown", "image/svg+xml", "image/png", "text/html", "text/plain"]},
    }
)


def from_the_top(markdown: str) -> str:
    "The same text with its links, relative to the notebook, made relative to the repository; code is left alone."

    def rewrite(link: re.Match) -> str:
        return link[1] + posixpath.normpath(f"nbs/{link[2]}")

    parts = CODE.split(markdown)
    return "".join(part if position % 2 else LINK.sub(rewrite, part) for position, part in enumerate(parts))


def visible(notebook: nbformat.NotebookNode) -> tuple[nbformat.NotebookNode, dict[int, str]]:
    "The notebook as the site shows it, without hidden cells, hidden code and option lines, and its pictures' alt texts."
    shown, alt_texts = [], {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = from_the_top(cell.source)
        elif cell.cell_type == "code":
            options = [option.partition(":")[::2] for option in OPTION.findall(cell.source)]
            options = {key: value.strip(" \"'") for key, value in options}
            if "hide" in options or options.get("include") == "false":
                continue
            cell.source = "" if options.get("echo") == "false" else OPTION.sub("", cell.source)
            alt_texts[len(shown)] = options.get("fig-alt", "picture")
            for output in cell.outputs:
                if "text/markdown" in output.get("data", {}):
                    output.data["text/markdown"] = from_the_top(output.data["text/markdown"])
        shown.append(cell)
    notebook.cells = shown
    notebook.metadata["language_info"] = {"name": "python"}  # the language of the code blocks
    return notebook, alt_texts


def render() -> dict[Path, bytes]:
    "Every file that is written from the notebook, with its contents."
    notebook, alt_texts = visible(nbformat.read(NOTEBOOK, as_version=4))
    body, resources = MarkdownExporter(config=CONFIG).from_notebook_node(notebook)
    body = PICTURE.sub(lambda picture: f"![{alt_texts[int(picture[2])]}](nbs/{picture[1]})", body)
    body = re.sub(r"^```python\s*```\n", "", body, flags=re.M)
    body = re.sub(r"<style.*?</style>\n?", "", body, flags=re.S)
    body = re.sub(r"[ \t]+$", "", body, flags=re.M)
    body = re.sub(r"\n{3,}", "\n\n", body)
    files = {NOTEBOOK.parent / name: data for name, data in resources.get("outputs", {}).items()}
    return {ROOT / "README.md": (NOTE + body.strip() + "\n").encode(), **files}


def leftovers(files: dict[Path, bytes]) -> list[Path]:
    "Pictures of earlier versions of the notebook."
    return [path for path in sorted((NOTEBOOK.parent / "images").glob("index_*")) if path not in files]


def stale(files: dict[Path, bytes]) -> list[str]:
    "What differs between these files and those on disk: a diff for text, a line for a picture."
    complaints = []
    for path, expected in files.items():
        found = path.read_bytes() if path.exists() else b""
        name = path.relative_to(ROOT).as_posix()
        if found == expected:
            continue
        if path.suffix == ".md":
            lines = [text.decode().splitlines(keepends=True) for text in (found, expected)]
            complaints.append("".join(difflib.unified_diff(*lines, name, f"{name} from the notebook")))
        else:
            complaints.append(f"{name} is not the picture in the notebook\n")
    for path in leftovers(files):
        complaints.append(f"{path.relative_to(ROOT).as_posix()} is no longer in the notebook\n")
    return complaints


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 and show the difference when stale")
    check = parser.parse_args().check
    files = render()
    if check:
        complaints = stale(files)
        sys.stdout.writelines(complaints)
        if complaints:
            print("README.md is stale: run `make export`.")
        return 1 if complaints else 0
    for path, data in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    for path in leftovers(files):
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
