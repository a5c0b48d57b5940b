"""A run of training: what it writes, that it goes on after a kill, and that nothing is lost."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Subset
from tqdm import tqdm

from gradient_surgery import training
from gradient_surgery.evaluation import evaluate
from gradient_surgery.training import load_run, read_config, train

FILES = {"config.yaml", "classes.json", "checkpoint", "history.csv", "metrics.json", "curves.png", "gallery.png", "triplets.png"}


@pytest.fixture(autouse=True)
def quickly(request, monkeypatch):
    "Without the pictures, except where they are what is tested."
    if "teaches" not in request.node.name:
        monkeypatch.setattr(training, "draw", lambda *_: None)


def config_for(photos: Path, **changes):
    small = {"image_size": 32, "embedding_size": 16, "num_classes": 6, "per_class": 3, "epochs": 4}
    return read_config(dataset=str(photos), **(small | changes))


@pytest.mark.parametrize("loss", ["GradientSurgery", "SmoothAPLoss", "SoftTripleLoss"])
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


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_a_run_whose_classes_changed_does_not_go_on(photos, tmp_path, monkeypatch, change):
    images, folder = shutil.copytree(photos, tmp_path / "photos"), tmp_path / "run"
    config = config_for(images, loss="ProxyAnchorLoss")
    stop_after(monkeypatch, 1)
    with pytest.raises(InterruptedError):
        train(config, folder, quiet=True)
    names, data = json.loads((folder / "classes.json").read_text()), training.load_datasets(config)
    assert names == {"train": data.train.class_names, "validation": data.validation.class_names, "test": data.test.class_names}
    assert sorted(sum(names.values(), [])) == sorted(path.name for path in images.iterdir())
    if change == "added":
        shutil.copytree(images / "class00", images / "another")
    else:
        (images / "class00").rename(images / "other" if change == "renamed" else tmp_path / "away")
    with pytest.raises(ValueError, match="classes of the data are not those of the run .see .*classes.json.*start a new run"):
        train(config, folder, resume=True, quiet=True)
    with pytest.raises(ValueError, match="another configuration: dataset"):  # which is said first
        train(config_for(photos), folder, resume=True, quiet=True)


def test_an_older_run_that_does_not_name_its_classes_goes_on(photos, tmp_path, monkeypatch):
    config = config_for(photos, epochs=2)
    stop_after(monkeypatch, 1)
    with pytest.raises(InterruptedError):
        train(config, tmp_path / "run", quiet=True)
    (tmp_path / "run" / "classes.json").unlink()
    assert train(config, tmp_path / "run", resume=True, quiet=True)["epochs"] == 2
    assert (tmp_path / "run" / "classes.json").exists()


def test_a_run_whose_images_changed_does_not_go_on(photos, tmp_path, monkeypatch):
    images, config = shutil.copytree(photos, tmp_path / "photos"), config_for(tmp_path / "photos")
    stop_after(monkeypatch, 1)
    with pytest.raises(InterruptedError):
        train(config, tmp_path / "run", quiet=True)
    for folder in images.iterdir():
        for path in list(folder.iterdir()):
            shutil.copy(path, path.with_name(f"another-{path.name}"))
    with pytest.raises(ValueError, match="an epoch has 8 batches and had 4 when .*last.pt was saved: images were added or removed"):
        train(config, tmp_path / "run", resume=True, quiet=True)


def test_a_run_that_is_done_is_not_made_again_for_want_of_its_checkpoint(photos, tmp_path):
    train(config_for(photos, epochs=1), tmp_path / "run", quiet=True)
    (tmp_path / "run" / "checkpoint" / "last.pt").unlink()
    with pytest.raises(FileNotFoundError, match="a run that is done, but not its checkpoint/last.pt"):
        train(config_for(photos, epochs=2), tmp_path / "run", resume=True, quiet=True)
    assert load_run(tmp_path / "run")[1].epochs == 1


def test_what_a_killed_process_left_is_removed(photos, tmp_path):
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint" / ".4711.last.pt").write_bytes(bytes(9))
    train(config_for(photos, epochs=1), tmp_path / "run", resume=True, quiet=True)
    assert {path.name for path in (tmp_path / "run" / "checkpoint").iterdir()} == {"last.pt", "best.safetensors"}


def test_mistakes_are_told_before_anything_is_written(photos, tmp_path):
    with pytest.raises(TypeError, match="rotat"):
        train(config_for(photos, augment={"rotat": 3}), tmp_path / "run", quiet=True)
    with pytest.raises(FileNotFoundError, match="dataset is 'CUB'; expected emoji, cub, .* or the path of a folder"):
        train(config_for("CUB"), tmp_path / "run", quiet=True)
    for folder, cache in ((photos / "runs" / "mine", None), (tmp_path / "run", str(photos / "cache"))):
        with pytest.raises(ValueError, match="inside the data set .*, where it would be taken for a class"):
            train(config_for(photos, cache=cache), folder, quiet=True)
    assert not (tmp_path / "run").exists() and not (photos / "runs").exists()


def test_a_scale_that_only_falls_ends_the_run():
    scaler = SimpleNamespace(get_scale=lambda: scale)
    state = SimpleNamespace(config=read_config(), accelerator=SimpleNamespace(scaler=scaler))
    for scale, said in ((1.0, None), (2.0**-20, "however small fp16 scales it")):
        found = training.problem(state, 0.5)
        assert found is said is None or said in found


def test_two_runs_in_one_process_may_have_two_precisions(photos, tmp_path):
    for precision in ("bf16", "no"):
        train(config_for(photos, epochs=1, precision=precision), tmp_path / precision, quiet=True)


@pytest.mark.parametrize("changes", [dict(crop="random"), dict(image_size=96)])
def test_emoji_are_what_they_are(changes):
    with pytest.raises(ValueError, match="the emoji are 64 pixels and are not cropped: expected 'none' and 64"):
        training.load_datasets(read_config(**changes))


def test_half_of_the_classes_are_the_test(photos):
    with pytest.raises(ValueError, match="validation is 0.5; expected a share below 0.5"):
        training.load_datasets(config_for(photos, validation=0.5))


def test_a_folder_without_validation(photos, tmp_path):
    config = config_for(photos, epochs=2, validation=0)
    metrics = train(config, tmp_path / "run", quiet=True)
    data, usual = (training.load_datasets(each) for each in (config, config_for(photos)))
    assert data.validation is None and usual.validation and metrics["epoch"] == metrics["epochs"] - 1
    assert len(data.train.class_names) == len(usual.train.class_names) + len(usual.validation.class_names)


def test_stops_early(photos, tmp_path):
    config = config_for(photos, epochs=50, patience=2, learning_rate=1e-12)
    metrics = train(config, tmp_path / "run", quiet=True)
    assert metrics["epochs"] == metrics["epoch"] + 3


# Nothing that depends on the number of processes: no chance in augmentation, no statistics of a part of a batch.
SAME = {
    "precision": "no", "freeze_batch_norm": True, "new_classes": False, "epochs": 3, "checkpoint_every": 1,
    "augment": dict.fromkeys(("rotate", "shift", "brightness", "contrast", "saturation", "hue", "greyscale"), 0.0) | {"scale": 1.0},
}


@pytest.fixture
def in_double_precision():
    "So that sums in another order differ in the fifteenth digit, and no two neighbours change places."
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def in_two_processes(config, folder: Path, script: str) -> None:
    (folder.parent / "script.py").write_text(script)
    (folder.parent / "config.yaml").write_text(json.dumps(asdict(config)))  # JSON is YAML
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    words = [*launch, folder.parent / "script.py", folder.parent / "config.yaml", folder]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


# Each process writes down how many images it embedded, of how many, and the embeddings that it got in the end.
SHARING = """
import json, os, sys, torch
from gradient_surgery import training
from gradient_surgery.training import read_config, train

