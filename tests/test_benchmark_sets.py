"""The field's benchmarks: each format, the official counts, every known hazard, and what check and extract refuse."""

import errno
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from making_sets import (
    MAKERS,
    SLASH,
    car_name,
    make_cars,
    make_cub,
    make_cub_of_emoji,
    make_in_shop,
    make_official_index,
    make_sop,
    noise,
)
from PIL import Image
from typer.testing import CliRunner

from gradient_surgery.data import check as checking
from gradient_surgery.data.benchmarks import (
    BENCHMARKS,
    IndexedImages,
    benchmark_index,
    benchmark_splits,
    folder_with,
    in_short,
    read_cars,
)
from gradient_surgery.data.check import (
    check,
    compare_checksum,
    extract,
    faults_of,
    info,
    of_each,
    unpack,
    what_is_wrong,
)
from gradient_surgery.data.folder import read_image

LAYOUTS = ("classic", "devkit", "folders")
SETS = [("cub", {}), *(("cars", {"layout": layout}) for layout in LAYOUTS), ("sop", {}), ("in_shop", {})]
every_set = pytest.mark.parametrize(("name", "options"), SETS, ids=["-".join([name, *o.values()]) for name, o in SETS])


def splits(name: str, root: Path, **options):
    return benchmark_splits(name, root, **({"complete": False, "validation": 0, "size": 16} | options))


def faults(name: str, root: Path, **options) -> list[str]:
    return list(map(str, faults_of(name, root, **({"complete": False, "quiet": True, "workers": 1} | options))))


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


# --- each format ---


@every_set
def test_each_format(name: str, options: dict, tmp_path: Path) -> None:
    drawn = {}

    def remembered(number: int, i: int) -> Image.Image:
        return drawn.setdefault((number, i), Image.new("RGB", (40, 30), (number % 256, 10 * i, 77)))

    MAKERS[name](tmp_path, (3, 2), 4, remembered, **options)
    found = splits(name, tmp_path)
    assert found.validation is None and (found.gallery is not None) == (name == "in_shop")
    assert len(found.train) == 12
    assert len(found.test) == (4 if name == "in_shop" else 8) and len(found.test.class_names) == 2
    assert not set(found.train.class_names) & set(found.test.class_names)
    first_of_test = {"cub": 101, "cars": 99}.get(name, 4)
    for part, first in (found.train, 1), (found.test, first_of_test):
        assert part.labels.dtype == torch.int64 and part.labels.unique().equal(torch.arange(len(part.class_names)))
        for i in range(len(part)):
            image, label = part[i]
            assert image.shape == (3, 16, 16) and image.dtype == torch.uint8
            assert abs(image[0].float().mean() - (first + label)) < 3, part.paths[i]  # red is the number of the class
    assert faults(name, tmp_path) == []


@every_set
def test_official_counts(name: str, options: dict, tmp_path: Path) -> None:
    make_official_index(name, tmp_path, **options)
    index = benchmark_index(name, tmp_path)
    assert index.faults == []
    for part, (images, classes) in BENCHMARKS[name].parts.items():
        numbers = [row.number for row in index.rows if row.part == part]
        assert (len(numbers), len(set(numbers))) == (images, classes)
    if options != {"layout": "folders"}:  # where the folders are the index
        with pytest.raises(ValueError, match="is missing"):
            benchmark_splits(name, tmp_path)


@every_set
def test_a_small_set_is_not_taken_for_the_whole(name: str, options: dict, tmp_path: Path) -> None:
    MAKERS[name](tmp_path, **options)
    images, classes = BENCHMARKS[name].parts["train"]
    with pytest.raises(ValueError, match=f"train has 12 images of 3 classes; .* has {images} of {classes}"):
        benchmark_splits(name, tmp_path)


