"""A run of training: what it writes, that it goes on after a kill, and that nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from gradient_surgery.training import load_run, read_config, train

FILES = {"config.yaml", "checkpoint", "history.csv", "metrics.json", "curves.png", "gallery.png", "triplets.png"}


@pytest.fixture(autouse=True)
def another_precision():
    "accelerate holds a process to the first precision that it was given."
    AcceleratorState._reset_state(reset_partial_state=True)


def config_for(photos: Path, **changes):
    small = {"image_size": 32, "embedding_size": 16, "num_classes": 6, "per_class": 3, "epochs": 4}
    return read_config(dataset=str(photos), **(small | changes))


@pytest.mark.parametrize("loss", ["GradientSurgery", "TripletMarginLoss", "SmoothAPLoss", "ProxyAnchorLoss", "SoftTripleLoss"])
def test_a_run_teaches_and_writes_what_it_says(photos, tmp_path, loss):
    metrics = train(config_for(photos, loss=loss), tmp_path / "run", quiet=True)
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics
    for part in ("before", "after"):
        assert {"recall@1", "recall@2", "recall@4", "recall@8", "r_precision", "map@r", "nmi"} <= set(metrics[part])
        assert all(0 <= value <= 1 for value in metrics[part].values())
    model, config = load_run(tmp_path / "run")
    assert config == config_for(photos, loss=loss)
    assert sum(p.numel() for p in model.parameters()) == metrics["parameters"]


def test_a_batch_in_parts_trains_the_same_network(photos, tmp_path):
    runs = {}
    for micro_batch in (None, 7):  # convnext has no batch statistics; batches are of 18
        config = config_for(photos, model="convnext_atto", micro_batch=micro_batch, precision="no", epochs=1)
        train(config, tmp_path / str(micro_batch), quiet=True)
        runs[micro_batch] = torch.load(tmp_path / str(micro_batch) / "checkpoint" / "last.pt", weights_only=True)
    for name, expected in runs[None]["model"].items():
        assert torch.linalg.vector_norm(runs[7]["model"][name] - expected) <= 1e-3 * torch.linalg.vector_norm(expected), name
    assert runs[7]["history"][0]["loss"] == pytest.approx(runs[None]["history"][0]["loss"], rel=1e-4)


def test_a_run_in_parts_is_a_run_like_others(photos, tmp_path):
    config = config_for(photos, micro_batch=5, loss="ProxyAnchorLoss", epochs=1)
    metrics = train(config, tmp_path / "run", quiet=True)
    assert metrics["epochs"] == 1 and train(config, tmp_path / "run", resume=True, quiet=True) == metrics
    model, _ = load_run(tmp_path / "run")  # as the network's own weights
    tracked = [value for name, value in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert tracked and all(value == tracked[0] and value % 4 == 0 for value in tracked)  # four parts in each batch
    with pytest.raises(ValueError, match="another configuration: micro_batch"):
        train(config_for(photos, loss="ProxyAnchorLoss", epochs=1), tmp_path / "run", resume=True, quiet=True)


def test_a_folder_in_use_is_left_alone(photos, tmp_path):
    config = config_for(photos, epochs=1)
    metrics = train(config, tmp_path / "run", quiet=True)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="--resume"):
        train(config, tmp_path / "run", quiet=True)
    with pytest.raises(ValueError, match="another configuration: .*learning_rate"):
        train(config_for(photos, epochs=1, learning_rate=0.5), tmp_path / "run", resume=True, quiet=True)
    assert train(config, tmp_path / "run", resume=True, quiet=True) == metrics  # finished: only said again
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_stops_early(photos, tmp_path):
    config = config_for(photos, epochs=50, patience=2, learning_rate=1e-12)
    metrics = train(config, tmp_path / "run", quiet=True)
    assert metrics["epochs"] == metrics["epoch"] + 3


def test_two_processes_train_one_network(photos, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(RUN + "from accelerate import PartialState\nassert PartialState().num_processes == 2\n")
    (tmp_path / "config.yaml").write_text(
        f"{{dataset: {photos}, image_size: 32, embedding_size: 16, num_classes: 6, per_class: 3, epochs: 2, precision: 'no'}}")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, script, tmp_path / "config.yaml", tmp_path / "run"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["epochs"] == 2 and 0 <= metrics["after"]["recall@1"] <= 1


RUN = """
import sys
from gradient_surgery.training import read_config, train
train(read_config(sys.argv[1]), sys.argv[2], resume=True, quiet=True)
"""


def start(config: Path, folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", RUN, str(config), str(folder)], env=os.environ | {"OMP_NUM_THREADS": "1"})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    last = torch.load(folder / "checkpoint" / "last.pt", weights_only=True)["model"]
    best = load_file(folder / "checkpoint" / "best.safetensors")
    return {f"last.{name}": value for name, value in last.items()} | {f"best.{name}": value for name, value in best.items()}


def test_killed_in_the_middle_and_resumed_it_ends_in_the_same_weights(photos, tmp_path):
    config = tmp_path / "config.yaml"
    settings = config_for(photos, epochs=12)
    config.write_text("\n".join(f"{key}: {json.dumps(getattr(settings, key))}" for key in settings.__dataclass_fields__))
    assert start(config, tmp_path / "whole").wait() == 0

    for epochs_before_the_kill in (1, 4):  # twice, in two different epochs of the same run
        run = start(config, tmp_path / "killed")
        last = tmp_path / "killed" / "checkpoint" / "last.pt"
        while run.poll() is None:
            if last.exists() and len(torch.load(last, weights_only=True)["history"]) >= epochs_before_the_kill:
                break
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (tmp_path / "killed" / "metrics.json").exists()
    assert start(config, tmp_path / "killed").wait() == 0

    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert whole.keys() == killed.keys() and all(torch.equal(whole[name], killed[name]) for name in whole)
    scores = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "killed")]
    assert scores[0]["after"] == scores[1]["after"]


def test_a_failed_write_keeps_the_last_checkpoint(photos, tmp_path, monkeypatch):
    config = config_for(photos)
    real, calls = torch.save, []

    def disk_full(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            Path(arguments[1]).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return real(*arguments, **options)

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="No space left"):
        train(config, tmp_path / "run", quiet=True)
    monkeypatch.undo()
    saved = torch.load(tmp_path / "run" / "checkpoint" / "last.pt", weights_only=True)
    assert len(saved["history"]) == 2
    assert train(config, tmp_path / "run", resume=True, quiet=True)["epochs"] == 4


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_on_a_gpu(photos, tmp_path, precision):
    metrics = train(config_for(photos, precision=precision), tmp_path / "run", quiet=True)
    assert metrics["device"].startswith("cuda")
