"""The notebooks as a reader uses them: their controls redraw whatever is chosen, and JupyterLab runs one in a browser.

The second part needs JupyterLab, Chromium (see test_browser.py) and playwright.
"""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient

WITH_CONTROLS = ["weights", "mining", "surgery", "paper/fields"]
WAITS_FOR_A_READER = "skip-execution"  # the tag of a cell that nbconvert and papermill leave out
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
LONG = 240  # seconds; only there to end what hangs
A_CELL = 90  # seconds; beside other kernels, nbclient now and then sees a reply only when this is over
# Sets every menu to each of its options and, once, every slider that comes with one to its ends; says what was drawn.
TURN = """
import hashlib, json, sys
from IPython import get_ipython

drawn, wrong = [], []

def see(message):
    if message["header"]["msg_type"] == "display_data":
        drawn.append(hashlib.sha1(message["content"]["data"].get("image/png", "").encode()).hexdigest())
    return message

get_ipython().display_pub.register_hook(see)
get_ipython().showtraceback = lambda *error, **_: wrong.append(repr(error or sys.exc_info()))

def controls(widget, kind):
    below = [one for child in getattr(widget, "children", ()) for one in controls(child, kind)]
    return below + [widget] * hasattr(widget, kind)

def turn(control, values):
    pictures = []
    for value in values:
        before = len(drawn)
        control.value = value
        pictures.append(drawn[before:])
    return pictures

box, turned, known = Out[max(Out)], {}, set()
for menu in controls(box, "options"):
    start = menu.value
    for option in [*[option for option in menu.options if option != start], start]:
        turned.setdefault(menu.description, []).extend(turn(menu, [option]))
        for slider in (one for one in controls(box, "step") if one.model_id not in known):
            known.add(slider.model_id)
            ends = [end for end in (slider.min, slider.max) if end != slider.value]  # no change, no picture
            turned[f"{slider.description} of {option}"] = turn(slider, [*ends, slider.value])
print(json.dumps({"turned": turned, "wrong": wrong}))
"""


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Kernel `python3` is the interpreter that runs the tests."
    write_kernel_spec(tmp_path / "jupyter" / "kernels" / "python3")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)


def waiting(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if WAITS_FOR_A_READER in cell.metadata.get("tags", [])]


@pytest.mark.parametrize("name", WITH_CONTROLS)
def test_controls_redraw(name: str, root: Path, kernels: None, tmp_path: Path) -> None:
    notebook = nbformat.read(root / "nbs" / f"{name}.ipynb", 4)
    (cell,) = waiting(notebook)
    last = notebook.cells.index(cell) + 1
    notebook.cells = notebook.cells[:last] + [nbformat.v4.new_code_cell(TURN)]
    NotebookClient(
        notebook, timeout=A_CELL, skip_cells_with_tag="none",
        resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = json.loads(notebook.cells[-1].outputs[0]["text"])
    assert said["wrong"] == [] and said["turned"]
    for control, settings in said["turned"].items():
        assert all(len(pictures) == 1 for pictures in settings), control
        assert len({pictures[0] for pictures in settings}) > 1, f"{control} changes nothing"


def test_controls_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradient_surgery.surgery import component_controls

    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ImportError, match="pip install ipywidgets"):
        component_controls(print)


def test_controls_refuse_an_unknown_component() -> None:
    from gradient_surgery.surgery import component_controls

    with pytest.raises(ValueError, match="'sampler'; expected some of direction, pair_weight"):
        component_controls(print, ("direction", "sampler"))


