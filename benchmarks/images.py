"""How many images a second reach the network: from JPEG files through a data loader, and from the cache?

Photographs of about CUB's size are made on the fly. Both sides give augmented, normalised batches: a data loader
with workers that decode and transform one image at a time, as is usual; and the cache, whose batches are cropped,
mirrored and normalised at once. Whole epochs, in turn; the loader's workers are started before and kept. By default the loader
has a worker for each processor, and the cache's side one thread.

    python benchmarks/images.py --images 400 --sizes 64 224 --output new.json
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from statistics import median

from measuring import facts, in_own_process, use, write


# In a process of its own

def make_photographs(root: Path, n: int, width: int, height: int) -> None:
    "Coloured clouds with a grain, at a quality that gives files of about 70 kB, ten to a class."
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(n):
        coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        clouds = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        pixels = (clouds + random.normal(0, 8, (height, width, 1))).clip(0, 255).astype(np.uint8)
        file = root / f"class{number // 10:04}" / f"{number:06}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file, quality=90)


def epochs(root: Path, folder: Path, size: int, purpose: str, case: dict) -> tuple[dict, float]:
    "For each side a function that goes through all images once and returns how many came; seconds to build the cache."
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    from gradient_surgery.data.cache import cached
    from gradient_surgery.data.folder import FolderOfClasses, Numbered
    from gradient_surgery.data.transforms import (
        IMAGENET_MEAN, IMAGENET_STD, crop, mirror_boxes, normalise, random_resized_boxes)

    train = purpose == "training"
    cut = [transforms.RandomResizedCrop(size, scale=(0.2, 1)), transforms.RandomHorizontalFlip()] if train else [
        transforms.Resize(size), transforms.CenterCrop(size)]
    transform = transforms.Compose([*cut, transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    images = FolderOfClasses(root, size=size)

    start = time.perf_counter()
    # for crops the square is about an eighth larger than what is cut out of it
    fast = cached(images, folder, size=size * 9 // 8 if train else size, whole=train, workers=case["workers"], quiet=True)
    seconds = time.perf_counter() - start
    from_files = DataLoader(
        ImageFolder(root, transform), batch_size=case["batch"], shuffle=train, num_workers=case["workers"],
        persistent_workers=case["workers"] > 0)
    from_cache = DataLoader(Numbered(fast), batch_size=case["batch"], shuffle=train)
    generator, device = torch.Generator().manual_seed(0), case["device"]

    def jpeg():
        return sum(len(pixels.to(device)) for pixels, _ in from_files)

    def cache():
        came = 0
        for pixels, _, numbers in from_cache:
            pixels = pixels.to(device)
            if train:
                boxes = random_resized_boxes(fast.shapes[numbers], generator)
                pixels = crop(pixels, mirror_boxes(boxes, generator), size=size)
            came += len(normalise(pixels))
        return came

    return {"jpeg": jpeg, "cache": cache}, seconds


def timing(case: dict) -> list[dict]:
    synchronise, rows = use(case["device"], case["threads"]), []
    if "fork" in multiprocessing.get_all_start_methods(): # as in a user's script; ours was spawned
        multiprocessing.set_start_method("fork", force=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        make_photographs(root, case["images"], *case["photograph"])
        for size in case["sizes"]:
            for purpose in ("training", "evaluation"):
                sides, building = epochs(root, Path(folder) / "caches", size, purpose, case)
                seconds = {name: [] for name in sides}
                for turn in range(case["rounds"] + 1):
                    for name, epoch in sides.items():
                        synchronise()
                        start = time.perf_counter()
                        assert epoch() == case["images"]
                        synchronise()
                        if turn: # the first is the warm-up
                            seconds[name].append(time.perf_counter() - start)
                rates = {f"{name}_images_per_second": case["images"] / median(values) for name, values in seconds.items()}
                rows.append({
                    "size": size, "purpose": purpose, **rates,
                    "cache_over_jpeg": median(seconds["jpeg"]) / median(seconds["cache"]),
                    "building_over_an_epoch": building / median(seconds["jpeg"])})
    return rows


# In the process that starts the others

def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--photograph", type=int, nargs=2, default=[500, 375], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 224], help="pixels on a side, as the network gets them")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that decode")
    parser.add_argument("--rounds", type=int, default=5, help="epochs that are timed")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch, on the cache's side")
    parser.add_argument("--output", default="runs/speed/images.json", metavar="FILE")
    return parser.parse_args(words)


def main(options: argparse.Namespace) -> None:
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    result = {"benchmark": "images"} | in_own_process(facts, options.device, options.threads)
    result |= {"settings": settings, "rows": in_own_process(timing, settings)}
    write(options.output, result)
    for row in result["rows"]:
        print(f"{row['size']:4} px, {row['purpose']:10}  JPEG {row['jpeg_images_per_second']:8.0f} images/s, "
              f"cache {row['cache_images_per_second']:8.0f} images/s, ratio {row['cache_over_jpeg']:6.1f}; "
              f"building takes {row['building_over_an_epoch']:.1f} epochs")


if __name__ == "__main__":
    main(arguments())
