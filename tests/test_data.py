"""The data: the bundled emoji and how they are built, folders, batches, and augmentation; above all what they refuse."""

import csv
import hashlib
import importlib.util
import io
import json
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gradient_surgery.data.emoji import SPLITS, Emoji, decode, emoji_archive, emoji_index, emoji_licences
from gradient_surgery.data.folder import FolderOfClasses, Numbered, SomeClasses, folder_splits, read_image, split_by_class
from gradient_surgery.data.sampling import BalancedSampler, Deck, GroupSampler, OnceSampler, PaddedSampler
from gradient_surgery.data.transforms import (
    IMAGENET_MEAN, IMAGENET_STD, Augment, as_new_classes, centre_boxes, class_symmetries, crop, crop_by_products, erase, mirror_boxes, normalise,
    random_resized_boxes, random_square_boxes, symmetry_maps, turned)

# --- emoji ---


@pytest.fixture(scope="module")
def index() -> list[dict]:
    return emoji_index()


def test_index_and_images_match(index: list[dict]) -> None:
    with emoji_archive() as archive:
        names = archive.namelist()
        assert archive.testzip() is None
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    assert Counter(names) == Counter([row["file"] for row in index] + ["index.csv", "LICENCES.md"])


def test_index_is_consistent(index: list[dict]) -> None:
    of_emoji = {column: {} for column in ("label", "group", "subgroup", "split")}
    for row in index:
        assert row["file"] == f"images/{row['set']}/{row['codepoints']}.webp"
        for column, values in of_emoji.items():
            assert values.setdefault(row["codepoints"], row[column]) == row[column]
    assert len(set(of_emoji["label"].values())) == len(of_emoji["label"])
    assert len({(row["set"], row["codepoints"]) for row in index}) == len(index)
    assert min(Counter(row["codepoints"] for row in index).values()) >= 6


def test_splits_share_no_emoji_and_no_subgroup(index: list[dict]) -> None:
    assert {row["split"] for row in index} == set(SPLITS)
    for column in ("codepoints", "subgroup"):
        assert len({(row[column], row["split"]) for row in index}) == len({row[column] for row in index})


def test_splits_have_their_shares(index: list[dict]) -> None:
    emoji = {row["codepoints"]: row["split"] for row in index}
    count = Counter(emoji.values())
    for split, share in {"train": 0.4, "validation": 0.1, "test": 0.5}.items():
        assert abs(count[split] / len(emoji) - share) < 0.02


@pytest.mark.parametrize("split", SPLITS)
def test_emoji(split: str, index: list[dict]) -> None:
    data, rows = Emoji(split), [row for row in index if row["split"] == split]
    assert len(data) == len(data.images) == len(data.labels) == len(data.paths) == len(rows)
    assert data.images.shape[1:] == (3, 64, 64) and data.images.dtype == torch.uint8
    assert data.labels.dtype == torch.int64 and data.labels.unique().equal(torch.arange(len(data.class_names)))
    label_of = {f"{row['set']}/{row['codepoints']}": row["label"] for row in rows}
    for i in range(0, len(data), 97):
        image, label = data[i]
        assert data.class_names[label] == label_of[data.paths[i]]
        assert image.equal(decode([f"images/{data.paths[i]}.webp"])[0])
    darkest, brightest = data.images.flatten(1).aminmax(dim=1)
    assert (brightest.int() - darkest.int() >= 16).all(), "a blank image"


def test_licences_name_every_set(index: list[dict]) -> None:
    text = emoji_licences()
    for name in {row["set"] for row in index}:
        assert f"| `{name}` |" in text
    beside = Path(importlib.util.find_spec("gradient_surgery.data.emoji").origin).with_name("emoji_licences.md")
    assert beside.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("split", ["val", "Train", "", None, 0])
def test_unknown_split(split: object) -> None:
    with pytest.raises(ValueError, match=r"split is .*train, validation, test"):
        Emoji(split)


# --- how the emoji are built ---