torch.set_default_dtype(torch.float64)
counts, real = [], training.embed

def embed(model, dataset, **options):
    seen = []
    hook = model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    embed.last = real(model, dataset, **options)
    hook.remove()
    counts.append([sum(seen), len(dataset)])
    return embed.last

training.embed = embed
train(read_config(sys.argv[1]), sys.argv[2], resume=True, quiet=True)
torch.save([counts, embed.last], f"{sys.argv[2]}/../embedded{os.environ['RANK']}.pt")
"""


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="needs two GPUs, or none")
def test_two_processes_learn_what_one_learns(photos, tmp_path, monkeypatch, in_double_precision):
    config = config_for(photos, loss="ProxyAnchorLoss", sampler="padded", **SAME, optimizer="sgd", learning_rate=0.1)  # AdamW would not see a factor
    alone = train(config, tmp_path / "alone", quiet=True)
    stop_after(monkeypatch, 2)
    with pytest.raises(InterruptedError):
        train(config, tmp_path / "resumed", quiet=True)  # after two steps of one process
    in_two_processes(config, tmp_path / "started", SHARING + "train(read_config(sys.argv[1]), sys.argv[2] + '/../resumed', resume=True, quiet=True)\n")
    assert {path.name for path in (tmp_path / "started").iterdir()} == FILES
    losses, expected = [row["loss"] for row in history(tmp_path / "alone")], weights(tmp_path / "alone")
    assert losses[0] - losses[-1] > 1  # something was learnt
    for name in ("started", "resumed"):
        together = json.loads((tmp_path / name / "metrics.json").read_text())
        assert (alone["processes"], together["processes"]) == (1, 2)
        assert [row["loss"] for row in history(tmp_path / name)] == pytest.approx(losses, abs=1e-9)
        assert [row["recall@1"] for row in history(tmp_path / name)] == [row["recall@1"] for row in history(tmp_path / "alone")]
        for key, value in weights(tmp_path / name).items():
            torch.testing.assert_close(value, expected[key], atol=1e-9, rtol=0)
        for when in ("before", "after"):
            assert together[when] == pytest.approx(alone[when], abs=1e-5)
    assert alone["after"]["recall@1"] != alone["before"]["recall@1"]
    model, _ = load_run(tmp_path / "started")
    embeddings = training.embed(model, training.load_datasets(config).test)
    for rank in (0, 1):  # half of the validation images after each epoch, and of the test images before and after
        counts, found = torch.load(tmp_path / f"embedded{rank}.pt")
        assert len(counts) == 3 + 2 and all(2 * mine == images for mine, images in counts)
        torch.testing.assert_close(found, embeddings, atol=1e-6, rtol=0)


def test_shares_of_images_are_put_together_in_order(tmp_path):
    "Of an odd number, by processes whose batch statistics differ: those of the first count."
    (tmp_path / "script.py").write_text(SHARES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, tmp_path / "script.py", tmp_path], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert torch.equal(found[0]["together"], found[1]["together"]) and not torch.allclose(found[0]["alone"], found[1]["alone"], atol=0.1)
    torch.testing.assert_close(found[0]["together"], found[0]["alone"], atol=1e-5, rtol=0)
    assert [part["seen"] for part in found] == [18, 19] and [part["few"].shape for part in found] == [(1, 8), (1, 8)]


SHARES = """
import os, sys, torch
from accelerate import Accelerator
from torch.utils.data import Subset, TensorDataset
from gradient_surgery.models import build_model
from gradient_surgery.training import embed, leave_processes

