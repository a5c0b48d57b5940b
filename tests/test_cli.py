"""The command line, as a user types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gradient_surgery.cli import app
from gradient_surgery.losses import CATALOGUE

COMMAND = Path(sys.executable).with_name("gradient_surgery")
SMALL = "--set image_size=32 --set embedding_size=16 --set num_classes=6 --set per_class=3 --epochs 2".split()


def run(*words: object, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run([COMMAND, *map(str, words)], cwd=folder, capture_output=True, text=True)


@pytest.fixture
def run_here(monkeypatch):
    "The same in this process, which has loaded everything: a process of its own takes seconds to begin."
    def call(*words: object, folder: Path):
        monkeypatch.chdir(folder)
        result = CliRunner().invoke(app, [*map(str, words)], prog_name="gradient_surgery")
        result.returncode = result.exit_code
        return result

    return call


def test_train_then_evaluate(photos, tmp_path):
    first = run("train", "--dataset", photos, *SMALL, "--name", "mine", folder=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "recall@1" in first.stdout and "validation R@1" in first.stderr  # the table, and the progress bar
    again = run("train", "--dataset", photos, *SMALL, "--name", "mine", folder=tmp_path)
    assert again.returncode == 1 and "--resume" in again.stderr and "Traceback" not in again.stderr
    resumed = run("train", "--dataset", photos, *SMALL, "--name", "mine", "--resume", folder=tmp_path)
    assert resumed.returncode == 0 and resumed.stdout == first.stdout

    measured = run("evaluate", "runs/mine", "--output", "scores.json", folder=tmp_path)
    assert measured.returncode == 0, measured.stderr
    metrics = json.loads((tmp_path / "runs" / "mine" / "metrics.json").read_text())
    assert json.loads((tmp_path / "scores.json").read_text()) == pytest.approx(metrics["after"], abs=1e-9)

    embedded = run("embed", photos, "--run", "runs/mine", "--output", "photos.parquet", folder=tmp_path)
    assert embedded.returncode == 0 and "180 images in 16 dimensions" in embedded.stdout, embedded.stderr
    image = photos / "class07" / "3.png"
    found = run("search", image, "--run", "runs/mine", "--index", "photos.parquet", "--k", 3, "--plot", "it.png", folder=tmp_path)
    assert found.returncode == 0 and found.stdout.splitlines()[:2] == [str(image), f"  1.000  {image}"], found.stderr
    assert len(found.stdout.splitlines()) == 4 and (tmp_path / "it.png").stat().st_size > 1000
    exported = run("export", "runs/mine", "--output", "network.pt", folder=tmp_path)
    assert exported.returncode == 0 and "read back" in exported.stdout and not exported.stderr, exported.stderr
    assert (tmp_path / "network.pt").exists()


def test_configuration_file_and_changes(photos, tmp_path):
    (tmp_path / "run.yaml").write_text(f"dataset: {photos}\nloss: TripletMarginLoss\nloss_options: {{margin: 0.3}}\n")
    result = run("train", "--recipe", "run.yaml", *SMALL, "--seed", 3, "--quiet", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    written = (tmp_path / "runs" / "run-TripletMarginLoss-3" / "config.yaml").read_text()
    assert "margin: 0.3" in written and "seed: 3" in written and "epochs: 2" in written


def test_losses_lists_the_catalogue(tmp_path, run_here):
    listed = run_here("losses", folder=tmp_path).stdout.replace("\n", "")
    assert all(name[:8] in listed for name in CATALOGUE) and "mining" in listed


def test_dissect_takes_anything(photos, tmp_path, run_here):
    (tmp_path / "mine.py").write_text("def soft(similarity, labels, scale=1.0):\n    return (scale * similarity).exp().mean()\n")
    for words in (
        ["NTXentLoss", "--set", "temperature=0.1"], ["ProxyAnchorLoss"], ["RankedListLoss"],
        ["pytorch_metric_learning.losses.ArcFaceLoss"], ["mine.soft"], ["mine.py:soft", "--set", "scale=2"],
    ):
        found = run_here("dissect", *words, "--num-classes", 4, "--output", "pairs.csv", "--plot", "it.png", folder=tmp_path)
        assert found.returncode == 0, found.stderr
        assert "factorisation error" in found.stdout
        error = float(found.stdout.split("reconstruction error")[1].split()[0])
        assert error < 1e-8
        assert (tmp_path / "it.png").stat().st_size > 1000
        header, *pairs = (tmp_path / "pairs.csv").read_text().splitlines()
        assert header == "anchor,reference,positive,similarity,coefficient" and len(pairs) >= 16
    trained = run("train", "--dataset", photos, *SMALL, "--name", "mine", "--quiet", folder=tmp_path)
    assert trained.returncode == 0, trained.stderr
    words = ["CircleLoss", "--run", "runs/mine", "--num-classes", 3, "--per-class", 3]
    found = run("dissect", *words, folder=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "9 × 9" in found.stdout


@pytest.mark.parametrize("words", [
    [], ["train"], ["evaluate"], ["losses"], ["dissect"], ["embed"], ["search"], ["export"],
    ["data", "check"], ["data", "info"], ["data", "extract"]], ids=str)
def test_help(words, tmp_path, run_here):
    result = run_here(*words, "--help", folder=tmp_path)
    assert result.returncode == 0 and "Usage: gradient_surgery" in result.stdout
    assert not words or words == ["losses"] or "Example" in result.stdout


@pytest.mark.parametrize("words", ["train --loss Nothing", "train --set nothing=1", "train --dataset nowhere", "evaluate nowhere", "train --dataset cub", "train --recipe nowhere.yaml", "embed nowhere --run nowhere --output it", "search it --run nowhere --index it", "export nowhere --output it.pt", "data check cub --root nowhere", "dissect nothing.Loss", "dissect CircleLoss --run nowhere", "dissect CircleLoss --set radius=1"])
def test_mistakes_are_sentences(words, tmp_path, run_here):
    result = run_here(*words.split(), folder=tmp_path)
    assert result.returncode == 1 and result.stderr.startswith("Error: ") and "Traceback" not in result.stderr
