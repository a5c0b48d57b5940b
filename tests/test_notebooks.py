"""Every notebook runs from top to bottom in a fresh kernel, whatever the folder it is started in."""

from pathlib import Path

import papermill
import pytest
from ipykernel.kernelspec import write_kernel_spec
from papermill.exceptions import PapermillExecutionError, strip_color

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


@pytest.mark.parametrize("name", NAMES)
def test_runs(name: str, kernels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_PATH", str(kernels))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    folder = tmp_path / "started_here"
    folder.mkdir()
    problem = ""
    try:
        papermill.execute_notebook(
            str(NOTEBOOKS / name),
            str(tmp_path / "executed.ipynb"),
            cwd=str(folder),
            kernel_name="python3",
            execution_timeout=SECONDS_PER_CELL,
            progress_bar=False,
        )
    except PapermillExecutionError as error:
        problem = f", cell {error.cell_index}:\n\n{error.source}\n\n" + strip_color("\n".join(error.traceback))
    except Exception as error:  # a cell that hangs, a kernel that dies
        problem = f": {type(error).__name__}: {error}"
    if problem:
        pytest.fail(f"nbs/{name}{problem}", pytrace=False)
