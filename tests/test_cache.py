"""The cache of decoded images: the same pixels, and never half a file, whoever builds it and whatever happens meanwhile."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from torch.utils.data import DataLoader

from gradient_surgery.data import cache
from gradient_surgery.data.cache import cached
from gradient_surgery.data.folder import FolderOfClasses, Numbered, open_image, split_by_class

SIZE = 16


def photograph(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def images(tmp_path: Path) -> FolderOfClasses:
    "Twenty-four images in six classes, of all kinds and shapes."
    for number in range(24):
        file = tmp_path / "images" / f"class{number // 4}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        image = photograph(number, 30 + number, 50 - number)
        if number % 5 == 1:
            image = image.convert("L")
        if number % 5 == 2:
            image = image.convert("CMYK")
        if number % 5 == 3:  # lies on its side
            exif = image.getexif()
            exif[0x0112] = 6
            image.save(file, exif=exif)
        else:
            image.save(file)
    return FolderOfClasses(tmp_path / "images", size=SIZE)


def made(images: FolderOfClasses, tmp_path: Path, **changes) -> cache.Cached:
    return cached(images, tmp_path / "caches", **(dict(size=SIZE, workers=0, quiet=True) | changes))


def left(tmp_path: Path) -> list[str]:
    "What lies in the folder of caches, apart from locks."
    return sorted(file.name for file in (tmp_path / "caches").iterdir() if not file.name.endswith(".lock"))


def same(fast: cache.Cached, images: FolderOfClasses) -> bool:
    return len(fast) == len(images) and all(
        fast[i][0].equal(images[i][0]) and fast[i][1] == images[i][1] for i in range(len(images)))


def read_only(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    "From now on nothing can be written (permissions do not hold for root)."
    real = Path.open

    def opened(path, mode="r", *arguments, **options):
        if "w" in mode:
            raise OSError(number, os.strerror(number))
        return real(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", opened)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_can_only_be_read(images: FolderOfClasses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    made(images, tmp_path)
    read_only(monkeypatch, number)
    assert same(made(images, tmp_path), images)
    with pytest.raises(OSError, match="could not be written .*name another folder"):  # another cache
        made(images, tmp_path, size=SIZE + 1)


# --- what comes out ---


def test_the_same_data_set(images: FolderOfClasses, tmp_path: Path) -> None:
    fast = made(images, tmp_path)
    assert same(fast, images)
    assert fast.labels.equal(images.labels) and (fast.class_names, fast.paths) == (images.class_names, images.paths)
    assert fast.batch([3, 20, 3]).equal(torch.stack([images[i][0] for i in (3, 20, 3)]))
    assert fast.batch(torch.tensor([7])).equal(images[7][0][None])


def test_whole_images_and_their_shapes(images: FolderOfClasses, tmp_path: Path) -> None:
    fast, middles = made(images, tmp_path, whole=True), made(images, tmp_path)
    for i, path in enumerate(images.paths):
        image = open_image(path)
        assert fast.shapes[i].tolist() == [image.height, image.width]
        assert middles.shapes[i].tolist() == [min(image.size)] * 2
        squashed = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        assert (fast[i][0].permute(1, 2, 0).numpy() == squashed).all()
    assert fast.shapes[3].tolist() == [33, 47]  # the one on its side, upright


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader(images: FolderOfClasses, tmp_path: Path, workers: int) -> None:
    fast = made(images, tmp_path)
    loader = DataLoader(Numbered(fast), batch_size=7, shuffle=True, num_workers=workers)
    seen = []
    for pixels, labels, numbers in loader:
        assert pixels.equal(fast.batch(numbers)) and labels.equal(images.labels[numbers])
        seen += numbers.tolist()
    assert sorted(seen) == list(range(24))
    pixels, labels = next(iter(DataLoader(fast, batch_size=5)))
    assert pixels.equal(fast.batch(range(5))) and labels.tolist() == [0, 0, 0, 0, 1]


def test_some_classes(images: FolderOfClasses, tmp_path: Path) -> None:
    part = split_by_class(images, (0.34, 0.33, 0.33))[1]
    fast = made(part, tmp_path)
    assert same(fast, part) and fast.class_names == part.class_names


def test_it_travels_without_its_images(images: FolderOfClasses, tmp_path: Path) -> None:
    fast = made(images, tmp_path, size=64)
    parcel = pickle.dumps(fast)
    assert len(parcel) < fast.images.nbytes / 10
    images.size = 64
    assert same(pickle.loads(parcel), images)


def test_the_file_cannot_be_changed_by_accident(images: FolderOfClasses, tmp_path: Path) -> None:
    fast = made(images, tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        fast.images[0] += 1
    for pixels in (fast[0][0], fast.batch([0])):
        pixels.zero_()
    assert same(fast, images) and same(made(images, tmp_path), images)


def test_other_programs_can_read_it(images: FolderOfClasses, tmp_path: Path) -> None:
    fast = made(images, tmp_path, size=15, whole=True)
    tensors = load_file(fast.path)
    assert (tensors["images"] == fast.images).all() and (tensors["shapes"] == fast.shapes.numpy()).all()


# --- when it is built ---


def test_it_is_built_once(images: FolderOfClasses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(images, tmp_path)
    monkeypatch.setattr(cache, "build", lambda *_, **__: pytest.fail("built again"))
    assert same(made(images, tmp_path), images)


def test_processes_write_the_same_file(images: FolderOfClasses, tmp_path: Path) -> None:
    first = made(images, tmp_path)
    content = first.path.read_bytes()
    first.path.unlink()
    assert made(images, tmp_path, workers=2).path.read_bytes() == content


@pytest.mark.parametrize("change", ["content", "time", "path", "order", "size", "whole"])
def test_another_source_has_another_cache(images: FolderOfClasses, tmp_path: Path, change: str) -> None:
    before, options = made(images, tmp_path).path, {}
    file = Path(images.paths[5])
    if change == "content":
        stat = file.stat()
        photograph(99, 60, 60).save(file)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "time":
        os.utime(file, ns=(0, 12345))
    elif change == "path":
        file.rename(file.with_name("renamed.jpg"))
        images.paths[5] = str(file.with_name("renamed.jpg"))
    elif change == "order":
        images.paths.reverse()
        images.labels = images.labels.flip(0)
    elif change == "size":
        images.size = options["size"] = 17
    else:
        options["whole"] = True
    after = made(images, tmp_path, **options)
    assert after.path != before and before.exists()
    if change != "whole":
        assert same(after, images)


DAMAGE = {
    "cut short": lambda data: data[:-1],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"\0",
    "another header": lambda data: data[:20] + b"X" + data[21:],
    "one pixel": lambda data: data[:-1000] + bytes([data[-1000] ^ 4]) + data[-999:],
    "zeros": lambda data: data[:-4096] + bytes(4096),
    "not one of ours": lambda data: b"\xff" * len(data),
}


@pytest.mark.parametrize("kind", [*DAMAGE, "a shape", "a checksum"])
def test_damage_is_noticed(images: FolderOfClasses, tmp_path: Path, kind: str) -> None:
    fast = made(images, tmp_path, whole=True)
    shapes, content = fast.shapes, fast.path.read_bytes()
    head = 8 + int.from_bytes(content[:8], "little")
    place = {"a shape": head + 8 * 24 + 9, "a checksum": head + 3}.get(kind)
    damage = DAMAGE.get(kind, lambda data: data[:place] + bytes([data[place] ^ 1]) + data[place + 1:])
    fast.path.write_bytes(damage(content))
    with pytest.warns(UserWarning, match="it is built anew"):
        again = made(images, tmp_path, whole=True)
    assert again.path.read_bytes() == content and again.shapes.equal(shapes)


# --- what it says when it cannot be built ---


@pytest.mark.parametrize("workers", [0, 2])
def test_every_unreadable_image_is_named(images: FolderOfClasses, tmp_path: Path, workers: int) -> None:
    broken = {images.paths[i] for i in (0, 9, 17, 23)}
    for number, path in enumerate(sorted(broken)):
        content = Path(path).read_bytes()
        Path(path).write_bytes([b"", content[: len(content) // 2], b"<html>", b"\xff\xd8\xff\xe0" + bytes(50)][number])
    with pytest.raises(ValueError, match="4 of 24 images:") as caught:
        made(images, tmp_path, workers=workers)
    named = {path for path in images.paths if path in str(caught.value)}
    assert named == broken and left(tmp_path) == []


def test_every_missing_image_is_named(images: FolderOfClasses, tmp_path: Path) -> None:
    gone = {images.paths[i] for i in (2, 11)}
    for path in gone:
        Path(path).unlink()
    with pytest.raises(FileNotFoundError, match="2 of 24 images are missing") as caught:
        made(images, tmp_path)
    assert {path for path in images.paths if path in str(caught.value)} == gone


def test_a_data_set_without_files(tmp_path: Path) -> None:
    from gradient_surgery.data.emoji import Emoji

    with pytest.raises(FileNotFoundError, match="none is a file .*; expected a data set of image files"):
        made(Emoji("validation"), tmp_path)


@pytest.mark.parametrize("size", [0, -3, 2.5, "64", None])
def test_bad_size(images: FolderOfClasses, tmp_path: Path, size: object) -> None:
    with pytest.raises(ValueError, match="size is .*; expected a whole number of pixels"):
        made(images, tmp_path, size=size)


def test_no_room_is_said_before_the_work(images: FolderOfClasses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    monkeypatch.setattr(cache, "build", lambda *_, **__: pytest.fail("began"))
    with pytest.raises(OSError, match="needs 0.0 GB, and there are 0.0 GB left; free some space"):
        made(images, tmp_path)


def test_an_interrupted_build_leaves_nothing(images: FolderOfClasses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))

    def interrupted(*arguments, **options):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)

    monkeypatch.setattr(cache, "as_square", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(images, tmp_path)
    assert left(tmp_path) == []


# --- other processes ---

SCRIPT = """
import sys, time, resource
from pathlib import Path
from gradient_surgery.data import cache
from gradient_surgery.data.folder import FolderOfClasses