def test_counts_name_what_is_missing(tmp_path: Path) -> None:
    home = make_official_index("cub", tmp_path)
    lines = (home / "images.txt").read_text().splitlines()
    labels = (home / "image_class_labels.txt").read_text().splitlines()
    kept = [i for i, label in enumerate(labels) if label.split()[1] not in ("7", "8", "150")]
    (home / "images.txt").write_text("\n".join(lines[i] for i in kept[1:]))
    (home / "image_class_labels.txt").write_text("\n".join(labels[i] for i in kept[1:]))
    text = "\n".join(map(str, benchmark_index("cub", tmp_path).faults))
    assert "train lacks the classes 7–8" in text and "test lacks the classes 150" in text
    assert "train has 5745 images of 98 classes" in text and "test has 5865 images of 99 classes" in text


def test_in_shop_query_and_gallery(tmp_path: Path) -> None:
    make_in_shop(tmp_path, (2, 3), [4, 4, 4, 5, 6], queries=[1, 2, 3], folder="Img/img")
    found = splits("in_shop", tmp_path)
    assert found.test.class_names == found.gallery.class_names
    assert found.test.labels.bincount().tolist() == [1, 2, 3] and found.gallery.labels.bincount().tolist() == [3, 3, 3]
    for i, path in enumerate(found.gallery.paths):
        assert found.gallery.class_names[found.gallery.labels[i]] in path
    assert not set(found.test.paths) & set(found.gallery.paths)


def test_validation_classes_come_from_training(tmp_path: Path) -> None:
    make_cub(tmp_path, (10, 4), 2)
    whole, part = splits("cub", tmp_path), splits("cub", tmp_path, validation=0.3, seed=1)
    assert part.test.paths == whole.test.paths and len(part.validation.class_names) == 3
    assert sorted(part.train.paths + part.validation.paths) == sorted(whole.train.paths)
    assert set(part.train.class_names).isdisjoint(part.validation.class_names)
    assert part.validation.labels.unique().tolist() == [0, 1, 2]
    assert splits("cub", tmp_path, validation=0.3, seed=1).validation.paths == part.validation.paths
    others = [splits("cub", tmp_path, validation=0.3, seed=seed).validation.class_names for seed in range(2, 8)]
    assert any(names != part.validation.class_names for names in others)


@pytest.mark.parametrize("share", [-0.1, 1, 0.1, 0.9, float("nan")])
def test_validation_share_is_refused(share: float, tmp_path: Path) -> None:
    make_cub(tmp_path, (10, 4), 2)
    with pytest.raises(ValueError, match="validation"):
        splits("cub", tmp_path, validation=share)


def test_emoji_as_cub(tmp_path: Path) -> None:
    home = make_cub_of_emoji(tmp_path, (12, 8))
    found = splits("cub", tmp_path, size=64)
    assert (len(found.train.class_names), len(found.test.class_names)) == (12, 8) and len(found.train) > 60
    assert found.train.paths[0].endswith(".jpg") and Path(found.train.paths[0]).parent.name.startswith("001.")
    image, _ = found.test[0]
    assert image.float().std() > 10 and faults("cub", home) == []


# --- hazards ---


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_kinds_of_jpeg(mode: str, tmp_path: Path) -> None:
    make_cub(tmp_path, images=lambda number, i: noise(number, i).convert(mode))
    assert faults("cub", tmp_path) == []
    image, _ = splits("cub", tmp_path).train[0]
    assert image.shape == (3, 16, 16) and (mode != "L" or image[0].equal(image[2]))


def test_slash_and_order_of_folders(tmp_path: Path) -> None:
    make_cars(tmp_path, (6, 6), layout="folders")
    found = splits("cars", tmp_path)
    assert found.train.class_names == [car_name(number) for number in range(1, 7)] != sorted(found.train.class_names)
    members = [path for path, label in zip(found.train.paths, found.train.labels, strict=True) if label == SLASH - 1]
    assert "/" in found.train.class_names[SLASH - 1]
    assert len(members) == 4 and all("Ram C-V Cargo Van Minivan 2012" in path for path in members)
    assert {Path(path).parts[-3] for path in members} == {"train", "test"}


def test_folder_that_is_not_in_the_names(tmp_path: Path) -> None:
    make_cars(tmp_path, layout="folders")
    folder = tmp_path / "car_data" / "car_data" / "train" / car_name(1)
    folder.rename(folder.with_name("Unknown Coupe 2012"))
    with pytest.raises(ValueError, match="Unknown Coupe 2012: is not named in names.csv"):
        splits("cars", tmp_path)


