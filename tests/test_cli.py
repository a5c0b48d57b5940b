"""The command line, as a user types it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gradient_surgery import training
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

    measured = run("evaluate", "runs/mine", "--output", "new/scores.json", folder=tmp_path)
    assert measured.returncode == 0, measured.stderr
    metrics = json.loads((tmp_path / "runs" / "mine" / "metrics.json").read_text())
    assert json.loads((tmp_path / "new" / "scores.json").read_text()) == pytest.approx(metrics["after"], abs=1e-9)

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
    words = ["CircleLoss", "--run", "runs/mine", "--num-classes", 3, "--per-class"]
    found = run("dissect", *words, 3, folder=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "9 × 9" in found.stdout
    fewer = run_here("dissect", *words, 8, folder=tmp_path)  # each class has six images
    assert fewer.returncode == 0 and "18 × 18" in fewer.stdout, fewer.stderr


def test_a_run_without_validation_is_dissected_on_images_as_it_is_measured(photos, tmp_path, run_here, monkeypatch):
    words = ["--dataset", photos, "--cache", "cache", *SMALL, "--set", "crop=random", "--set", "validation=0", "--set", "stored_size=48", "--quiet"]
    trained = run_here("train", *words, "--name", "mine", folder=tmp_path)
    assert trained.returncode == 0, trained.stderr
    real, sizes = training.embed, []
    monkeypatch.setattr(training, "embed", lambda model, images: sizes.append(images[0][0].shape) or real(model, images))
    found = run_here("dissect", "CircleLoss", "--run", "runs/mine", folder=tmp_path)
    assert found.returncode == 0 and sizes == [(3, 32, 32)], found.stderr


def test_evaluate_refuses_classes_that_were_trained_on(photos, tmp_path, run_here):
    images = shutil.copytree(photos, tmp_path / "photos")
    assert run_here("train", "--dataset", images, *SMALL, "--name", "mine", "--quiet", folder=tmp_path).returncode == 0
    (images / "class00").rename(images / "zebra")
    for same in ([], ["--dataset", f"{images}/"], ["--dataset", "./photos"]):  # however its place is written
        refused = run_here("evaluate", "runs/mine", *same, folder=tmp_path)
        assert refused.returncode == 1 and "the classes of the data are not those of the run" in refused.stderr
    assert run_here("evaluate", "runs/mine", "--dataset", photos, folder=tmp_path).returncode == 0  # other data, says the user
    (tmp_path / "runs" / "mine" / "classes.json").unlink()  # as in an older run
    assert run_here("evaluate", "runs/mine", folder=tmp_path).returncode == 0


@pytest.mark.parametrize("words", [
    [], ["train"], ["evaluate"], ["losses"], ["dissect"], ["embed"], ["search"], ["export"],
    ["data", "check"], ["data", "info"], ["data", "extract"]], ids=str)
def test_help(words, tmp_path, run_here):
    result = run_here(*words, "--help", folder=tmp_path)
    assert result.returncode == 0 and "Usage: gradient_surgery" in result.stdout
    assert not words or words == ["losses"] or "Example" in result.stdout


@pytest.mark.parametrize("words, said", [
    ("train --set loss_options={margin:", ["--set loss_options={margin: is no YAML"]),
    ("train --model botnet50ts_256 --set pretrained=true", ["No pretrained weights exist", "Or give a file of weights by `weights`"]),
    ("train --model vit_tiny_patch16_224", ["Input height (64) doesn't match model (224)"]),
])
def test_mistakes_that_others_find_are_sentences_too(words, said, tmp_path, run_here):
    result = run_here(*words.split(), folder=tmp_path)
    assert result.returncode == 1 and all(each in result.stderr for each in said), result.stderr
    assert any(line.startswith("Error: ") for line in result.stderr.split("\n"))  # below a progress bar


def test_numbers_without_a_point_are_numbers(tmp_path, run_here):
    found = run_here("dissect", "NTXentLoss", "--set", "temperature=1e-1", folder=tmp_path)
    assert found.returncode == 0 and found.stdout == run_here("dissect", "NTXentLoss", "--set", "temperature=0.1", folder=tmp_path).stdout


@pytest.mark.parametrize("words", ["train --loss Nothing", "train --set nothing=1", "train --dataset nowhere", "evaluate nowhere", "train --dataset cub", "train --recipe nowhere.yaml", "embed nowhere --run nowhere --output it", "search it --run nowhere --index it", "export nowhere --output it.pt", "data check cub --root nowhere", "dissect nothing.Loss", "dissect CircleLoss --run nowhere", "dissect CircleLoss --set radius=1"])
def test_mistakes_are_sentences(words, tmp_path, run_here):
    result = run_here(*words.split(), folder=tmp_path)
    assert result.returncode == 1 and result.stderr.startswith("Error: ") and "Traceback" not in result.stderr