root, mode = Path(sys.argv[1]), sys.argv[2]
build, as_square = cache.build, cache.as_square

def logged(path, *arguments, **options):
    with open(root / "builds", "a") as log:
        log.write("begun\\n")
    build(path, *arguments, **options)

def slow(*arguments, **options):
    time.sleep(0.05)
    return as_square(*arguments, **options)

cache.build, cache.as_square = logged, slow if mode == "slow" else as_square
if mode == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
fast = cache.cached(FolderOfClasses(root / "images"), root / "caches", size=16, workers=0, quiet=True)
print(sum(fast[i][0].sum().item() for i in range(len(fast))))
"""


def start(tmp_path: Path, mode: str) -> subprocess.Popen:
    (tmp_path / "script.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, tmp_path / "script.py", tmp_path, mode], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def total(images: FolderOfClasses) -> int:
    return sum(images[i][0].sum().item() for i in range(len(images)))


def test_two_processes_build_one_cache(images: FolderOfClasses, tmp_path: Path) -> None:
    processes = [start(tmp_path, "slow") for _ in range(2)]
    answers = [process.communicate(timeout=60) for process in processes]
    assert [int(out) for out, _ in answers] == [total(images)] * 2, answers
    assert (tmp_path / "builds").read_text() == "begun\n" and len(left(tmp_path)) == 1


def test_without_locks_it_is_built_all_the_same(images: FolderOfClasses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "fcntl", None)
    assert same(made(images, tmp_path), images) and len(left(tmp_path)) == 1


def test_a_killed_build_leaves_no_trace(images: FolderOfClasses, tmp_path: Path) -> None:
    process, deadline = start(tmp_path, "slow"), time.monotonic() + 60
    while not list((tmp_path / "caches").glob(".*.*.safetensors")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert left(tmp_path) != []  # what was killed could not clean up
    assert same(made(images, tmp_path), images) and len(left(tmp_path)) == 1


def test_a_full_disk(images: FolderOfClasses, tmp_path: Path) -> None:
    process = start(tmp_path, "full")
    _, problem = process.communicate(timeout=60)
    assert process.returncode == 1 and "could not be written" in problem
    assert "free some space, or name another folder" in problem and left(tmp_path) == []
    assert same(made(images, tmp_path), images)


# --- the benchmark ---


def test_the_benchmark_measures_both_sides(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "images.json"
    words = ["--images", "24", "--sizes", "16", "24", "--workers", "0", "--threads", "1", "--rounds", "2", "--batch", "8"]
    command = [sys.executable, "benchmarks/images.py", *words, "--output", str(output)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert result["benchmark"] == "images" and result["machine"]["threads"] == 1
    assert [(row["size"], row["purpose"]) for row in result["rows"]] == [
        (size, purpose) for size in (16, 24) for purpose in ("training", "evaluation")]
    for row in result["rows"]:
        assert row["cache_over_jpeg"] == pytest.approx(row["cache_images_per_second"] / row["jpeg_images_per_second"])
    assert done.stdout.count("ratio") == 4
    for private in (str(root), str(tmp_path), str(Path.home())):
        assert private not in output.read_text()
