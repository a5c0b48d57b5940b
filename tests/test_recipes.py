"""Recipes: each can be read, says what it should, and builds; one is followed from end to end through the command line."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from making_sets import make_cub_of_emoji

from gradient_surgery.config import Config, key_and_value, read_config
from gradient_surgery.data.transforms import Augment
from gradient_surgery.losses import build_loss
from gradient_surgery.models import build_model
from gradient_surgery.optimisation import build_optimizer, build_schedule, can_compile
from gradient_surgery.training import CROPS, build_sampler, load_datasets

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
COMMAND = Path(sys.executable).with_name("gradient_surgery")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_what_it_should_and_fits_together(path):
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"gradient_surgery train --recipe recipes/{path.name}" in header
    assert all(f"# {word}: " in header for word in ("Cost", "Expected", "Source"))
    config = read_config(path)
    Augment(**config.augment)
    labels = torch.arange(400).repeat_interleave(4)
    batches = list(build_sampler(config, labels))
    assert all(len(batch) == config.num_classes * config.per_class for batch in batches)
    if config.crop != "none":
        boxes = CROPS[config.crop](torch.tensor([[375, 500]] * 3), torch.Generator(), **config.crop_options)
        assert boxes.shape == (3, 4) and config.stored_size >= config.image_size
    model = build_model(  # the weights need a hub or a file
        config.model, embedding_size=config.embedding_size, pooling=config.pooling,
        freeze_batch_norm=config.freeze_batch_norm, **config.backbone_options).eval()
    with torch.no_grad():
        embeddings = model(torch.randn(2, 3, config.image_size, config.image_size))
    assert embeddings.shape == (2, config.embedding_size)
    loss = build_loss(config.loss, (5, config.embedding_size), **config.loss_options)
    optimizer = build_optimizer(config, model, loss)
    build_schedule(config, optimizer, 100)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len([*model.parameters(), *loss.parameters()])


def test_every_benchmark_has_the_earlier_protocol():
    for name, batch, size in (("cub", 128, 64), ("cars", 128, 64), ("sop", 512, 512), ("in_shop", 512, 512)):
        config = read_config(ROOT / "recipes" / f"{name}_r50.yaml")
        assert (config.dataset, config.num_classes * config.per_class, config.embedding_size) == (name, batch, size)
        assert (config.optimizer, config.momentum, config.weight_decay, config.freeze_batch_norm) == ("sgd", 0, 0, False)


def test_the_emoji_recipe_is_the_default():
    assert read_config(ROOT / "recipes" / "emoji.yaml") == Config()


def test_the_emoji_recipe_expects_what_its_record_says():
    said = re.search(r"Expected: R@1 ([\d.]+) % on classes never seen, from ([\d.]+) % untrained \(seed 0;", (ROOT / "recipes" / "emoji.yaml").read_text())
    [record] = (json.loads(path.read_text()) for path in (ROOT / "records" / "quickstart").glob("45-0-GradientSurgery-*/record.json"))
    found = record["metrics"]
    assert said.groups() == (f"{100 * found['recall@1']:.1f}", f"{100 * found['untrained recall@1']:.1f}")


@pytest.mark.parametrize("text, message", [
    ("learning_rat: 1", "unknown key learning_rat"),
    ("epochs: 1.5", "epochs is 1.5; expected a value of kind int"),
    ("per_class: true", "per_class is True; expected a value of kind int"),
    ("weights: 3", "weights is 3; expected a value of kind str or none"),
    ("pooling: mean", "pooling is 'mean'; expected one of None, average"),
    ("warmup: 1", "warmup is 1.0; expected a share from 0, below 1"),
    ("stored_size: 0", "stored_size is 0; expected a number above 0"),
    ("- epochs", "holds list; expected lines"),
    ("learning_rate: fast", "learning_rate is 'fast'; expected a value of kind float"),
    ("milestones: [10, 20]", "milestones are [10, 20]; expected shares of the steps, between 0 and 1"),
    ("ks: [1, 2.5]", "ks are [1, 2.5]; expected whole numbers from 1"),
    ("ks: [0, 1]", "ks are [0, 1]; expected whole numbers from 1"),
    ("loss_options: {margin: 0.2", "recipe.yaml is no YAML: while parsing a flow mapping"),
])
def test_mistakes_in_a_recipe(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_config(tmp_path / "recipe.yaml")


def test_a_configuration_survives_the_disk(tmp_path):
    config = replace(Config(), cache="somewhere", milestones=[0.5], pooling="both", crop_options={"part": 0.5})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    assert read_config(tmp_path / "config.yaml") == config
    assert read_config(tmp_path / "config.yaml", seed=3) == replace(config, seed=3)
    assert read_config(weight_decay=1) == replace(Config(), weight_decay=1.0)


@pytest.mark.parametrize("changes, message", [(dict(schedule="cosine"), "schedule is 'cosine'"), (dict(epochs=0), "epochs is 0"), (dict(milestones=[2.0]), "milestones are")])
def test_a_configuration_made_in_python_is_checked_too(changes, message):
    for make in (Config, lambda **changes: replace(Config(), **changes)):
        with pytest.raises(ValueError, match=re.escape(message)):
            make(**changes)


@pytest.mark.parametrize("text, value", [
    ("1e-3", 0.001), ("-2E+3", -2000.0), (".5e1", 5.0), ("1.e2", 100.0), ("1.5e-2", 0.015), ("7", 7), ("1e", "1e"), ("e3", "e3"), ("1e-3s", "1e-3s"),
    ("{margin: 1e-2, names: [1e1]}", {"margin": 0.01, "names": [10.0]})])
def test_numbers_as_people_write_them(tmp_path, text, value):
    assert key_and_value(f"key={text}") == ("key", value)
    (tmp_path / "recipe.yaml").write_text(f"loss_options: {{of: {text}}}")
    assert read_config(tmp_path / "recipe.yaml").loss_options == {"of": value}


def test_schedules_and_groups():
    config = read_config(optimizer="sgd", schedule="step", milestones=[0.5, 0.75], decay=0.5, warmup=0.1, backbone_rate=0.1, loss_rate=10, learning_rate=1.0)
    model, loss = build_model(), build_loss("ProxyAnchorLoss", (4, 128))
    optimizer = build_optimizer(config, model, loss)
    schedule, rates = build_schedule(config, optimizer, 20), []
    for _ in range(20):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    head = [1 / 3, 2 / 3] + [1.0] * 8 + [0.5] * 5 + [0.25] * 5
    torch.testing.assert_close(torch.tensor(rates), torch.tensor([[0.1 * rate, rate, 10 * rate] for rate in head]))


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 20, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 0.99])
def test_one_cycle_has_any_number_of_steps(steps, warmup):
    model = build_model()
    optimizer = build_optimizer(config := read_config(warmup=warmup), model, torch.nn.Module())
    schedule = build_schedule(config, optimizer, steps)
    for step in range(steps):
        assert 0 <= optimizer.param_groups[0]["lr"] <= 1.0001 * config.learning_rate
        optimizer.step()
        schedule.step()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compile_is_tried():
    assert isinstance(can_compile(torch.device("cpu")), bool)


def run(*words: object, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run([COMMAND, *map(str, words)], cwd=folder, capture_output=True, text=True)


def test_from_end_to_end_on_emoji_as_birds(tmp_path):
    make_cub_of_emoji(tmp_path / "birds")
    words = ["--recipe", ROOT / "recipes" / "emoji_as_cub.yaml", "--root", "birds", "--cache", "cache", "--quiet"]
    with pytest.raises(ValueError, match="data check cub"):  # it is not the whole of CUB
        load_datasets(read_config(ROOT / "recipes" / "emoji_as_cub.yaml", root=str(tmp_path / "birds"), complete=True))
    first = run("train", *words, folder=tmp_path)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "runs" / "emoji_as_cub-GradientSurgery-0"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test_classes"] == 100 and metrics["after"]["recall@1"] > metrics["before"]["recall@1"] + 0.08
    measured = run("evaluate", folder, "--output", "scores.json", folder=tmp_path)
    assert measured.returncode == 0, measured.stderr
    assert json.loads((tmp_path / "scores.json").read_text()) == pytest.approx(metrics["after"], abs=1e-9)