rank, accelerator = int(os.environ["RANK"]), Accelerator()
torch.manual_seed(0)
model, images = build_model("small", embedding_size=8), torch.randint(256, (37, 3, 16, 16), dtype=torch.uint8)
data, seen = TensorDataset(images, torch.zeros(37)), []
for name, buffer in model.named_buffers():
    if name.endswith("running_mean"):
        buffer.fill_(rank)
alone = embed(model, data)
hook = model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
together = embed(model, data, accelerator=accelerator)
few = embed(model, Subset(data, [0]), accelerator=accelerator)
torch.save({"alone": alone, "together": together, "seen": sum(seen) - 1, "few": few}, f"{sys.argv[1]}/{rank}.pt")
leave_processes()
"""


def history(folder: Path) -> list[dict]:
    return torch.load(folder / "checkpoint" / "last.pt", weights_only=True)["history"]


def stop_after(monkeypatch, saves: int) -> None:
    "Let the run end after it has written so many checkpoints."
    real, count = training.save_state, iter(range(saves - 1))

    def save(*arguments):
        real(*arguments)
        if next(count, None) is None:
            monkeypatch.setattr(training, "save_state", real)
            raise InterruptedError

    monkeypatch.setattr(training, "save_state", save)


RUN = """
import sys
from gradient_surgery.training import read_config, train
train(read_config(sys.argv[1]), sys.argv[2], resume=True, quiet=True)
"""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    last = torch.load(folder / "checkpoint" / "last.pt", weights_only=True, map_location="cpu")["model"]
    best = load_file(folder / "checkpoint" / "best.safetensors")
    return {f"last.{name}": value for name, value in last.items()} | {f"best.{name}": value for name, value in best.items()}


def assert_same(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert [row["loss"] for row in history(one)] == [row["loss"] for row in history(other)]
    scores = [json.loads((folder / "metrics.json").read_text())["after"] for folder in (one, other)]
    assert scores[0] == scores[1]


# One process that has loaded everything starts the runs, so that a run can be killed as soon as it lives.
KILLER = """
import json, os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from gradient_surgery import training
from gradient_surgery.training import read_config, train

