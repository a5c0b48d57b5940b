"""The shell commands that a tutorial shows do what it says, as they stand there; only the training is shortened."""

import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from gradient_surgery.records import checked_record


@pytest.fixture
def tutorial(root: Path, monkeypatch: pytest.MonkeyPatch):
    "The module that runs the tutorial's commands, and times them."
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import tutorial

    return tutorial


def test_commands_of_own_images(tutorial, tmp_path: Path) -> None:
    commands = dict.fromkeys(block for _, block in tutorial.shell_steps())
    install, demonstration, train, embed, search = commands
    assert install.splitlines()[-1] == "pip install ."  # tested where packages are built
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": programs, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}

    tutorial.run(demonstration, tmp_path, environment)
    classes = {name: len(list((tmp_path / name).iterdir())) for name in ("photos", "new")}
    images = {name: len(list((tmp_path / name).rglob("*.png"))) for name in classes}
    assert classes == {"photos": 72, "new": 12} and images["photos"] == 545  # as the text has it

    assert train.count("--epochs 30") == 1
    shown = tutorial.run(train.replace("--epochs 30", "--epochs 1"), tmp_path, environment)
    assert "36 unseen classes" in shown and "recall@1" in shown
    assert {"gallery.png", "curves.png", "triplets.png", "metrics.json"} <= {
        path.name for path in (tmp_path / "runs" / "mine").iterdir()}

    assert f"{images['new']} images in 128 dimensions: new.parquet" in tutorial.run(embed, tmp_path, environment)
    lines = tutorial.run(search, tmp_path, environment).splitlines()
    queries = sorted(f"new/watermelon/{path.name}" for path in (tmp_path / "new" / "watermelon").iterdir())
    assert [line for line in lines if not line.startswith(" ")] == queries
    for query, first in zip(queries, lines[1::7]):  # six are found for each, itself first
        assert first.split() == ["1.000", query]
    with Image.open(tmp_path / "found.png") as picture:
        assert min(picture.size) > 300


def test_time_is_that_of_the_commands_shown(root: Path, tutorial) -> None:
    record = checked_record(json.loads((root / "records" / "tutorial" / "own_images.json").read_text()))
    shown: dict[str, str] = {}
    for heading, block in tutorial.shell_steps():
        shown[heading] = shown.get(heading, "") + block
    again = "measure anew: python benchmarks/tutorial.py --output records/tutorial/own_images.json"
    assert record["parameters"]["commands"] == shown, again
    steps = {name.removesuffix(" seconds") for name in record["metrics"] if name.endswith(" seconds")}
    assert steps == {"Clone", *shown}, again


def test_a_command_that_fails_is_shown(tutorial, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such folder"):
        tutorial.run("echo no such folder\nfalse\necho not reached\n", tmp_path)
