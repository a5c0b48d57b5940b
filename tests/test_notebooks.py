"""Every notebook runs from top to bottom in a fresh kernel, whatever the folder it is started in."""

from pathlib import Path

import pytest

from gradient_surgery.experiments import NotebookError, run_notebook

NOTEBOOKS = Path(__file__).resolve().parent.parent / "nbs"
NAMES = sorted(
    path.relative_to(NOTEBOOKS).as_posix() for path in NOTEBOOKS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
)
SECONDS_PER_CELL = 300  # only there to end a cell that hangs


def needs_features(name: str) -> bool:
    words = "gradient_surgery.heads", "gradient_surgery.studies", "records_of"
    return any(word in (NOTEBOOKS / name).read_text() for word in words)


@pytest.mark.parametrize("name", NAMES)
def test_runs(name: str, kernels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if needs_features(name):
        request.getfixturevalue("features")
    monkeypatch.setenv("JUPYTER_PATH", str(kernels))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    folder = tmp_path / "started_here"
    folder.mkdir()
    try:
        executed = tmp_path / "executed.ipynb"
        run_notebook(NOTEBOOKS / name, executed, seconds_per_cell=SECONDS_PER_CELL, cwd=str(folder))
    except NotebookError as error:
        pytest.fail(str(error), pytrace=False)