training.draw = lambda *_: None  # seconds that are not what is tested
config, folder, kills = read_config(sys.argv[1]), sys.argv[2], int(sys.argv[3])
choose, steps, last, longest = random.Random(0), [], folder + "/checkpoint/last.pt", None
while True:
    child = os.fork()
    if not child:
        train(config, folder, resume=True, quiet=True)
        os._exit(0)
    if len(steps) < kills:
        start = time.perf_counter()
        if longest:
            time.sleep(choose.uniform(0, longest))
        while not longest and not os.path.exists(last):  # how long is it, on this machine, to the first step?
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        longest = longest or 3 * (time.perf_counter() - start)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        assert os.WEXITSTATUS(status) == 0 and len(steps) == kills, (status, steps)
        break
    saved = torch.load(last, weights_only=True)
    steps.append([len(saved["history"]), saved["step"]])
print(json.dumps(steps))
"""


def test_killed_twenty_times_it_ends_in_the_same_weights(photos, tmp_path):
    config = config_for(photos, epochs=30, checkpoint_every=1, patience=30, image_size=16, loss="ProxyAnchorLoss")
    (tmp_path / "config.yaml").write_text(json.dumps(asdict(config)))
    words = [sys.executable, "-c", KILLER, tmp_path / "config.yaml"]
    runs = {}
    for name, kills in (("whole", 0), ("killed", 20)):
        done = subprocess.run(  # a process that uses a GPU cannot be forked
            [*words, tmp_path / name, str(kills)], capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
        assert done.returncode == 0, done.stderr[-3000:]
        runs[name] = json.loads(done.stdout)
    assert len(runs["killed"]) == 20 and runs["killed"] == sorted(runs["killed"])
    assert len({epoch for epoch, _ in runs["killed"]}) > 2 and any(step for _, step in runs["killed"])  # also within epochs
    assert_same(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("changes", [
    {"accumulate": 2, "checkpoint_every": 1, "workers": 1},
    {"model": "vit_tiny_patch16_224", "backbone_options": {"img_size": 32, "proj_drop_rate": 0.2}, "checkpoint_every": 3},
], ids=["accumulated", "dropout"])
def test_stopped_within_an_epoch_it_ends_in_the_same_weights(photos, tmp_path, monkeypatch, changes):
    config = config_for(photos, epochs=2, precision="no", **changes)
    train(config, tmp_path / "whole", quiet=True)
    stop_after(monkeypatch, 1)
    with pytest.raises(InterruptedError):
        train(config, tmp_path / "stopped", quiet=True)
    saved = torch.load(tmp_path / "stopped" / "checkpoint" / "last.pt", weights_only=True)
    assert not saved["history"] and saved["step"] == len(saved["values"]) == changes["checkpoint_every"] * changes.get("accumulate", 1)
    train(config, tmp_path / "stopped", resume=True, quiet=True)
    assert_same(tmp_path / "whole", tmp_path / "stopped")


def test_an_epoch_lasts_as_long_as_both_its_parts(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=itertools.count().__next__))  # a second each time it is asked
    config = config_for(photos, epochs=1, checkpoint_every=1)
    stop_after(monkeypatch, 2)
    with pytest.raises(InterruptedError):
        train(config, tmp_path / "run", quiet=True)
    last = tmp_path / "run" / "checkpoint" / "last.pt"
    before = torch.load(last, weights_only=True)["seconds"]
    train(config, tmp_path / "run", resume=True, quiet=True)
    assert before == 2 and history(tmp_path / "run")[0]["seconds"] == before + 2  # it has a checkpoint after three steps of four, and an end


def test_the_history_has_the_rate_of_the_head(photos, tmp_path):
    config = config_for(photos, epochs=2, schedule="step", warmup=0.0, milestones=[0.5], backbone_rate=0.5, learning_rate=0.004)
    train(config, tmp_path / "run", quiet=True)
    assert [row["learning_rate"] for row in history(tmp_path / "run")] == pytest.approx([0.004, 0.0004])


def test_it_goes_on_in_another_place(photos, tmp_path):
    config = config_for(photos, epochs=1)
    metrics = train(config, tmp_path / "run", quiet=True)
    assert train(replace(config, workers=2, checkpoint_every=7, cache=str(tmp_path)), tmp_path / "run", resume=True) == metrics


@pytest.mark.parametrize("room, said", [
    (8_000_000, "last.pt could not be written in epoch 1, step 0 (File too large). The checkpoint before is whole"),
    (1_000_000, "best.safetensors (File too large); a file that was there before is whole"),
], ids=["for weights, not for a checkpoint", "for neither"])
def test_a_full_disk_keeps_the_last_checkpoint(photos, tmp_path, monkeypatch, room, said):
    config = config_for(photos, checkpoint_every=2)
    train(config, tmp_path / "whole", quiet=True)
    stop_after(monkeypatch, 1)  # in the first epoch, whose weights are the best so far
    with pytest.raises(InterruptedError):
        train(config, tmp_path / "run", quiet=True)
    before = (tmp_path / "run" / "checkpoint" / "last.pt").read_bytes()
    (tmp_path / "config.yaml").write_text(json.dumps(asdict(config)))
    # The system refuses files longer than the limit, as a full disk does.
    full = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({room},) * 2)\n" + RUN
    done = subprocess.run(
        [sys.executable, "-c", full, tmp_path / "config.yaml", tmp_path / "run"], capture_output=True, text=True)
    assert done.returncode == 1 and "OSError" in done.stderr
    assert said in done.stderr
    assert (tmp_path / "run" / "checkpoint" / "last.pt").read_bytes() == before
    assert not [path.name for path in (tmp_path / "run" / "checkpoint").iterdir() if path.name.startswith(".")]
    train(config, tmp_path / "run", resume=True, quiet=True)
    assert_same(tmp_path / "whole", tmp_path / "run")


class Poisoned(torch.nn.Module):
    "A loss that after some batches gives another value, or another gradient."
    def __init__(self, value: float, gradient: float, after: int):
        super().__init__()
        self.value, self.gradient, self.after = value, gradient, after

    def forward(self, embeddings, labels):
        self.after -= 1
        if self.after >= 0:
            return embeddings.square().mean()
        if self.gradient:
            embeddings.register_hook(lambda gradient: gradient * self.gradient)
        return embeddings.mean() + self.value


@pytest.mark.parametrize("value, gradient, said", [
    (float("nan"), 0, "the loss is nan"), (3e7, 0, "the loss is 3e+07"), (0.0, float("nan"), "the gradient is not finite"),
])
def test_a_run_that_diverges_stops_and_says_where(photos, tmp_path, monkeypatch, value, gradient, said):
    monkeypatch.setattr(training, "build_loss", lambda *_, **__: Poisoned(value, gradient, after=6))  # epochs have 4 batches
    with pytest.raises(FloatingPointError, match="epoch 1, step 2: ") as caught:
        train(config_for(photos, checkpoint_every=1), tmp_path / "run", quiet=True)
    message, last = str(caught.value), tmp_path / "run" / "checkpoint" / "last.pt"
    assert said in message and f"The last good checkpoint is {last}" in message
    saved = torch.load(last, weights_only=True)
    assert (len(saved["history"]), saved["step"]) == (1, 2)
    assert all(weights.isfinite().all() for weights in saved["model"].values())
    header, *paths = (tmp_path / "run" / "stopped.txt").read_text().splitlines()
    assert said in header and len(paths) == 18 and all(Path(path).is_file() for path in paths) and paths[0] in message


@pytest.mark.parametrize("last", [3, 8])
def test_weights_that_are_not_finite_are_not_saved(photos, tmp_path, monkeypatch, last):
    real, count = training.step, itertools.count(1)

    def step(state, *arguments):
        with torch.no_grad():
            state.network.head.bias.fill_(float("inf") if next(count) == last else 0)
        real(state, *arguments)

    monkeypatch.setattr(training, "step", step)
    epoch, steps = divmod(last - 1, 4)  # epochs have 4 batches
    with pytest.raises(FloatingPointError, match=f"epoch {epoch}, step {steps + 1}: the weights are not finite any more. The last good"):
        train(config_for(photos, checkpoint_every=1), tmp_path / "run", quiet=True)
    saved = torch.load(tmp_path / "run" / "checkpoint" / "last.pt", weights_only=True)
    assert (len(saved["history"]), saved["step"]) == (epoch, steps) and saved["model"]["head.bias"].isfinite().all()
    if epoch:
        assert all(part.isfinite().all() for part in load_run(tmp_path / "run")[0].parameters())


@pytest.mark.parametrize("crop, options, said", [("random", {"part": -1}, "part"), ("none", {}, "one class")])
def test_a_mistake_is_not_taken_for_divergence(photos, tmp_path, monkeypatch, crop, options, said):
    if crop == "none":
        monkeypatch.setattr(training, "build_sampler", lambda *_: OneClass())
    config = config_for(photos, crop=crop, crop_options=options, cache=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=said):
        train(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "stopped.txt").exists()


class OneClass(list):
    "A sampler of one batch, whose images are all of one class."
    def __init__(self):
        super().__init__([[0, 1, 2]])

    def set_epoch(self, epoch):
        pass


@pytest.mark.parametrize("number, last", [(2, 2), (3, 1)])  # batches of an epoch, and of its last step
def test_accumulated_gradients_are_the_mean(photos, number, last):
    config = config_for(photos, accumulate=2, optimizer="sgd", learning_rate=1.0, schedule="step", warmup=0.0, weight_decay=0.0, precision="no", **{
        name: SAME[name] for name in ("freeze_batch_norm", "new_classes", "augment")})
    data = training.load_datasets(config).train
    batches = list(training.build_sampler(config, data.labels))[:number]
    state = training.State(config, number, training.start_processes(config), 30)
    state.step = number - last  # the batches before made a step
    before = [p.detach().clone() for p in state.network.parameters()]
    for batch in batches[-last:]:  # the gradients, by hand
        images, labels = (each.to(before[0].device) for each in next(training.images_of(data, [batch])))
        (training.loss_of(state, images, labels, training.Augment(**config.augment)) / last).backward()
    expected = [p.grad.clone() for p in state.network.parameters()]
    state.optimizer.zero_grad()
    training.train_epoch(state, data, batches, training.Augment(**config.augment), tqdm(disable=True))
    for parameter, start, gradient in zip(state.network.parameters(), before, expected):
        torch.testing.assert_close(parameter.detach(), start - gradient, atol=1e-6, rtol=1e-4)


def test_without_validation_classes_the_last_epoch_counts(photos, tmp_path, monkeypatch):
    whole = training.load_datasets
    monkeypatch.setattr(training, "load_datasets", lambda config, quiet: whole(config)._replace(validation=None))
    metrics = train(config_for(photos, patience=0), tmp_path / "run", quiet=True)
    assert (metrics["selected_on"], metrics["epoch"], metrics["epochs"]) == ("the last epoch", 3, 4)
    found = weights(tmp_path / "run")
    assert all(torch.equal(found[name], found[name.replace("best", "last")]) for name in found if name.startswith("best"))


def test_queries_search_the_gallery(photos, tmp_path, monkeypatch):
    whole = training.load_datasets(config_for(photos))
    queries, gallery = (Subset(whole.test, range(start, len(whole.test), 2)) for start in (0, 1))
    for part in (queries, gallery):
        part.labels = whole.test.labels[part.indices]
        part.class_names, part.paths = whole.test.class_names, [whole.test.paths[i] for i in part.indices]
    data = whole._replace(test=queries, gallery=gallery)
    monkeypatch.setattr(training, "load_datasets", lambda config, quiet: data)
    config = config_for(photos, epochs=1, ks=[1, 10])
    metrics = train(config, tmp_path / "run", quiet=True)
    model, _ = load_run(tmp_path / "run")
    expected = evaluate(
        training.embed(model, queries), queries.labels, gallery=training.embed(model, gallery), gallery_labels=gallery.labels, ks=[1, 10])
    assert metrics["after"] == pytest.approx(expected, abs=1e-6) and set(expected) == {"recall@1", "recall@10", "r_precision", "map@r", "nmi"}


@pytest.mark.parametrize("crop, options", [("random", {"part": 0.8}), ("resized", {"area": [0.3, 1.0]})])
def test_crops_come_from_the_cache(photos, tmp_path, crop, options):
    config = config_for(photos, epochs=1, crop=crop, crop_options=options, stored_size=48, cache=str(tmp_path / "cache"))
    metrics = train(config, tmp_path / "run", quiet=True)
    assert metrics["epochs"] == 1
    sizes = sorted(path.name.split("-")[:2] for path in (tmp_path / "cache").glob("*.safetensors"))
    assert sizes == [["middle", "32"], ["middle", "32"], ["whole", "48"]]
    with pytest.raises(ValueError, match="crop is .* needs cache"):
        train(replace(config, cache=None), tmp_path / "other", quiet=True)


def test_compiled_or_not_it_trains(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no compiler")))
    with pytest.warns(UserWarning, match="no compiler.*runs without"):
        train(config_for(photos, epochs=1, compile=True), tmp_path / "run", quiet=True)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_on_a_gpu(photos, tmp_path, precision):
    metrics = train(config_for(photos, precision=precision), tmp_path / "run", quiet=True)
    assert metrics["device"].startswith("cuda")