@pytest.mark.parametrize("name", ["cub", "sop", "cars"])
def test_labels_from_0_are_refused(name: str, tmp_path: Path) -> None:
    if name == "cub":
        file = make_cub(tmp_path) / "image_class_labels.txt"
        pairs = [line.split() for line in file.read_text().splitlines()]
        file.write_text("".join(f"{i} {int(label) - 1}\n" for i, label in pairs))
    elif name == "sop":
        file = make_sop(tmp_path) / "Ebay_train.txt"
        head, *lines = file.read_text().splitlines()
        rows = [line.split() for line in lines]
        file.write_text("\n".join([head, *(f"{i} {int(n) - 1} {c} {path}" for i, n, c, path in rows)]))
    else:
        from scipy.io import loadmat, savemat

        file = make_cars(tmp_path) / "cars_annos.mat"
        content = loadmat(file)
        for one in content["annotations"][0]:
            one["class"] = one["class"] - 1
        savemat(file, {key: content[key] for key in ("annotations", "class_names")})
    found = faults(name, tmp_path)
    assert found == [f"{file}: counts classes from 0; the benchmark counts from 1"]
    with pytest.raises(ValueError, match="counts classes from 0"):
        splits(name, tmp_path)


def test_truncated_image_is_named(tmp_path: Path) -> None:
    make_sop(tmp_path)
    path = Path(splits("sop", tmp_path).train.paths[5])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=path.name):
        splits("sop", tmp_path).train[5]
    assert len(faults("sop", tmp_path)) == 1 and faults("sop", tmp_path)[0].startswith(f"{path}: cannot be decoded")


@pytest.mark.parametrize("cut", [1, 2, 30, 300, 1500])
def test_every_truncation_is_seen(cut: int, tmp_path: Path) -> None:
    noise(1, 1).save(tmp_path / "a.jpg", quality=90)
    content = (tmp_path / "a.jpg").read_bytes()
    assert what_is_wrong(tmp_path / "a.jpg") is None
    for broken in content[:-cut], content[:-cut] + bytes(max(cut, 64)):
        (tmp_path / "a.jpg").write_bytes(broken)
        assert what_is_wrong(tmp_path / "a.jpg")


# --- swapped files and what else an index can say wrongly ---


def swap(first: Path, second: Path) -> None:
    third = first.with_name("third")
    first.rename(third)
    second.rename(first)
    third.rename(second)


def test_swapped_lists_of_products(tmp_path: Path) -> None:
    home = make_sop(tmp_path)
    swap(home / "Ebay_train.txt", home / "Ebay_test.txt")
    with pytest.raises(ValueError, match="Ebay_train.txt: has the classes of Ebay_test.txt.*swapped"):
        splits("sop", tmp_path)


def test_swapped_lists_of_birds(tmp_path: Path) -> None:
    home = make_cub(tmp_path)
    swap(home / "images.txt", home / "image_class_labels.txt")
    with pytest.raises(ValueError, match="image_class_labels.txt: no line is 'number number'; is it another file"):
        splits("cub", tmp_path)


def test_official_cars_with_swapped_annotations(tmp_path: Path) -> None:
    make_cars(tmp_path, layout="devkit", per_class=5)
    swap(tmp_path / "devkit" / "cars_train_annos.mat", tmp_path / "cars_test_annos_withlabels.mat")
    with pytest.raises(ValueError, match=r"cars_test/00013.jpg: is missing"):
        splits("cars", tmp_path)


def test_image_in_the_folder_of_another_class(tmp_path: Path) -> None:
    home = make_cub(tmp_path)
    replace(home / "images.txt", "001.Bird_1/Bird_1_0002", "002.Bird_2/Bird_1_0002")
    with pytest.raises(ValueError, match="002.Bird_2/Bird_1_0002_3.jpg: image_class_labels.txt has it in class 1"):
        splits("cub", tmp_path)


