"""What several test files share: where the repository is, a copy of its files, and which tests need a GPU."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch: each worker of pytest-xdist is one thread
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # products of a GPU are summed in one order
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


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A folder that all workers of pytest-xdist have in common."
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A Jupyter folder whose kernel `python3` is the interpreter that runs the tests."
    from ipykernel.kernelspec import write_kernel_spec

    folder = tmp_path_factory.mktemp("jupyter")
    write_kernel_spec(folder / "kernels" / "python3")
    return folder


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> None:
    "Frozen features of the emoji in the user's cache, made by one worker of pytest-xdist while the others wait: they take minutes."
    from gradient_surgery.data.emoji import SPLITS
    from gradient_surgery.heads import frozen_features

    with FileLock(shared_folder(tmp_path_factory) / "features.lock"):
        for split in SPLITS:
            frozen_features(split)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "The website as built without Quarto, once for all workers of pytest-xdist."
    folder = shared_folder(tmp_path_factory) / "site"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            command = [sys.executable, "scripts/docs.py", "--renderer", "smalldocs", "--output", str(folder)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                shutil.rmtree(folder, ignore_errors=True)
                pytest.fail(done.stdout + done.stderr, pytrace=False)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A folder of thirty classes of coloured squares, six images each."
    import torch
    from PIL import Image

    root = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for label in range(30):
        folder = root / f"class{label:02}"
        folder.mkdir()
        colour = torch.randint(256, (3,), generator=generator)
        for number in range(6):
            pixels = (colour + torch.randint(-60, 60, (32, 32, 3), generator=generator)).clamp(0, 255).to(torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return root


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where losses are computed, such as cuda; evaluation and training take a GPU by themselves")


def pytest_configure(config: pytest.Config) -> None:
    device = config.getoption("--device")
    if device == "cpu":
        return
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise pytest.UsageError(f"--device is {device}, and PyTorch finds no GPU here")
    compute_losses_on(device)


def compute_losses_on(device: str) -> None:
    "From now on losses move what they are given to a device, and what comes out back: the tests need not know."
    import torch
    from torch.func import functional_call

    from gradient_surgery.pair_loss import PairLoss

    original, there = PairLoss.__call__, False

    def moved(self, embeddings, *others, **named):
        nonlocal there
        if there or not isinstance(embeddings, torch.Tensor) or embeddings.device.type != "cpu":
            return original(self, embeddings, *others, **named)
        to = lambda value: torch.utils._pytree.tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, value)
        state = {name: x.to(device) for name, x in [*self.named_parameters(), *self.named_buffers()]}
        there = True
        try:
            return functional_call(self, state, to((embeddings, *others)), to(named)).to(embeddings.device)
        finally:
            there = False

    PairLoss.__call__ = moved


LONG = {"test_paper", "test_lab", "test_tutorials", "test_benchmarks"}  # tests of a minute each


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONG)  # the last to begin keeps the others waiting
    needs_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not needs_gpu:
        return
    import torch

    if torch.cuda.is_available():
        compare_on_a_gpu()
    else:
        for item in needs_gpu:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and there is none"))


def compare_on_a_gpu() -> None:
    "What is compared with the CPU is computed in whole float32, and the same run twice is the same."
    import torch

    torch.backends.cudnn.allow_tf32 = False  # products have none by default
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
