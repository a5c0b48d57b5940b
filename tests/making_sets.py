"""Writes small copies of the benchmarks in exactly their formats, or indices of the official size without images."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

Picture = Callable[[int, int], Image.Image]  # from the number of a class and of an image in it
Counts = int | Sequence[int]  # images of every class, or of each


def noise(number: int, i: int, shape: tuple[int, int] = (48, 64)) -> Image.Image:
    "A colour for each class, with noise for each image."
    colour = np.random.default_rng(number).integers(60, 196, 3)
    speckle = np.random.default_rng((number, i)).integers(-60, 60, (*shape, 3))
    return Image.fromarray((colour + speckle).astype(np.uint8))


def spread(images: int, classes: int) -> list[int]:
    "How many images each class has if so many images are spread evenly."
    return [images // classes + (number < images % classes) for number in range(classes)]


def numbered(classes: tuple[int, int], first_of_test: int, per_class: Counts) -> list[tuple[int, int]]:
    "The numbers of training classes from 1 and of test classes, each with its number of images."
    numbers = [*range(1, classes[0] + 1), *range(first_of_test, first_of_test + classes[1])]
    counts = [per_class] * len(numbers) if isinstance(per_class, int) else per_class
    return list(zip(numbers, counts, strict=True))


def write_text(file: Path, lines: list[str], end: str = "\n") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes("".join(line + end for line in lines).encode())


def write_image(file: Path, images: Picture | None, number: int, i: int) -> None:
    if images is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        images(number, i).save(file, "JPEG", quality=90)


def make_cub(
    root: Path,
    classes: tuple[int, int] = (3, 3),  # for training, numbered from 1, and for test, from 101
    per_class: Counts = 4,
    images: Picture | None = noise,  # None writes no images
    *,
    names: Callable[[int], str] = "Bird_{}".format,  # of a class
    inside: str = "CUB_200_2011",
) -> Path:
    "CUB-200-2011: images.txt, image_class_labels.txt, train_test_split.txt, classes.txt and images/001.Name/*.jpg."
    home, paths, labels, folders = Path(root) / inside, [], [], []
    for number, count in numbered(classes, 101, per_class):
        folder = f"{number:03}.{names(number)}"
        folders.append(f"{number} {folder}")
        for i in range(count):
            path = f"{folder}/{names(number)}_{i:04}_{len(paths) + 1}.jpg"
            write_image(home / "images" / path, images, number, i)
            paths.append(path)
            labels.append(number)
    write_text(home / "images.txt", [f"{i} {path}" for i, path in enumerate(paths, 1)])
    write_text(home / "image_class_labels.txt", [f"{i} {label}" for i, label in enumerate(labels, 1)])
    write_text(home / "train_test_split.txt", [f"{i} {i % 2}" for i in range(1, len(paths) + 1)])  # to be ignored
    write_text(home / "classes.txt", folders)
    return home


def make_cub_of_emoji(root: Path, classes: tuple[int, int] = (100, 100)) -> Path:
    "Emoji as if they were CUB-200-2011: classes for training from the emoji's training split, for test from its test."
    from gradient_surgery.data.emoji import Emoji

    splits = {1: Emoji("train"), 101: Emoji("test")}
    chosen = {}
    for (first, data), count in zip(splits.items(), classes, strict=True):
        order = np.random.default_rng(0).permutation(len(data.class_names))[:count]
        for number, label in enumerate(sorted(order.tolist()), first):
            chosen[number] = data, label, (data.labels == label).nonzero().flatten().tolist()

    def picture(number: int, i: int) -> Image.Image:
        data, _, members = chosen[number]
        return Image.fromarray(data.images[members[i]].permute(1, 2, 0).numpy())

    def name(number: int) -> str:
        data, label, _ = chosen[number]
        return "".join(c if c.isalnum() else "_" for c in data.class_names[label])

    return make_cub(root, classes, [len(members) for *_, members in chosen.values()], picture, names=name)


SLASH = 2  # the car with a slash in its name; officially it is number 174


def car_name(number: int) -> str:
    "Names whose alphabetical order is not the order of the numbers, one of them with a slash."
    if number == SLASH:
        return "Ram C/V Cargo Van Minivan 2012"
    return f"{'ZYXWVUTSRQ'[number % 10]}uto {number} Coupe 2012"


def structs(columns: dict[str, list]) -> np.ndarray:
    "A MATLAB struct array with these fields."
    array = np.empty((1, len(next(iter(columns.values())))), [(name, object) for name in columns])
    for name, values in columns.items():
        array[name][0, :] = values
    return array


def names_cell(names: list[str]) -> np.ndarray:
    cell = np.empty((1, len(names)), object)
    cell[0, :] = names
    return cell


def make_cars(
    root: Path,
    classes: tuple[int, int] = (3, 3),  # for training, numbered from 1, and for test, from 99
    per_class: Counts = 4,
    images: Picture | None = noise,
    *,
    layout: str = "classic",  # or devkit, or folders
) -> Path:
    "Cars196 in one of its three layouts; every other image of a class is for the training of classification."
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    cars = [(number, i) for number, count in numbered(classes, 99, per_class) for i in range(count)]
    names = [car_name(number) for number in range(1, 197)]
    {"classic": classic_cars, "devkit": devkit_cars, "folders": folders_of_cars}[layout](root, cars, names, images)
    return root


BOX = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def classic_cars(root: Path, cars: list[tuple[int, int]], names: list[str], images: Picture | None) -> None:
    paths = [f"car_ims/{i:06}.jpg" for i in range(1, len(cars) + 1)]
    for path, (number, i) in zip(paths, cars, strict=True):
        write_image(root / path, images, number, i)
    columns = {"relative_im_path": paths} | {name: [1] * len(cars) for name in BOX}
    columns |= {"class": [number for number, _ in cars], "test": [i % 2 for _, i in cars]}
    savemat(root / "cars_annos.mat", {"annotations": structs(columns), "class_names": names_cell(names)})


def devkit_cars(root: Path, cars: list[tuple[int, int]], names: list[str], images: Picture | None) -> None:
    (root / "devkit").mkdir(exist_ok=True)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names_cell(names)})
    for part, file in ("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat"):
        chosen = [(number, i) for number, i in cars if i % 2 == (part == "test")]
        paths = [f"{i:05}.jpg" for i in range(1, len(chosen) + 1)]
        for path, (number, i) in zip(paths, chosen, strict=True):
            write_image(root / f"cars_{part}" / path, images, number, i)
        columns = {name: [1] * len(chosen) for name in BOX}
        columns |= {"class": [number for number, _ in chosen], "fname": paths}
        savemat(root / file, {"annotations": structs(columns)})


def folders_of_cars(root: Path, cars: list[tuple[int, int]], names: list[str], images: Picture | None) -> None:
    write_text(root / "names.csv", names)
    for place, (number, i) in enumerate(cars):
        part = ("train", "test")[i % 2]
        file = root / "car_data" / "car_data" / part / names[number - 1].replace("/", "-") / f"{place:05}.jpg"
        write_image(file, images, number, i)
        if images is None:  # the folders are the index
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()


CATEGORIES = "bicycle cabinet chair coffee_maker fan kettle lamp mug sofa stapler table toaster".split()


def make_sop(
    root: Path,
    classes: tuple[int, int] = (3, 3),  # for training, numbered from 1, and for test, from the next number
    per_class: Counts = 4,
    images: Picture | None = noise,
    *,
    inside: str = "Stanford_Online_Products",
) -> Path:
    "Stanford Online Products: Ebay_train.txt, Ebay_test.txt, bicycle_final/*.JPG."
    home, lines, image = Path(root) / inside, {"train": [], "test": []}, 0
    for number, count in numbered(classes, classes[0] + 1, per_class):
        category = number % len(CATEGORIES)
        for i in range(count):
            image += 1
            path = f"{CATEGORIES[category]}_final/{111085122871 + number}_{i}.JPG"
            write_image(home / path, images, number, i)
            lines["train" if number <= classes[0] else "test"].append(f"{image} {number} {category + 1} {path}")
    for part, rows in lines.items():
        write_text(home / f"Ebay_{part}.txt", ["image_id class_id super_class_id path", *rows])
    return home


def make_in_shop(
    root: Path,
    classes: tuple[int, int] = (3, 3),  # for training and for test, their items mixed as in the original
    per_class: Counts = 4,
    images: Picture | None = noise,
    *,
    queries: Counts = 2,  # how many of the images of each test class are queries; the rest are the gallery
    folder: str = "img",  # or Img/img
) -> Path:
    "In-Shop: Eval/list_eval_partition.txt, img/WOMEN/Dresses/id_00000002/*.jpg."
    root, lines = Path(root), []
    asked = [queries] * classes[1] if isinstance(queries, int) else list(queries)
    for place, (number, count) in enumerate(numbered(classes, classes[0] + 1, per_class)):
        item, group = f"id_{number:08}", ("WOMEN/Dresses", "MEN/Denim")[number % 2]
        for i in range(count):
            path = f"{group}/{item}/{i // 4 + 1:02}_{i % 4 + 1}_front.jpg"
            write_image(root / folder / path, images, number, i)
            query = place >= classes[0] and i < asked[place - classes[0]]
            part = "train" if place < classes[0] else "query" if query else "gallery"
            lines.append(f"{'img/' + path:<70} {item} {part}")
    header = [str(len(lines)), "image_name item_id evaluation_status"]
    write_text(root / "Eval" / "list_eval_partition.txt", header + lines)
    return root


MAKERS = {"cub": make_cub, "cars": make_cars, "sop": make_sop, "in_shop": make_in_shop}


def make_official_index(name: str, root: Path, **options) -> Path:
    "An index of the official size, with the official numbers of classes, without images."
    from gradient_surgery.data.benchmarks import BENCHMARKS

    parts = BENCHMARKS[name].parts
    images, classes = zip(*parts.values(), strict=True)
    if name == "in_shop":
        asked, offered = spread(images[1], classes[1]), spread(images[2], classes[2])
        counts = spread(images[0], classes[0]) + [a + b for a, b in zip(asked, offered, strict=True)]
        return make_in_shop(root, classes[:2], counts, None, queries=asked)
    counts = spread(images[0], classes[0]) + spread(images[1], classes[1])
    return MAKERS[name](root, classes, counts, None, **options)