def test_product_in_another_category(tmp_path: Path) -> None:
    home = make_sop(tmp_path)
    replace(home / "Ebay_train.txt", "cabinet_final/111085122872_1", "chair_final/111085122872_1")
    with pytest.raises(ValueError, match="_1.JPG: listed as category 2, whose folder is cabinet_final"):
        splits("sop", tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("24\n", "25\n", "lists 24 images, which is not what line 1 says"),
        ("image_name item_id", "image_name item", "line 2 is .* expected the header"),
        ("id_00000002 train", "id_00000001 train", "has img/.*id_00000002/.* as item id_00000001"),
        ("id_00000001 train", "id_00000001 training", "as training of id_00000001; expected train, query or gallery"),
        ("id_00000002 train", "id_00000002 query", r"class 2 \(id_00000002\) is for training and for test"),
        ("id_00000004 gallery", "id_00000004", "line 17 is .* expected 'text text text'"),
    ],
)
def test_in_shop_faults(old: str, new: str, problem: str, tmp_path: Path) -> None:
    make_in_shop(tmp_path)
    replace(tmp_path / "Eval" / "list_eval_partition.txt", old, new)
    with pytest.raises(ValueError, match=problem):
        splits("in_shop", tmp_path)


def test_query_without_gallery(tmp_path: Path) -> None:
    make_in_shop(tmp_path, queries=[2, 4, 2])
    with pytest.raises(ValueError, match=r"class 5 \(id_00000005\) has queries but nothing in the gallery"):
        splits("in_shop", tmp_path)


def test_product_list_without_header(tmp_path: Path) -> None:
    home = make_sop(tmp_path)
    replace(home / "Ebay_test.txt", "image_id class_id super_class_id path\n", "")
    with pytest.raises(ValueError, match="Ebay_test.txt: line 1 is '13 4 5 .* expected the header"):
        splits("sop", tmp_path)


def test_class_on_both_sides(tmp_path: Path) -> None:
    home = make_sop(tmp_path)
    replace(home / "Ebay_test.txt", "13 4 5 fan_final", "13 3 5 fan_final")
    with pytest.raises(ValueError, match=r"class 3 \(\w+ 3\) is for training and for test"):
        splits("sop", tmp_path)