@pytest.fixture(scope="module")
def build(root: Path):
    pytest.importorskip("resvg_py", reason="the build script needs resvg_py: pip install 'gradient_surgery[data]'")
    path = root / "scripts" / "build_emoji.py"
    if not path.exists():
        pytest.skip("scripts/build_emoji.py comes with the repository only")
    spec = importlib.util.spec_from_file_location("build_emoji", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def icon(**changes) -> dict:
    left_red = '<rect width="1" height="1" fill="#f00"/>' # in a box two wide and one high
    return {"body": left_red, "left": 0, "top": 0, "width": 2, "height": 1, "rotate": 0, "hFlip": False, "vFlip": False} | changes


RED, WHITE = [255, 0, 0], [255, 255, 255]


@pytest.mark.parametrize("changes, red_at", [({}, (32, 8)), ({"hFlip": True}, (32, 56)), ({"rotate": 1}, (8, 32)), ({"rotate": 2}, (32, 56)), ({"rotate": 3}, (56, 32))])
def test_icons_are_padded_and_turned(build, changes: dict, red_at: tuple[int, int]) -> None:
    pixels = build.render(icon(**changes))
    assert pixels.shape == (64, 64, 3)
    places = {(32, 8), (32, 56), (8, 32), (56, 32)}
    assert {place: pixels[place].tolist() for place in places} == {place: RED if place == red_at else WHITE for place in places}


def test_aliases_add_up(build) -> None:
    icons = {"width": 2, "height": 1, "icons": {"a": {"body": icon()["body"]}},
             "aliases": {"b": {"parent": "a", "hFlip": True, "rotate": 3}, "c": {"parent": "b", "hFlip": True, "rotate": 2}}}
    assert build.resolve(icons, "b") == icon(hFlip=True, rotate=3)
    assert build.resolve(icons, "c") == icon(rotate=1)


def test_copies_are_dropped(build) -> None:
    rows = [{"file": name, "codepoints": name[0]} for name in ("a1", "a2", "a3", "b1", "b2")]
    shade = {"a1": 0, "a2": 0, "a3": 1, "b1": 1, "b2": 2}
    kept, report = build.drop_copies(rows, {name: np.full((2, 2, 3), value, np.uint8) for name, value in shade.items()})
    assert [row["file"] for row in kept] == ["a1", "b2"]
    assert report == {"copy within an emoji": 1, "shown by two emoji": 2}


def test_split_is_the_rules(build, index: list[dict]) -> None:
    assert {row["subgroup"]: row["split"] for row in index} == build.split_subgroups(index)


def test_zip_is_deterministic(build, index: list[dict]) -> None:
    files = {"b": b"2", "a": b"1"}
    assert build.pack(files) == build.pack(files)
    with emoji_archive() as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
        assert build.pack(contents) == archive.fp.getvalue()
    assert build.table(index) == contents["index.csv"] and build.licences(index) == contents["LICENCES.md"].decode()


def test_build(build, index: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "A build of a few emoji gives the images, the rows and the licences that are in the package."
    if missing := [source.tarball for source in build.SOURCES.values() if not (build.CACHE / source.tarball).exists()]:
        pytest.skip(f"needs npm packages in {build.CACHE.name}, fetched by scripts/build_emoji.py; missing: {', '.join(missing)}")
    few = sorted({row["codepoints"] for row in index})[::100]
    everything = build.read_matches()
    monkeypatch.setattr(build, "read_matches", lambda: [row for row in everything if row["codepoints"] in few])
    rows, _ = build.build(build.CACHE, tmp_path)
    expected = {row["file"]: row for row in index if row["codepoints"] in few}
    assert {row["file"]: row | {"split": ""} for row in rows} == {name: row | {"split": ""} for name, row in expected.items()}
    with zipfile.ZipFile(tmp_path / "emoji.zip") as built, emoji_archive() as packed:
        for name in expected:
            ours, theirs = (np.asarray(Image.open(io.BytesIO(archive.read(name)))) for archive in (built, packed))
            assert (ours == theirs).all()
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_missing_packages_are_named(build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=r"lacks iconify-json-noto-.*install npm"):
        build.fetch(tmp_path / "empty")


# --- folders ---


def fill(root: Path, **classes: int) -> Path:
    "Folders of small images, each of its own colour."
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            colour = tuple(hashlib.sha256(f"{name}{i}".encode()).digest()[:3])
            Image.new("RGB", (12, 8), colour).save(root / name / f"{i}.png")
    return root


def test_folder(tmp_path: Path) -> None:
    fill(tmp_path, b=2, a=3)
    (tmp_path / "b" / "deep").mkdir()
    Image.new("RGB", (5, 5), "red").save(tmp_path / "b" / "deep" / "x.JPG", "JPEG")
    for passed_over in ("notes.txt", "b/notes.txt", "b/.hidden.png", ".hidden/x.png"):
        (tmp_path / passed_over).parent.mkdir(exist_ok=True)
        (tmp_path / passed_over).write_text("no image")
    data = FolderOfClasses(tmp_path, size=4)
    assert data.class_names == ["a", "b"] and data.labels.tolist() == [0, 0, 0, 1, 1, 1] and data.labels.dtype == torch.int64
    assert [Path(path).relative_to(tmp_path).as_posix() for path in data.paths] == ["a/0.png", "a/1.png", "a/2.png", "b/0.png", "b/1.png", "b/deep/x.JPG"]
    image, label = data[4]
    assert image.shape == (3, 4, 4) and image.dtype == torch.uint8 and (label, type(label)) == (1, int)
    assert image[:, 0, 0].tolist() == list(hashlib.sha256(b"b1").digest()[:3])


@pytest.mark.parametrize("mode, colour, expected", [
    ("L", 90, [90, 90, 90]),
    ("1", 1, [255, 255, 255]),
    ("P", 0, [0, 0, 0]),
    ("CMYK", (0, 255, 255, 0), [255, 0, 0]),
    ("RGBA", (255, 0, 0, 0), [255, 255, 255]),
    ("RGBA", (255, 0, 0, 255), [255, 0, 0]),
    ("LA", (0, 0), [255, 255, 255]),
    ("I;16", 25700, [100, 100, 100]),
])
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str, colour: object, expected: list[int]) -> None:
    path = tmp_path / "image.tif"
    Image.new(mode, (6, 6), colour).save(path)
    assert read_image(path, size=3)[:, 1, 1].tolist() == expected


def test_numbers_of_unknown_range_are_no_image(tmp_path: Path) -> None:
    Image.new("F", (6, 6), 0.5).save(tmp_path / "image.tif")
    with pytest.raises(ValueError, match="image.tif is not an image that can be read .its pixels are floating-point numbers"):
        read_image(tmp_path / "image.tif", size=3)


def test_transparent_palette_is_on_white(tmp_path: Path) -> None:
    Image.new("P", (6, 6), 0).save(tmp_path / "image.gif", transparency=0)
    assert (read_image(tmp_path / "image.gif", size=3) == 255).all()


def test_shorter_side_then_middle(tmp_path: Path) -> None:
    tall = Image.new("RGB", (10, 40), "red")
    tall.paste("blue", (0, 10, 10, 30))
    tall.save(tmp_path / "tall.png")
    assert (read_image(tmp_path / "tall.png", size=10) == torch.tensor([0, 0, 255]).view(3, 1, 1)).all()


def test_images_are_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), "red")
    image.paste("blue", (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 3 # upside down
    image.save(tmp_path / "image.png", exif=exif)
    assert read_image(tmp_path / "image.png", size=8)[:, 0, 0].tolist() == [255, 0, 0]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is missing; expected a folder"):
        FolderOfClasses(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="file is a file; expected a folder"):
        folder_splits(tmp_path / "file")


@pytest.mark.parametrize("classes, message", [
    ({}, "has 0 subfolders; expected at least two"),
    ({"a": 2}, "has 1 subfolders; expected at least two"),
    ({"a": 2, "b": 0, "c": 0}, "classes without an image: b, c; add images"),
])
def test_folders_without_classes(tmp_path: Path, classes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FolderOfClasses(fill(tmp_path, **classes))


@pytest.mark.parametrize("size", [0, -1, 2.5, "64", None])
def test_bad_size(tmp_path: Path, size: object) -> None:
    with pytest.raises(ValueError, match="size is .*; expected a whole number of pixels"):
        FolderOfClasses(fill(tmp_path, a=1, b=1), size=size)


def png_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"no image", png_bytes()[:200]], ids=["empty", "text", "cut off"])
def test_unreadable_image_is_named(tmp_path: Path, content: bytes) -> None:
    data_folder = fill(tmp_path, a=1, b=1)
    (data_folder / "b" / "broken.png").write_bytes(content)
    data = FolderOfClasses(data_folder, size=4)
    with pytest.raises(ValueError, match=r"b.broken\.png is not an image that can be read"):
        data[2]


def test_vanished_image_is_named(tmp_path: Path) -> None:
    data = FolderOfClasses(fill(tmp_path, a=1, b=1))
    Path(data.paths[1]).unlink()
    with pytest.raises(ValueError, match=r"b.0\.png is not an image that can be read"):
        data[1]


class Classes:
    "A data set of n classes with two images each; image i is the number i."

    def __init__(self, n: int):
        self.labels = torch.arange(2 * n) % n
        self.class_names = [f"class {label}" for label in range(n)]
        self.paths = [f"image {i}" for i in range(2 * n)]

    def __getitem__(self, i: int) -> tuple[int, int]:
        return i, int(self.labels[i])


@given(n=st.integers(20, 60), seed=st.integers(0, 99))
def test_split_by_class(n: int, seed: int) -> None:
    data = Classes(n)
    parts = split_by_class(data, seed=seed)
    assert sorted(name for part in parts for name in part.class_names) == sorted(data.class_names)
    assert sorted(path for part in parts for path in part.paths) == sorted(data.paths)
    for part, share in zip(parts, (0.4, 0.1, 0.5)):
        assert abs(len(part.class_names) - share * n) <= 1
        assert part.labels.unique().equal(torch.arange(len(part.class_names)))
        for i in range(len(part)):
            image, label = part[i]
            assert label == part.labels[i] and part.paths[i] == f"image {image}"
            assert part.class_names[label] == data.class_names[data.labels[image]]
    assert [part.paths for part in split_by_class(data, seed=seed)] == [part.paths for part in parts]


def test_split_depends_on_the_seed() -> None:
    first, second = (split_by_class(Classes(30), seed=seed)[0].class_names for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.4, 0.1, 0.4), (1.0, 0.0, 0.0), (0.6, -0.1, 0.5), (0.3, 0.3, 0.3, 0.1)])
