"Each page says at its top how long it takes and what it needs, and the teaching pages end with exercises whose answers can fail."

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("IPython")  # the tools of the notebooks
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import page_facts

NOT_LOSSES = {"catalogue", "gallery"}
TEACHING = sorted(
    [f"losses/{path.stem}" for path in (ROOT / "nbs" / "losses").glob("*.ipynb") if path.stem not in NOT_LOSSES]
    + ["geometry", "weights", "pair_loss", "lists", "proxy_loss", "mining", "all_triplets", "surgery", "anatomy", "flows",
       "evaluation", "data/sampling", "training",
       "paper/fields", "paper/integrability", "paper/impact", "paper/comparison"])
FOLD = ["#| code-fold: true", '#| code-summary: "Answer"']


def read(name: str) -> dict:
    return json.loads((ROOT / "nbs" / f"{name}.ipynb").read_text())


def source(cell: dict) -> str:
    return "".join(cell["source"])


def made(tmp_path: Path, text: str, code: str) -> Path:
    "A notebook of one text and one cell of code, as nbdev writes it."
    cells = [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": text.splitlines(keepends=True)},
        {"cell_type": "code", "execution_count": None, "id": "b", "metadata": {}, "outputs": [],
         "source": code.splitlines(keepends=True)}]
    path = tmp_path / "page.ipynb"
    path.write_text(json.dumps(
        {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, indent=1, ensure_ascii=False) + "\n")
    return path


def test_every_page_says_what_it_needs():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "page_facts.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("code", "expected"), [
    ("import torch", "the package"),
    ("from PIL import Image\nimport yaml", "the package"),  # known by other names to pip
    ("import sympy", "the package; sympy (the extra `dev`)"),
    ("def late():\n    import optuna", "the package; optuna (the extra `paper`)"),
    ("try:\n    import sympy\nexcept ImportError:\n    pass", "the package"),
    ("%matplotlib inline\nimport no_such_thing", "the package; no-such-thing"),
    ("from gradient_surgery.statistics import effects", "the package; statsmodels (the extra `paper`)"),
    ("from gradient_surgery.statistics import percent", "the package"),
    ("from gradient_surgery.heads import frozen_features",
     "the package; frozen features, which the extra `pretrained` makes, cached after the first time"),
    ("from gradient_surgery.heads import standardise\nfrom gradient_surgery.studies import PUBLISHED, graft", "the package"),
    ("from gradient_surgery.models import build_model\nbuild_model('resnet18', pretrained=True)",
     "the package; a network trained on ImageNet, which the extra `pretrained` brings"),
    ("import onnxruntime", "the package; onnxruntime (the extra `onnx`)"),
    ("from pathlib import Path\nimport gradient_surgery\nrecords = Path(gradient_surgery.__file__).parents[1]",
     "the package; a clone, installed with `pip install -e .`"),
])
def test_needs_are_what_the_imports_say(code, expected, tmp_path):
    assert page_facts.needs(json.loads(made(tmp_path, "# A page", code).read_text())) == expected


def test_only_the_line_changes_and_it_is_replaced(tmp_path):
    path = made(tmp_path, "# A page — “one”\n\n> In short.", "import sympy")
    before = path.read_text()
    assert "has no line" in page_facts.problem(path)
    page_facts.write_line(path, 4.0)
    first = path.read_text()
    assert page_facts.problem(path) is None and "about 5 s" in first
    page_facts.write_line(path, 100.0)
    assert "about 2 minutes" in path.read_text() and path.read_text().count("Runs in about") == 1
    page_facts.write_line(path, 4.0)
    assert path.read_text() == first
    line = json.loads(first)["cells"][0]["source"].pop()
    assert first.replace(' "> In short.\\n",\n    "\\n",\n    ' + json.dumps(line), ' "> In short."') == before


def test_a_sentence_that_leads_to_the_next_cell_stays_last(tmp_path):
    path = made(tmp_path, "# A page\n\n> In short.\n\nIts parameters:", "import torch")
    for _ in range(2):
        page_facts.write_line(path, 4.0)
    paragraphs = source(json.loads(path.read_text())["cells"][0]).split("\n\n")
    assert paragraphs[1:] == [
        "> In short.", "Runs in about 5 s on one processor core. Needs: the package.", "Its parameters:"]


def test_a_need_that_has_changed_is_noticed(tmp_path):
    path = made(tmp_path, "# A page", "import sympy")
    page_facts.write_line(path, 4.0)
    path.write_text(path.read_text().replace("import sympy", "import torch"))
    assert "its imports need the package" in page_facts.problem(path)


def test_rounding_is_coarse():
    assert [page_facts.rounded(seconds) for seconds in (0.5, 7, 13, 30, 60, 200)] == [
        "5 s", "10 s", "20 s", "half a minute", "a minute", "3 minutes"]


@pytest.mark.parametrize("name", TEACHING)
def test_a_teaching_page_ends_with_exercises(name):
    cells = read(name)["cells"]
    start = [i for i, cell in enumerate(cells) if source(cell).startswith("## Try this\n")]
    assert len(start) == 1, "one section 'Try this'"
    questions, answers = cells[start[0]::2], cells[start[0] + 1::2]
    assert 1 <= len(questions) == len(answers) <= 3
    for question, answer in zip(questions, answers):
        assert question["cell_type"] == "markdown" and answer["cell_type"] == "code"
        assert source(answer).split("\n")[:2] == FOLD, "the answer is folded"
        assert answer["metadata"]["jupyter"]["source_hidden"], "and collapsed in JupyterLab"
        assert "assert " in source(answer), "the answer is a check that can fail"
        assert answer["outputs"] == [], "an output would stand below the fold and tell the answer"