@pytest.mark.parametrize("file", ["cars_annos.mat", "devkit/cars_meta.mat", "devkit/cars_train_annos.mat"])
def test_broken_matlab_file_is_named(file: str, tmp_path: Path) -> None:
    make_cars(tmp_path, layout="classic" if file == "cars_annos.mat" else "devkit")
    content = (tmp_path / file).read_bytes()
    for broken in content[: len(content) // 2], b"", b"<!DOCTYPE html>" * 20:
        (tmp_path / file).write_bytes(broken)
        with pytest.raises(ValueError, match=f"{Path(file).name}: cannot be read"):
            splits("cars", tmp_path)


def test_cars_without_the_labels_of_the_test(tmp_path: Path) -> None:
    make_cars(tmp_path, layout="devkit")
    (tmp_path / "cars_test_annos_withlabels.mat").rename(tmp_path / "devkit" / "cars_test_annos.mat")
    with pytest.raises(ValueError, match="withlabels.mat: is missing; cars_test_annos.mat is no substitute"):
        splits("cars", tmp_path)


def test_kaggles_nested_folders_of_cars(tmp_path: Path) -> None:
    make_cars(tmp_path, layout="devkit")
    before = [splits("cars", tmp_path).train[i][0] for i in range(12)]
    for name in "cars_train", "cars_test":
        (tmp_path / name).rename(tmp_path / "inner")
        (tmp_path / name).mkdir()
        (tmp_path / "inner").rename(tmp_path / name / name)
    assert all(splits("cars", tmp_path).train[i][0].equal(image) for i, image in enumerate(before))


def test_without_scipy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cars(tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        read_cars(tmp_path)


@pytest.mark.parametrize("name", MAKERS)
def test_wrong_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is missing; expected the folder with the unpacked benchmark"):
        splits(name, tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="has no .* nor has a folder in it"):
        splits(name, tmp_path)


def test_half_a_list_and_two_copies(tmp_path: Path) -> None:
    home = make_sop(tmp_path / "a")
    (home / "Ebay_test.txt").unlink()
    with pytest.raises(ValueError, match="Ebay_test.txt: is missing"):
        splits("sop", tmp_path / "a")
    for file in home.glob("Ebay_*.txt"):
        file.unlink()
    (home / "Ebay_train.txt").write_text("image_id class_id super_class_id path\n")
    (home / "Ebay_test.txt").write_text("image_id class_id super_class_id path\n")
    assert faults("sop", tmp_path / "a") == [f"{home}: lists no images"]
    make_cub(tmp_path, inside="one")
    make_cub(tmp_path, inside="two")
    with pytest.raises(ValueError, match="several copies, one, two"):
        folder_with(tmp_path, "images.txt")


def test_mistakes_in_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name is 'birds'; expected one of cub, cars, sop, in_shop"):
        benchmark_splits("birds", tmp_path)
    with pytest.raises(ValueError, match="size is 0"):
        IndexedImages(tmp_path, [], torch.tensor([]), [], size=0)
    with pytest.raises(ValueError, match="1 paths and 2 labels"):
        IndexedImages(tmp_path, ["a"], torch.tensor([0, 1]), ["a"])
    make_cub(tmp_path, (3, 0))
    with pytest.raises(ValueError, match="3 classes for training and 0 for test"):
        splits("cub", tmp_path)
    assert in_short({5, 1, 2, 3}) == "1–3, 5" and in_short(set(range(0, 100, 2))).endswith("38, …")


# --- twenty planted faults ---


def plants(home: Path) -> dict[str, tuple[Path, str, Callable[[], object]]]:
    "For each fault the path and a part of the sentence that must be found, and what plants it."
    images, lists, labels = home / "images", home / "images.txt", home / "image_class_labels.txt"

    def bird(number: int, i: int) -> Path:
        (path,) = images.glob(f"{number:03}.*/*_{i:04}_*.jpg")
        return path

    def damaged(path: Path, change: Callable[[bytes], bytes]) -> Callable[[], object]:
        return lambda: path.write_bytes(change(path.read_bytes()))

    def instead(path: Path, make: Callable[[Path], object]) -> Callable[[], object]:
        return lambda: (path.unlink(), make(path))

    def added(file: Path, line: str) -> Callable[[], object]:
        return lambda: file.write_text(file.read_text() + line + "\n")

    def both(*plant: Callable[[], object]) -> Callable[[], object]:
        return lambda: [one() for one in plant]

    def broken_png(path: Path) -> None:
        noise(1, 1).save(path, "PNG")
        path.write_bytes(path.read_bytes()[:1000])

    one, gone, outside = bird(1, 0), images / "003.Bird_3", home.parent / "outside.jpg"
    leading = "001.Bird_1/../../../outside.jpg"
    at = {i: bird(2, i) for i in range(12)}
    return {
        "truncated": (at[0], "cannot be decoded", damaged(at[0], lambda content: content[: len(content) // 2])),
        "empty": (at[1], "is empty", damaged(at[1], lambda content: b"")),
        "zeros": (at[2], "nothing but zeros", damaged(at[2], lambda content: bytes(len(content)))),
        "ends in zeros": (at[3], "ends in zeros", damaged(at[3], lambda content: content[:900] + bytes(900))),
        "web page": (at[4], "is not an image", damaged(at[4], lambda content: b"<!DOCTYPE html>Not found")),
        "missing": (at[5], "is missing", at[5].unlink),
        "missing folder": (gone, "a folder of 12 images", lambda: shutil.rmtree(gone)),
        "dangling link": (at[6], "leads nowhere", instead(at[6], lambda path: path.symlink_to("nowhere.jpg"))),
        "folder": (at[7], "is a folder", instead(at[7], Path.mkdir)),
        "pipe": (at[8], "neither a file nor a folder", instead(at[8], os.mkfifo)),
        "broken png": (at[9], "cannot be decoded", lambda: broken_png(at[9])),
        "header": (at[10], "is not an image", damaged(at[10], lambda content: b"\0\1" + content[2:])),
        "malformed path": (lists, "line 73 is 'none", added(lists, "none 001.Bird_1/x.jpg")),
        "malformed class": (labels, "line 73 is '900 crow'", added(labels, "900 crow")),
        "no class": (labels, "has no class for image 901", added(lists, f"901 {one.parent.name}/{one.name}")),
        "no path": (lists, "has no path for image 902", added(labels, "902 1")),
        "number twice": (lists, "number 2 comes more than once", added(lists, f"2 {bird(1, 1).relative_to(images)}")),
        "path twice": (
            bird(1, 2), "listed more than once",
            both(added(lists, f"903 {bird(1, 2).relative_to(images)}"), added(labels, "903 1"))),
        "wrong class": (bird(1, 3), "has it in class 101", lambda: replace(labels, "\n4 1\n", "\n4 101\n")),
        "outside": (
            Path("images", leading), "leads out of the benchmark's folder",
            both(lambda: noise(1, 1).save(outside), added(lists, f"904 {leading}"), added(labels, "904 1"))),
    }


def test_twenty_planted_faults(tmp_path: Path) -> None:
    home = make_cub(tmp_path, (4, 2), 12)
    assert faults("cub", tmp_path) == []
    planted = plants(home)
    assert len(planted) == 20
    for _, _, plant in planted.values():
        plant()
    found = faults_of("cub", tmp_path, complete=False, quiet=True)
    for name, (path, words, _) in planted.items():
        assert any(fault.path == str(path) and words in fault.problem for fault in found), name
    assert len(found) == 20, "\n".join(map(str, found))


@pytest.mark.parametrize("place", range(20))
def test_each_planted_fault_alone(place: int, tmp_path: Path) -> None:
    home = make_cub(tmp_path, (4, 2), 12)
    name, (path, words, plant) = list(plants(home).items())[place]
    plant()
    found = faults("cub", tmp_path)
    assert len(found) == 1 and found[0].startswith(str(path)) and words in found[0], found
    if name == "ends in zeros":  # which decodes, to grey: only the check can tell
        return
    with pytest.raises(ValueError, match=path.name):
        data = splits("cub", tmp_path)
        [part[i] for part in (data.train, data.test) for i in range(len(part))]


def test_file_with_a_known_checksum(tmp_path: Path) -> None:
    home = make_cub(tmp_path)
    known = next(iter(BENCHMARKS["cub"].files))
    (home / known).parent.mkdir()
    noise(1, 1).save(home / known)
    found = faults("cub", home, complete=True)
    assert any(fault.startswith(f"{home / known}: is not the official file") for fault in found)
    assert faults("cub", home) == []


def test_in_parallel(tmp_path: Path) -> None:
    make_sop(tmp_path, (40, 40), 6)
    paths = [path for part in splits("sop", tmp_path)[::2] for path in part.paths]
    for path in paths[3], paths[400]:
        Path(path).write_bytes(b"")
    found = of_each(what_is_wrong, paths, workers=2, quiet=True)
    assert [path for path, problem in zip(paths, found, strict=True) if problem] == [paths[3], paths[400]]


def test_a_process_that_is_ended() -> None:
    with pytest.raises(OSError, match="try again with fewer workers"):
        of_each(os._exit, [1] * 400, workers=2, quiet=True)


# --- the commands ---


app = typer.Typer()
for command in check, info, extract:
    app.command()(command)


def run(*words: object):
    return CliRunner().invoke(app, list(map(str, words)))


def test_check_command(tmp_path: Path) -> None:
    home = make_cub(tmp_path)
    words = "check", "cub", "--root", tmp_path, "--partial", "--quiet"
    assert run(*words).exit_code == 0 and "no faults" in run(*words).output
    broken = next((home / "images").glob("*/*.jpg"))
    broken.write_bytes(b"")
    result = run(*words, "--output", tmp_path / "faults.json")
    assert result.exit_code == 1 and f"{broken}: is empty" in result.output and "1 fault\n" in result.output
    assert json.loads((tmp_path / "faults.json").read_text()) == [{"path": str(broken), "problem": "is empty"}]
    assert run("check", "cub", "--root", tmp_path, "--quiet").output.count("official split") == 2


def test_info_command() -> None:
    text = run("info").output
    for benchmark in BENCHMARKS.values():
        assert benchmark.title in text and benchmark.source in text and benchmark.licence in text
        assert all(f"{images:,} images of {classes:,} classes" in text for images, classes in benchmark.parts.values())
        assert all((archive.md5 or archive.name) in text for archive in benchmark.archives)
    assert "Cars196" not in run("info", "cub").output
    assert isinstance(run("info", "birds").exception, ValueError)


def test_import_is_light() -> None:
    code = "import sys, gradient_surgery.data.check; assert not {'torch', 'torchvision', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- archives ---


def tar_of(file: Path, entries: dict[str, bytes], kind: str = "w:gz") -> Path:
    with tarfile.open(file, kind) as tar:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return file


def zip_of(file: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file


CONTENT = {"set/a.txt": b"a" * 3000, "set/images/b.bin": os.urandom(50_000), "readme.txt": b"read me"}
KINDS = {"x.tgz": "w:gz", "x.tar": "w", "x.tar.bz2": "w:bz2", "x.tar.xz": "w:xz", "x.zip": None}


def archive_of(folder: Path, name: str) -> Path:
    return tar_of(folder / name, CONTENT, KINDS[name]) if KINDS[name] else zip_of(folder / name, CONTENT)


@pytest.mark.parametrize("name", KINDS)
def test_unpack(name: str, tmp_path: Path) -> None:
    archive, root = archive_of(tmp_path, name), tmp_path / "root"
    assert unpack(archive, root, quiet=True) == ["readme.txt", "set"]
    files = [path for path in root.rglob("*") if path.is_file()]
    assert {path.relative_to(root).as_posix(): path.read_bytes() for path in files} == CONTENT
    with pytest.raises(FileExistsError, match="exists already"):
        unpack(archive, root, quiet=True)
    assert sorted(os.listdir(root)) == ["readme.txt", "set"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.85])
def test_cut_off_archive_leaves_nothing(name: str, share: float, tmp_path: Path) -> None:
    archive, root = archive_of(tmp_path, name), tmp_path / "root"
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * share)])
    with pytest.raises(ValueError, match=f"{name} is"):
        unpack(archive, root, quiet=True)
    assert os.listdir(root) == []


@pytest.mark.parametrize("blocks", range(1, 6))
def test_tar_cut_between_its_entries(blocks: int, tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "x.tar", {f"{i}.txt": b"" for i in range(5)}, "w")
    archive.write_bytes(archive.read_bytes()[: 512 * blocks])
    with pytest.raises(ValueError, match="breaks off"):
        unpack(archive, tmp_path / "root", quiet=True)


def test_damaged_archives(tmp_path: Path) -> None:
    for name in "x.zip", "x.tgz", "x.tar.xz":
        archive = archive_of(tmp_path, name)
        content = bytearray(archive.read_bytes())
        content[20_000:20_100] = bytes(100)
        archive.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is broken"):
            unpack(archive, tmp_path / "root", quiet=True)
    (tmp_path / "page.zip").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ValueError, match="neither a zip nor a tar"):
        unpack(tmp_path / "page.zip", tmp_path / "root", quiet=True)
    with pytest.raises(FileNotFoundError, match="is missing"):
        unpack(tmp_path / "none.zip", tmp_path / "root", quiet=True)
    assert os.listdir(tmp_path / "root") == []


@pytest.mark.parametrize(
    "name", ["../out.txt", "set/../../out.txt", "/out.txt", "..\\out.txt", "C:\\out.txt", "C:/out.txt"]
)
@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_names_that_lead_outside(make: Callable, name: str, tmp_path: Path) -> None:
    root = tmp_path / "deep" / "root"
    archive = make(tmp_path / "x", {"set/a.txt": b"a", name: b"outside"})
    with pytest.raises(ValueError, match="leads out of the folder"):
        unpack(archive, root, quiet=True)
    assert os.listdir(root) == [] and not list(tmp_path.rglob("out.txt"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_tar(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        entry = tarfile.TarInfo("set/link")
        entry.type, entry.linkname = kind, "../../secret"
        tar.addfile(entry)
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        unpack(tmp_path / "x.tar", tmp_path / "root", quiet=True)
    assert os.listdir(tmp_path / "root") == []


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_zip(kind: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        entry = zipfile.ZipInfo("set/link")
        entry.external_attr = (kind | 0o777) << 16
        archive.writestr(entry, "../../secret")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        unpack(tmp_path / "x.zip", tmp_path / "root", quiet=True)


def test_encrypted_zip(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "x.zip", {"a.txt": b"a"})
    content = bytearray(archive.read_bytes())
    content[6] |= 1
    content[content.rindex(b"PK\1\2") + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="is encrypted"):
        unpack(archive, tmp_path / "root", quiet=True)


@pytest.mark.parametrize("name", ["x.tgz", "x.zip"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_full_disk_and_interruption_leave_nothing(
    name: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, root, calls = archive_of(tmp_path, name), tmp_path / "root", []
    owner = tarfile.TarFile if name == "x.tgz" else zipfile.ZipFile
    real = owner.extract

    def failing(self, *arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise error
        return real(self, *arguments, **options)

    monkeypatch.setattr(owner, "extract", failing)
    with pytest.raises(type(error), match="nothing was unpacked" if isinstance(error, OSError) else None):
        unpack(archive, root, quiet=True)
    assert len(calls) == 2 and os.listdir(root) == []


def test_zip_that_is_larger_than_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(checking.shutil, "disk_usage", lambda path: free)
    with pytest.raises(OSError, match="no room in"):
        unpack(archive_of(tmp_path, "x.zip"), tmp_path / "root", quiet=True)


def test_failed_move_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.rename

    def failing(source, target):
        if Path(source).name == "set":
            raise OSError("no")
        real(source, target)

    monkeypatch.setattr(checking.os, "rename", failing)
    with pytest.raises(OSError, match="no"):
        unpack(archive_of(tmp_path, "x.tgz"), tmp_path / "root", quiet=True)
    assert os.listdir(tmp_path / "root") == []


def test_extract_command_and_checksum(tmp_path: Path) -> None:
    archive, root = archive_of(tmp_path, "x.zip"), tmp_path / "root"
    assert "readme.txt, set" in run("extract", archive, "--root", root, "--quiet").output
    known = archive.rename(tmp_path / "Stanford_Online_Products.zip")
    result = run("extract", known, "--root", tmp_path / "other", "--quiet")
    assert result.exit_code == 1 and "whose MD5 is 7f73d41a2f44250d4779881525aea32e" in str(result.exception)
    assert not (tmp_path / "other").exists()
    assert run("extract", known, "--root", tmp_path / "other", "--no-checksum", "--quiet").exit_code == 0


def test_right_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_of(tmp_path, "x.zip")
    md5, size = checking.digest(archive, "md5"), archive.stat().st_size
    known = BENCHMARKS["cub"].archives[0]._replace(name="x.zip", md5=md5, size=size)
    monkeypatch.setitem(BENCHMARKS, "cub", BENCHMARKS["cub"]._replace(archives=[known]))
    assert compare_checksum(archive, quiet=True) == f"MD5 {known.md5}"


def test_a_whole_way(tmp_path: Path) -> None:
    home = make_cub(tmp_path / "made", (4, 4), 3)
    with tarfile.open(tmp_path / "birds.tgz", "w:gz") as tar:
        tar.add(home, home.name)
    assert run("extract", tmp_path / "birds.tgz", "--root", tmp_path / "data", "--quiet").exit_code == 0
    assert run("check", "cub", "--root", tmp_path / "data", "--partial", "--quiet").exit_code == 0
    found = splits("cub", tmp_path / "data")
    assert found.train[4][0].equal(read_image(home / "images" / Path(*Path(found.train.paths[4]).parts[-2:]), size=16))