def test_bad_fractions(fractions: tuple) -> None:
    with pytest.raises(ValueError, match="fractions are .*; expected three positive numbers that sum to 1"):
        split_by_class(Classes(30), fractions)


def test_a_split_without_validation() -> None:
    train, validation, test = split_by_class(Classes(9), (0.5, 0.0, 0.5))
    assert validation is None and len(train.class_names) + len(test.class_names) == 9
    with pytest.raises(ValueError, match="each needs two"):
        split_by_class(Classes(3), (0.5, 0.0, 0.5))


@pytest.mark.parametrize("n", [2, 5, 10])
def test_too_few_classes_to_split(n: int) -> None:
    with pytest.raises(ValueError, match=f"of {n} classes give .* each needs two"):
        split_by_class(Classes(n))


def test_six_classes_can_be_split() -> None:
    assert [len(part.class_names) for part in split_by_class(Classes(6), (1 / 3, 1 / 3, 1 / 3))] == [2, 2, 2]


def test_too_few_classes_for_validation_can_do_without() -> None:
    with pytest.raises(ValueError, match="each needs two. Bring more classes, or do without validation classes .`validation=0`"):
        split_by_class(Classes(8))
    with pytest.raises(ValueError, match="Bring more classes$"):
        split_by_class(Classes(3), (0.5, 0, 0.5))


def test_folder_brings_its_split(tmp_path: Path) -> None:
    for split, classes in {"train": "abc", "validation": "de", "test": "fg"}.items():
        fill(tmp_path / split, **dict.fromkeys(classes, 2))
    parts = folder_splits(tmp_path, size=4)
    assert ["".join(part.class_names) for part in parts] == ["abc", "de", "fg"]
    assert all(part[0][0].shape == (3, 4, 4) for part in parts)