def test_no_notebook_stores_a_widget(root: Path, repository_files: list[str]) -> None:
    "A stored widget is dead on the page and in a diff."
    storing = {}
    for name in (name for name in repository_files if name.endswith(".ipynb")):
        notebook = nbformat.read(root / name, 4)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        views = ["application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs]
        if "widgets" in notebook.metadata or any(views) or any(cell.outputs for cell in waiting(notebook)):
            storing[name] = "clear the outputs of cells tagged " + WAITS_FOR_A_READER
    assert storing == {}


@pytest.fixture
def lab(root: Path, kernels: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    "The address of a JupyterLab that serves a copy of the notebooks; `{}` is where a notebook's name goes."
    pytest.importorskip("jupyterlab", reason="needs JupyterLab: pip install jupyterlab")
    notebooks = tmp_path / "nbs"
    shutil.copytree(root / "nbs", notebooks, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for variable in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    for extension, setting in (
        ("notebook-extension/tracker", {"windowingMode": "none"}),  # every cell is in the page, seen or not
        ("apputils-extension/notification", {"fetchNews": "false", "checkForUpdates": False}),
    ):
        settings = tmp_path / "settings" / "@jupyterlab" / f"{extension}.jupyterlab-settings"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps(setting))
    monkeypatch.setenv("JUPYTERLAB_SETTINGS_DIR", str(tmp_path / "settings"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token, log = secrets.token_hex(16), tmp_path / "lab.log"
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={notebooks}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with log.open("w") as out:
        server = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_for_server(f"http://127.0.0.1:{port}/api/status?token={token}", server, log)
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}"
    finally:
        server.terminate()  # it ends its kernels first
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_for_server(address: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + LONG
    while server.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(address, timeout=10):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"JupyterLab does not answer:\n{log.read_text()}", pytrace=False)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium, or set CHROMIUM")
def test_runs_in_jupyterlab(lab: str, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    playwright.expect.set_options(timeout=1000 * LONG)
    code = clear_outputs(tmp_path / "nbs" / "surgery.ipynb")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(1000 * LONG)
        try:
            run_in_lab(page, lab.format("surgery.ipynb"), code, playwright.expect)
        finally:
            page.screenshot(path=tmp_path / "lab.png")
            browser.close()


def clear_outputs(path: Path) -> int:
    "So that what the browser shows was computed there. Returns the number of code cells."
    notebook = nbformat.read(path, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        cell.outputs = []
        cell.metadata.pop("jupyter", None)  # a collapsed answer shows no number
    nbformat.write(notebook, path)
    return len(code)


def wait_for_kernel(page: "playwright.Page", address: str) -> None:
    "The page calls a kernel idle that is still being connected, and what it is asked then is forgotten."
    kernels, end = address.replace("/lab/tree/surgery.ipynb", "/api/kernels"), time.monotonic() + LONG
    while time.monotonic() < end:
        if any(kernel["connections"] and kernel["execution_state"] == "idle" for kernel in page.request.get(kernels).json()):
            page.wait_for_timeout(2000)  # the page learns of it from the same server
            return
        page.wait_for_timeout(200)
    pytest.fail("JupyterLab connects no kernel", pytrace=False)


def run_in_lab(page: "playwright.Page", address: str, code: int, expect: Callable) -> None:
    idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    errors = page.locator("[data-mime-type='application/vnd.jupyter.error']")
    page.goto(address)
    expect(idle).to_be_visible()
    expect(page.locator(".jp-OutputArea-output")).to_have_count(0)

    wait_for_kernel(page, address)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    prompts = page.locator(".jp-CodeCell .jp-InputPrompt")
    expect(prompts).to_have_text([re.compile(r"^\[\d+\]:$")] * code)
    expect(idle).to_be_visible()
    assert errors.all_inner_texts() == []
    expect(page.get_by_text(re.compile(r"^180 compositions, largest relative error \d\.\de-1\d"))).to_be_visible()

    picture = page.locator(".widget-output img")
    triplet_weight = page.locator(".widget-dropdown", has_text="triplet weight").locator("select")
    slider = lambda name: page.locator(".widget-hslider", has_text=name).locator(".noUi-handle")
    expect(slider("triplet margin")).to_be_visible()
    for turn in (lambda: triplet_weight.select_option("sigmoid"), lambda: slider("triplet scale").press("ArrowRight")):
        before = picture.get_attribute("src")
        turn()
        expect(picture).not_to_have_attribute("src", before)
    assert errors.all_inner_texts() == []
