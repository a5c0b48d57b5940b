"""What several test files share: where the repository is, a copy of its files, and which tests need a GPU."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    "The top of the repository."
    return ROOT


@pytest.fixture(scope="session")
def repository_files() -> list[str]:
    "Every file that is or would be committed, relative to the top of the repository."
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git repository: " + listed.stderr.strip())
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="session")
def copy_repository(repository_files: list[str]) -> Callable[[Path], Path]:
    "Copies those files into a folder that a test may write to, and returns the folder."

    def copy(top: Path) -> Path:
        for name in repository_files:
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, top / name)
        return top

    return copy


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needs_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not needs_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needs_gpu:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and there is none"))