def test_folder_without_split_is_split_by_class(tmp_path: Path) -> None:
    fill(tmp_path, **dict.fromkeys("abcdef", 2), train=2) # a class may be called so
    parts = folder_splits(tmp_path, fractions=(0.4, 0.3, 0.3), seed=3)
    assert all(isinstance(part, SomeClasses) for part in parts)
    assert sorted(sum((part.class_names for part in parts), [])) == [*"abcdef", "train"]


def test_half_a_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        fill(tmp_path / split, a=1, b=1)
    with pytest.raises(ValueError, match="has test and train but no validation; add what is missing.*`validation=0`"):
        folder_splits(tmp_path)


@pytest.mark.parametrize("name", ["validation", "val", "valid"])
def test_validation_has_three_names(tmp_path: Path, name: str) -> None:
    for split, classes in {"train": "abc", name: "de", "test": "fg"}.items():
        fill(tmp_path / split, **dict.fromkeys(classes, 2))
    assert ["".join(part.class_names) for part in folder_splits(tmp_path)] == ["abc", "de", "fg"]
    (tmp_path / ("val" if name == "valid" else "valid")).mkdir()
    with pytest.raises(ValueError, match="expected one folder for each"):
        folder_splits(tmp_path)


def test_a_split_without_validation(tmp_path: Path) -> None:
    for split, classes in {"train": "abc", "test": "fg"}.items():
        fill(tmp_path / split, **dict.fromkeys(classes, 2))
    train, validation, test = folder_splits(tmp_path, fractions=(0.5, 0, 0.5))
    assert validation is None and (train.class_names, test.class_names) == ([*"abc"], [*"fg"])


def test_class_in_two_splits(tmp_path: Path) -> None:
    for split, classes in {"train": "abc", "validation": "de", "test": "af"}.items():
        fill(tmp_path / split, **dict.fromkeys(classes, 1))
    with pytest.raises(ValueError, match="in more than one of train, validation and test: a; "):
        folder_splits(tmp_path)


# --- batches ---

LABELS = st.lists(st.integers(1, 9), min_size=2, max_size=12).map(
    lambda sizes: [label for label, size in enumerate(sizes) for _ in range(size)]
)


@given(labels=LABELS, num_classes=st.integers(2, 5), per_class=st.integers(2, 5), epoch=st.integers(0, 3))
def test_batches(labels: list[int], num_classes: int, per_class: int, epoch: int) -> None:
    size = Counter(labels)
    usable = [label for label in size if size[label] > 1]
    if len(usable) < num_classes:
        with pytest.raises(ValueError, match=f"labels have {len(usable)} classes with two images or more"):
            BalancedSampler(labels, num_classes=num_classes, per_class=per_class)
        return
    sampler = BalancedSampler(torch.tensor(labels), num_classes=num_classes, per_class=per_class)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler) >= 1 and sampler.left_out == len(size) - len(usable)
    for batch in batches:
        assert len(set(batch)) == len(batch)
        count = Counter(labels[i] for i in batch)
        assert len(count) == num_classes and all(count[label] == min(per_class, size[label]) for label in count)
    turns = Counter({label: 0 for label in usable}) + Counter(label for batch in batches for label in {labels[i] for i in batch})
    turns = [turns[label] for label in usable]
    assert max(turns) - min(turns) <= 1
    used = Counter(i for batch in batches for i in batch)
    for label in usable:
        uses = [used[i] for i in range(len(labels)) if labels[i] == label]
        assert max(uses) - min(uses) <= 1


@given(cards=st.integers(1, 9), hands=st.lists(st.integers(0, 12), max_size=12), seed=st.integers(0, 9))
def test_deck(cards: int, hands: list[int], seed: int) -> None:
    from random import Random

    deck, seen = Deck(list(range(cards)), Random(seed)), Counter(dict.fromkeys(range(cards), 0))
    for count in hands:
        hand = deck.deal(count)
        assert len(hand) == len(set(hand)) == min(count, cards)
        seen.update(hand)
        assert max(seen.values()) - min(seen.values()) <= 1


def test_batches_depend_on_seed_and_epoch_only() -> None:
    labels = torch.arange(60) % 10
    batches = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            sampler = BalancedSampler(labels, num_classes=4, per_class=3, seed=seed)
            sampler.set_epoch(epoch)
            batches[seed, epoch] = list(sampler)
            again = BalancedSampler(labels.tolist(), num_classes=4, per_class=3, seed=seed)
            again.set_epoch(epoch)
            assert list(again) == batches[seed, epoch] == list(sampler)
    assert len({str(value) for value in batches.values()}) == 4


@pytest.mark.parametrize("name", ["num_classes", "per_class"])
@pytest.mark.parametrize("value", [1, 0, -4, 2.0, "2", None])
def test_bad_batch(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} is .*; expected a whole number of at least 2"):
        BalancedSampler(torch.arange(40) % 10, **({"num_classes": 4, "per_class": 2} | {name: value}))


@pytest.mark.parametrize("labels", [torch.rand(8), torch.zeros(4, 2, dtype=torch.long), torch.tensor(3)])
def test_bad_labels(labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="labels are .*; expected one integer for each image"):
        BalancedSampler(labels, num_classes=2, per_class=2)


@pytest.mark.parametrize("labels", [[], [0, 1, 2, 3], [0, 0, 0, 0]])
def test_too_few_classes_for_a_batch(labels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"classes with two images or more, too few for num_classes=2; choose"):
        BalancedSampler(torch.tensor(labels, dtype=torch.long), num_classes=2, per_class=2)


