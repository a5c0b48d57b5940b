"""The package as its users get it: light to import, complete when built, and free of the developers' tools."""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path

import pytest

HEAVY = "nbdev papermill jupyter jupyter_core jupyter_client IPython ipykernel matplotlib torchvision timm PIL pandas"
MEGABYTE = 1_000_000


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_import_is_light(tmp_path: Path) -> None:
    loaded = run(sys.executable, "-c", "import sys, gradient_surgery; print(*sys.modules)", cwd=tmp_path).split()
    assert "gradient_surgery" in loaded
    assert set(HEAVY.split()) & set(loaded) == set()


@pytest.fixture(scope="module")
def wheel(copy_repository: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    "A wheel built from a source distribution, so that both are complete."
    folder = tmp_path_factory.mktemp("wheel")
    repository = copy_repository(folder / "repository")
    run(sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", folder, cwd=repository)
    (source,) = folder.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*pip, "--wheel-dir", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def test_wheel_is_complete(wheel: zipfile.ZipFile, root: Path, repository_files: list[str]) -> None:
    names = set(wheel.namelist())
    package = {name for name in repository_files if name.startswith("gradient_surgery/")}
    assert package - names == set()
    for suffix in ("/emoji.zip", "/py.typed", "/style.mplstyle", "/LICENSE", "/cli.py", "/surgery.py"):
        assert any(name.endswith(suffix) for name in names), f"no {suffix[1:]} in the wheel"
    assert not any(name.startswith(("nbs/", "tests/", "scripts/")) for name in names)
    assert Path(wheel.filename).stat().st_size < 15 * MEGABYTE


def test_installed_wheel_trains(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    "The wheel in an environment of its own, which borrows only what the package requires."
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    wheel.extractall(packages)
    (packages / "borrowed.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    step = """
import torch, gradient_surgery
from gradient_surgery.data.emoji import Emoji
from gradient_surgery.losses import GradientSurgery
from gradient_surgery.models import build_model
from gradient_surgery.cli import app
data, network = Emoji("validation"), build_model("small")
rows = data.labels < 6
loss = GradientSurgery()(network(data.images[rows].float() / 255), data.labels[rows])
loss.backward()
torch.optim.SGD(network.parameters(), lr=0.1).step()
assert loss.isfinite()
print(gradient_surgery.__file__)
"""
    python = tmp_path / "env" / "bin" / "python"
    assert run(python, "-c", step, cwd=tmp_path).strip().startswith(str(packages))
    assert "Usage" in run(python, "-c", "from gradient_surgery.cli import app; app()", "--help", cwd=tmp_path)


def test_types(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is one of the developers' tools")
    run(sys.executable, "-m", "mypy", "--cache-dir", tmp_path, cwd=root)


def test_licences_are_those_of_code_and_images(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = Parser().parsestr(wheel.read(name).decode())
    assert metadata["License-Expression"] == "Apache-2.0 AND CC-BY-4.0 AND CC-BY-SA-4.0 AND MIT"
    texts = {file.rpartition("/")[2]: wheel.read(file).decode() for file in wheel.namelist() if ".dist-info/licenses/" in file}
    assert texts.keys() == {"LICENSE", "emoji_licences.md"}
    for licence in ("Apache-2.0", "CC BY 4.0", "CC BY-SA 4.0", "MIT"):
        assert f"[{licence}]" in texts["emoji_licences.md"]


def test_requirements_hold_no_tools(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = Parser().parsestr(wheel.read(name).decode())
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert any(line.startswith("torch>") for line in required)
    tools = ("nbdev", "papermill", "jupyter", "ipykernel", "pytest", "smalldocs", "sympy", "hypothesis", "pytorch-metric")
    assert [line for line in required if line.startswith(tools)] == []
    assert set(metadata.get_all("Provides-Extra")) == {"dev", "docs", "pretrained", "data", "onnx", "paper", "all"}
