"""Every notebook runs from top to bottom in a fresh kernel, whatever the folder it is started in."""

from pathlib import Path

import pytest
from filelock import FileLock
from ipykernel.kernelspec import write_kernel_spec

from gradient_surgery.experiments import NotebookError, run_notebook

NOTEBOOKS = Path(__file__).resolve().parent.parent / "nbs"
NAMES = sorted(
    path.relative_to(NOTEBOOKS).as_posix() for path in NOTEBOOKS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
)
SECONDS_PER_CELL = 60  # only there to end a cell that hangs


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A Jupyter folder whose kernel `python3` is the interpreter that runs the tests."
    folder = tmp_path_factory.mktemp("jupyter")
    write_kernel_spec(folder / "kernels" / "python3")
    return folder


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> None:
    "Frozen features of the emoji in the user's cache, made by one worker of pytest-xdist while the others wait: they take minutes."
    from gradient_surgery.data.emoji import SPLITS
    from gradient_surgery.heads import frozen_features

    with FileLock(tmp_path_factory.getbasetemp().parent / "features.lock"):
        for split in SPLITS:
            frozen_features(split)


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