SIZES = st.lists(st.integers(1, 9), min_size=3, max_size=9)


@given(sizes=SIZES, num_classes=st.integers(2, 6), per_class=st.integers(2, 8), epoch=st.integers(0, 3))
def test_padded_batches(sizes: list[int], num_classes: int, per_class: int, epoch: int) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    rest = max(sizes) % per_class
    padded = max(sizes) - rest if rest < int(0.3 * per_class) else max(sizes) + (per_class - rest) % per_class
    if len(sizes) * padded < num_classes * per_class:
        with pytest.raises(ValueError, match="too few to fill a batch with num_classes="):
            PaddedSampler(labels, num_classes=num_classes, per_class=per_class)
        return
    sampler = PaddedSampler(torch.tensor(labels), num_classes=num_classes, per_class=per_class)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler) == len(sizes) * padded // (num_classes * per_class)
    assert {len(batch) for batch in batches} == {num_classes * per_class}
    row = [i for batch in batches for i in batch]
    turns = [{labels[i] for i in row[start:start + per_class]} for start in range(0, len(row), per_class)]
    assert all(len(turn) == 1 for turn in turns)  # a group is of one class
    order = [turn.pop() for turn in turns]
    assert len(set(order[:len(sizes)])) == min(len(sizes), len(order))
    assert order == (order[:len(sizes)] * padded)[:len(order)]  # the same turns again and again


def test_padding_keeps_every_image() -> None:
    sampler = PaddedSampler(torch.repeat_interleave(torch.arange(6), torch.tensor([1, 3, 5, 8, 7, 2])), num_classes=2, per_class=2)
    used = Counter(i for batch in sampler for i in batch)
    assert set(used) == set(range(26)) and sum(used.values()) == 48 and used[0] == 8
    assert all(used[i] == 1 for i in range(9, 17))  # the largest class is shuffled, no more


@given(sizes=SIZES, per_class=st.integers(2, 5), seed=st.integers(0, 3))
def test_each_class_once(sizes: list[int], per_class: int, seed: int) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    total = sum(min(size, per_class) for size in sizes)
    if total < 2 * per_class:
        with pytest.raises(ValueError, match="too few"):
            OnceSampler(labels, num_classes=2, per_class=per_class)
        return
    batches = list(OnceSampler(labels, num_classes=2, per_class=per_class, seed=seed))
    row = [i for batch in batches for i in batch]
    assert len(batches) == total // (2 * per_class) and len(set(row)) == len(row) == 2 * per_class * len(batches)
    order = [labels[i] for i in row]
    groups = [order[0]] + [label for label, before in zip(order[1:], order) if label != before]
    assert len(groups) == len(set(groups))
    assert all(order.count(label) == min(sizes[label], per_class) for label in groups[:-1])


@pytest.mark.parametrize("kind", [BalancedSampler, PaddedSampler, OnceSampler])
def test_samplers_depend_on_seed_and_epoch_only(kind: type) -> None:
    labels, seen = torch.arange(60) % 10, {}
    for seed in (0, 1):
        for epoch in (0, 1):
            for _ in range(2):
                sampler = kind(labels, num_classes=3, per_class=2, seed=seed)
                sampler.set_epoch(epoch)
                assert seen.setdefault((seed, epoch), list(sampler)) == list(sampler)
    assert len({str(batches) for batches in seen.values()}) == 4


@pytest.mark.parametrize("kind", [PaddedSampler, OnceSampler])
def test_bad_groups(kind: type[GroupSampler]) -> None:
    with pytest.raises(ValueError, match="per_class is 1; expected a whole number of at least 2"):
        kind(torch.arange(40) % 10, num_classes=4, per_class=1)
    with pytest.raises(ValueError, match="labels are torch.float32"):
        kind(torch.rand(40), num_classes=4, per_class=2)


PROCESSES = """
import json, sys
import torch
from accelerate import Accelerator, skip_first_batches
from torch.utils.data import DataLoader
from gradient_surgery.data import sampling

accelerator, labels, found = Accelerator(cpu=True), torch.arange(84) % 12, {}
rank = accelerator.process_index

def loader_of(name):
    sampler = getattr(sampling, name)(labels, num_classes=3, per_class=2, seed=4)
    loader = accelerator.prepare(DataLoader(torch.arange(84), batch_sampler=sampler))
    return loader, sampler

def numbers(loader, sampler, epoch, skip=0):
    for dealer in (loader, sampler):
        dealer.set_epoch(epoch)
    if skip:
        loader = skip_first_batches(loader, skip)
        loader.set_epoch(epoch)
    return [batch.tolist() for batch in loader]

for name in ("BalancedSampler", "PaddedSampler", "OnceSampler"):
    run = loader_of(name)
    found[name] = [numbers(*run, epoch) for epoch in range(4)]
    resumed = loader_of(name)
    assert [numbers(*resumed, epoch) for epoch in (2, 3)] == found[name][2:], name
    assert numbers(*loader_of(name), 3, skip=1) == found[name][3][1:], name
json.dump(found, open(f"{sys.argv[1]}/{rank}.json", "w"))
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_batches_are_dealt_out_exactly(processes: int, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run([*launch, tmp_path / "script.py", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(processes)]
    for kind in (BalancedSampler, PaddedSampler, OnceSampler):
        sampler = kind(torch.arange(84) % 12, num_classes=3, per_class=2, seed=4)
        for epoch in range(4):
            sampler.set_epoch(epoch)
            batches = list(sampler)
            batches += batches[: -len(batches) % processes]  # so that all get equally many
            for rank in range(processes):
                assert found[rank][kind.__name__][epoch] == batches[rank::processes], (kind.__name__, epoch)


def test_numbered(photos: Path) -> None:
    data = FolderOfClasses(photos, size=8)
    numbered = Numbered(data)
    assert len(numbered) == 180
    image, label, number = numbered[100]
    assert image.equal(data[100][0]) and label == data[100][1] and number == 100


# --- crops ---


def textures(n: int = 6, height: int = 60, width: int = 48) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(8))


def pillow(image: torch.Tensor, box: list[float], size: int) -> torch.Tensor:
    whole = Image.fromarray(image.permute(1, 2, 0).numpy())
    pixels = [round(value * side) for value, side in zip(box, whole.size * 2)]
    square = whole.crop(pixels).resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)


@pytest.mark.parametrize("size", [7, 32, 90])
def test_crops_are_those_of_pillow(size: int) -> None:
    images = textures()
    boxes = random_resized_boxes(torch.tensor([[60, 48]] * 6), torch.Generator().manual_seed(1), area=(0.1, 1.0))
    found = crop(images, boxes, size=size)
    assert found.shape == (6, 3, size, size) and found.dtype == torch.uint8
    expected = torch.stack([pillow(image, box, size) for image, box in zip(images, boxes.tolist())])
    assert (found.int() - expected.int()).abs().max() <= 1
    pixels = (boxes * torch.tensor([48, 60, 48, 60])).round().long()
    mirrored = torch.arange(6) % 2 == 1
    found[mirrored] = found[mirrored].flip(3)
    assert (crop_by_products(images, pixels, mirrored, size).int() - found.int()).abs().max() <= 1


def test_the_whole_image_at_its_size_is_itself() -> None:
    images = textures(3, 20, 20)
    assert crop(images, torch.tensor([[0.0, 0, 1, 1]] * 3), size=20).equal(images)
    assert crop_by_products(images, torch.tensor([[0, 0, 20, 20]] * 3), torch.zeros(3, dtype=torch.bool), 20).equal(images)


def test_the_middle_of_a_squashed_photograph_is_that_of_the_photograph() -> None:
    x = torch.linspace(0, 255, 400)
    photograph = torch.stack([x.expand(300, 400), x[:300, None].expand(300, 400), 255 - x.expand(300, 400)]).to(torch.uint8)
    square = crop(photograph[None], torch.tensor([[0.0, 0, 1, 1]]), size=200)  # squashed
    boxes = centre_boxes(torch.tensor([[300, 400]]), part=0.8)
    assert torch.allclose(boxes, torch.tensor([[0.2, 0.1, 0.8, 0.9]]))
    assert (crop(square, boxes, size=64).int() - crop(photograph[None], boxes, size=64).int()).abs().max() <= 2


def test_square_boxes_are_squares_in_the_original() -> None:
    shapes = torch.tensor([[300, 400], [500, 375], [64, 64], [10, 1000]]).repeat(50, 1)
    boxes = random_square_boxes(shapes, torch.Generator().manual_seed(0), part=0.9)
    pixels = boxes * shapes.flip(1).repeat(1, 2)
    sides = pixels[:, 2:] - pixels[:, :2]
    assert torch.allclose(sides, 0.9 * shapes.min(dim=1, keepdim=True).values.expand(-1, 2).float(), rtol=1e-3)
    assert boxes.min() >= 0 and boxes.max() <= 1 + 1e-6
    centres = (boxes[::4, 0] + boxes[::4, 2]) / 2  # of the 300 x 400 images
    assert centres.min() < 0.4 and centres.max() > 0.6 and len(boxes.unique(dim=0)) == 200


@pytest.mark.parametrize("height, width", [(300, 400), (100, 700), (64, 64)])
def test_resized_boxes_are_those_of_torchvision(height: int, width: int) -> None:
    from torchvision.transforms.v2 import RandomResizedCrop

    theirs, image = RandomResizedCrop(8, scale=(0.1, 0.9), ratio=(0.5, 1.5)), torch.empty(3, height, width)
    torch.manual_seed(0)
    drawn = [theirs.make_params([image]) for _ in range(3000)]
    drawn = torch.tensor([[one["left"], one["top"], one["width"], one["height"]] for one in drawn]) / torch.tensor([width, height] * 2)
    shapes = torch.tensor([[height, width]]).expand(3000, 2)
    boxes = random_resized_boxes(shapes, torch.Generator().manual_seed(0), area=(0.1, 0.9), ratio=(0.5, 1.5))
    ours = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
    for level in torch.linspace(0.053, 0.951, 20): # the shares that lie below it
        assert ((ours < level).float().mean(0) - (drawn < level).float().mean(0)).abs().max() < 0.05
    assert torch.allclose((ours[:, 2] * ours[:, 3]).mean(), (drawn[:, 2] * drawn[:, 3]).mean(), atol=0.02)


def test_a_box_that_never_fits_is_the_middle() -> None:
    boxes = random_resized_boxes(torch.tensor([[10, 1000], [1000, 10]]), torch.Generator(), area=(0.9, 1.0), ratio=(0.5, 2.0))
    assert torch.allclose(boxes, torch.tensor([[0.49, 0, 0.51, 1], [0, 0.49, 1, 0.51]]))


def test_the_boxes_of_an_image_depend_on_its_place_only() -> None:
    shapes = torch.tensor([[30, 40], [50, 20], [7, 7]])
    for draw in (random_resized_boxes, random_square_boxes):
        three = draw(shapes, torch.Generator().manual_seed(3))
        assert draw(shapes[:2], torch.Generator().manual_seed(3)).equal(three[:2])
        assert draw(shapes.flip(1), torch.Generator().manual_seed(3))[2].equal(three[2])


def test_mirror() -> None:
    images, middles = textures(200), centre_boxes(torch.tensor([[60, 48]]).expand(200, 2), part=0.7)
    plain = crop(images, middles, size=16)
    boxes = mirror_boxes(middles, torch.Generator().manual_seed(0))
    found = crop(images, boxes, size=16)
    as_it_was, mirrored = ((found == other).flatten(1).all(1) for other in (plain, plain.flip(3)))
    assert (as_it_was ^ mirrored).all() and 70 < mirrored.sum() < 130
    assert crop(images, mirror_boxes(middles, torch.Generator(), probability=1.0), size=16).equal(plain.flip(3))
    assert mirror_boxes(middles, torch.Generator(), probability=0.0).equal(middles)


def test_normalise_is_exact() -> None:
    for images in (textures(), textures(70, 96, 96), textures(1, 1, 1), textures(0)):
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        assert normalise(images).equal((images / 255 - mean) / std)


@pytest.mark.parametrize("boxes", [[[0.0, 0.0, 1.1, 1.0]], [[-0.1, 0.0, 1.0, 1.0]], [[float("nan")] * 4], [[0.0, 0.0, 1.0]], [[0.0, 0.0, 1.0, 1.0]] * 2])
def test_bad_boxes(boxes: list) -> None:
    with pytest.raises(ValueError, match=r"boxes of shape .*; expected \(1, 4\), fractions from 0 to 1"):
        crop(textures(1), torch.tensor(boxes), size=8)


@pytest.mark.parametrize("call, name", [
    (lambda shapes, g: random_resized_boxes(shapes, g, area=(0.0, 1.0)), "area"),
    (lambda shapes, g: random_resized_boxes(shapes, g, area=(0.5, 1.5)), "area"),
    (lambda shapes, g: random_resized_boxes(shapes, g, ratio=(2.0, 1.0)), "ratio"),
    (lambda shapes, g: random_square_boxes(shapes, g, part=0.0), "part"),
    (lambda shapes, g: centre_boxes(shapes, part=1.2), "part"),
    (lambda shapes, g: mirror_boxes(centre_boxes(shapes), g, probability=2.0), "probability"),
])
def test_bad_crop_arguments(call, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is .*; expected"):
        call(torch.tensor([[3, 4]]), torch.Generator())


@pytest.mark.gpu
def test_crops_are_the_same_on_a_gpu() -> None:
    images, generator = textures(), torch.Generator().manual_seed(1)
    boxes = mirror_boxes(random_resized_boxes(torch.tensor([[60, 48]] * 6), generator), generator)
    found = crop(images.cuda(), boxes, size=32)
    assert found.is_cuda and (found.cpu().int() - crop(images, boxes, size=32).int()).abs().max() <= 1
    assert torch.allclose(normalise(images.cuda()).cpu(), normalise(images), atol=1e-6)


# --- augmentation ---


def batch(n: int = 6, height: int = 16, width: int = 20) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def seeded(images: torch.Tensor, **strengths: float) -> torch.Tensor:
    return Augment(**strengths)(images, torch.Generator().manual_seed(7))


STRONG = dict(flip=0.5, rotate=90, scale=2, shift=0.5, brightness=1, contrast=1, saturation=1, hue=180, mix=1, greyscale=0.5, invert=0.5, erase=0.5)


@pytest.mark.parametrize("padding", ["white", "border", "reflection"])
def test_augmented_images_are_valid(padding: str) -> None:
    images = batch(64)
    result = seeded(images, **STRONG, padding=padding)
    lowest, highest = normalise(torch.zeros_like(images)), normalise(torch.full_like(images, 255))
    assert result.shape == images.shape and result.dtype == torch.float32
    assert (lowest - 1e-5 <= result).all() and (result <= highest + 1e-5).all()
    assert result.equal(seeded(images, **STRONG, padding=padding))


def test_images_are_augmented_one_by_one() -> None:
    "What happens to an image depends on its place in the batch only, not on the others."
    images = batch()
    assert torch.allclose(seeded(images, **STRONG)[:3], seeded(images[:3], **STRONG), atol=1e-5)
    assert len(seeded(images[:1].expand(6, -1, -1, -1), **STRONG).flatten(1).unique(dim=0)) == 6


def test_only_the_generator_decides() -> None:
    images = batch()
    generator = torch.Generator().manual_seed(7)
    augment, state = Augment(), torch.get_rng_state()
    first, second = augment(images, generator), augment(images, generator)
    assert first.equal(seeded(images)) and not first.equal(second)
    assert torch.get_rng_state().equal(state)


def test_mixed_precision_leaves_places_and_colours_alone() -> None:
    images, whole = batch(), seeded(batch(), **STRONG)
    with torch.autocast("cpu", torch.bfloat16):
        assert seeded(images, **STRONG).equal(whole)


@pytest.mark.parametrize("flip, least, most", [(0.0, 0, 0), (0.5, 17, 47), (1.0, 64, 64)])
def test_flip_alone(flip: float, least: int, most: int) -> None:
    images, none = batch(64), dict(rotate=0, scale=1, shift=0, brightness=0, contrast=0, saturation=0, hue=0, greyscale=0)
    plain, mirrored = normalise(images), normalise(images.flip(3))
    result = seeded(images, **none, flip=flip)
    is_plain = (result - plain).flatten(1).abs().amax(1) < 1e-3
    is_mirrored = (result - mirrored).flatten(1).abs().amax(1) < 1e-3
    assert (is_plain ^ is_mirrored).all() and least <= is_mirrored.sum() <= most


def test_greyscale_alone() -> None:
    none = dict(rotate=0, scale=1, shift=0, brightness=0, contrast=0, saturation=0, hue=0)
    pixels = seeded(batch(), **none, greyscale=1) * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) + torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    assert torch.allclose(pixels[:, 0], pixels[:, 1], atol=1e-5) and torch.allclose(pixels[:, 0], pixels[:, 2], atol=1e-5)


def test_erasing_leaves_the_rest() -> None:
    images = batch(32)
    holed, whole = seeded(images, erase=1), seeded(images)
    erased = (holed == 0).all(1)
    assert (erased.flatten(1).sum(1) > 0).all() and not erased.flatten(1).all(1).any()
    assert torch.where(erased[:, None], whole, holed).equal(whole)


def test_no_box_erases_nothing() -> None:
    images = torch.ones(2, 3, 4, 4)
    assert erase(images, torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.125, 0.125, 0.125, 0.125]])).equal(images)


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(2, 1, 4, 4, dtype=torch.uint8)])
def test_bad_images(images: torch.Tensor) -> None:
    for transform in (normalise, seeded):
        with pytest.raises(ValueError, match=r"images are torch\..*; expected uint8 of shape \(n, 3, height, width\)"):
            transform(images)


@pytest.mark.parametrize("name, value", [
    ("flip", -0.1), ("flip", 1.5), ("greyscale", 2), ("invert", -1), ("erase", 1.01), ("mix", 2), ("shift", -0.2), ("brightness", 1.2),
    ("contrast", -1), ("saturation", 3), ("rotate", -5), ("rotate", 181), ("hue", 200), ("scale", 0.5), ("scale", float("nan")),
])
def test_bad_strength(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is .*; expected a number from"):
        Augment(**{name: value})


def test_bad_padding() -> None:
    with pytest.raises(ValueError, match="padding is 'zeros'; expected 'white', 'border' or 'reflection'"):
        Augment(padding="zeros")


@pytest.mark.gpu
def test_augment_is_the_same_on_a_gpu() -> None:
    images = batch(32)
    assert torch.allclose(seeded(images.cuda(), **STRONG).cpu(), seeded(images, **STRONG), atol=1e-3)


def test_new_classes_keep_a_class_together():
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)[[0, 1, 1, 2, 3, 3]]
    labels = torch.tensor([5, 5, 5, 2, 2, 2])
    versions = {as_new_classes(images, labels, torch.Generator().manual_seed(seed)) for seed in range(40)}
    for changed in versions:
        assert torch.equal(changed[1], changed[2]) and torch.equal(changed[4], changed[5])
        for label in (5, 2):  # one symmetry explains all images of a class
            chosen = labels == label
            assert any(torch.equal(turned(images[chosen], symmetry), changed[chosen]) for symmetry in range(8))
    alike = sum(
        any(torch.equal(turned(images, symmetry), changed) for symmetry in range(8)) for changed in versions
    )
    assert alike < len(versions) / 2  # the two classes are turned independently: alike in one case of eight


def test_new_classes_are_sampled_with_all_else():
    images, labels = batch(128, 16, 16), torch.arange(128) // 2
    symmetry = class_symmetries(labels, torch.Generator().manual_seed(3))
    assert symmetry[::2].equal(symmetry[1::2]) and len(symmetry.unique()) == 8
    each = torch.cat([turned(images[[i]], symmetry[i].item()) for i in range(128)])
    assert as_new_classes(images, labels, torch.Generator().manual_seed(3)).equal(each)
    for strengths in (STRONG, STRONG | {"padding": "reflection"}, {}):
        once = Augment(**strengths)(images, torch.Generator().manual_seed(7), symmetry_maps(symmetry))
        assert torch.allclose(once, seeded(each, **strengths), atol=1e-3)
    with pytest.raises(ValueError, match=r"images are \(16, 20\) high and wide"):
        Augment()(batch(), torch.Generator(), symmetry_maps(torch.zeros(6, dtype=torch.int)))


def test_what_is_outside_an_image() -> None:
    images = torch.full((8, 3, 8, 8), 64, dtype=torch.uint8)
    none = dict(rotate=0, scale=1, shift=1.0, brightness=0, contrast=0, saturation=0, hue=0, greyscale=0)
    white, grey = normalise(torch.full_like(images, 255)), normalise(images)
    filled = seeded(images, **none)
    is_white, is_grey = (((filled - colour).abs() < 1e-4).all(1) for colour in (white, grey))
    assert is_white.any() and is_grey.any() and (is_white | is_grey).float().mean() > 0.6  # else it lies between
    for padding in ("border", "reflection"):
        assert torch.allclose(seeded(images, **none, padding=padding), grey, atol=1e-4)


def test_new_classes_want_squares():
    with pytest.raises(ValueError, match=r"images are \(4, 6\) high and wide"):
        as_new_classes(torch.zeros(2, 3, 4, 6, dtype=torch.uint8), torch.tensor([0, 1]), torch.Generator())
