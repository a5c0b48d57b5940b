"""Which share of a training step is spent outside the network, and how many images a second does it train?

The steps are those of `gradient_surgery train`: the real loop runs, with a stopwatch around its parts. Inside the
network is its forward and its backward pass; everything else is outside.

    python benchmarks/training.py --losses GradientSurgery TripletMarginLoss --steps 20 --output new.json
"""

import argparse
import time
from collections import defaultdict
from contextlib import contextmanager
from itertools import product

from measuring import facts, in_own_process, use, write

NETWORK = ("forward", "backward")


# In a process of its own

class Stopwatch:
    "Adds up the seconds spent in functions that it has been put around."
    def __init__(self, synchronise):
        self.synchronise, self.seconds = synchronise, defaultdict(float)

    @contextmanager
    def running(self, part: str):
        self.synchronise()
        start = time.perf_counter()
        yield
        self.synchronise()
        self.seconds[part] += time.perf_counter() - start

    def around(self, owner, name: str, part: str) -> None:
        "From now on, time the owner's function of this name."
        function = getattr(owner, name)

        def timed(*arguments, **options):
            with self.running(part):
                return function(*arguments, **options)
        setattr(owner, name, timed)

    def items(self, iterable, part: str):
        "The same items, with the time that it took to get them."
        iterator = iter(iterable)
        while True:
            with self.running(part):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item


def timing(case: dict) -> dict:
    from accelerate import Accelerator
    from tqdm.auto import tqdm

    from gradient_surgery import training
    from gradient_surgery.data.sampling import BalancedSampler
    from gradient_surgery.data.transforms import Augment

    synchronise = use(case["device"], case["threads"])
    config = training.read_config(**case["config"])
    images = training.load_datasets(config).train
    sampler = BalancedSampler(images.labels, num_classes=config.num_classes, per_class=config.per_class)
    precision = training.native_precision() if config.precision == "auto" else config.precision
    accelerator = Accelerator(mixed_precision=precision)
    state = training.State(config, len(sampler), accelerator, len(images.class_names))
    augment, stopwatch = Augment(**config.augment), Stopwatch(synchronise)

    def train(steps):
        training.train_epoch(state, images, list(sampler)[:steps], augment, tqdm(disable=True))
        state.step, state.values = 0, []

    loaded = training.images_of
    training.images_of = lambda *what, **how: stopwatch.items(loaded(*what, **how), "loading")
    for owner, name, part in (
        (training, "class_symmetries", "augmentation"), (augment, "forward", "augmentation"),
        (state.model, "forward", "forward"), (accelerator, "backward", "backward"), (state.loss, "forward", "loss"),
        (state.optimizer, "step", "optimiser"), (state.optimizer, "zero_grad", "optimiser"),
    ):
        stopwatch.around(owner, name, part)
    train(3) # warm-up
    stopwatch.seconds.clear()
    steps = min(case["steps"], len(sampler))
    synchronise()
    start = time.perf_counter()
    train(steps)
    synchronise()
    total = time.perf_counter() - start
    parts = dict(stopwatch.seconds)
    parts["everything else"] = total - sum(parts.values())
    batch = config.num_classes * config.per_class
    return {
        "batch": batch, "image_size": config.image_size, "precision": precision, "steps": steps,
        "images_per_second": steps * batch / total, "step_ms": 1000 * total / steps,
        "parts_ms": {part: 1000 * seconds / steps for part, seconds in parts.items()},
        "outside_share": 1 - sum(parts[part] for part in NETWORK) / total,
    }


# In the process that starts the others

def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", metavar="NAME", help="names of the catalogue",
                        default=["GradientSurgery", "TripletMarginLoss", "NTXentLoss", "MultiSimilarityLoss", "ProxyAnchorLoss"])
    parser.add_argument("--models", nargs="+", default=["small"], help="small, or names of timm")
    parser.add_argument("--dataset", default="emoji", help="emoji, or a folder of classes")
    parser.add_argument("--cache", metavar="DIR", help="a folder for decoded images; without, files are decoded in each step")
    parser.add_argument("--image-size", type=int, default=64, help="side in pixels, for folders")
    parser.add_argument("--num-classes", type=int, default=32, help="classes in a batch")
    parser.add_argument("--per-class", type=int, default=4, help="images of each")
    parser.add_argument("--precision", default="auto", help="no, bf16, fp16, or auto")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, nargs="+", default=[None], help="in turn; by default as many as PyTorch takes")
    parser.add_argument("--output", default="runs/speed/training.json", metavar="FILE")
    return parser.parse_args(words)


def main(options: argparse.Namespace) -> None:
    result = {"benchmark": "training"} | in_own_process(facts, options.device, options.threads[0])
    hidden = ("output", "dataset") if options.dataset != "emoji" else ("output",) # a folder's place is nobody's business
    settings = {name: value for name, value in vars(options).items() if name not in hidden}
    result |= {"settings": settings | {"cache": options.cache is not None}, "rows": []}
    for threads, model, loss in product(options.threads, options.models, options.losses):
        config = {name: getattr(options, name) for name in ("dataset", "cache", "image_size", "num_classes", "per_class", "precision")}
        case = {"device": options.device, "threads": threads, "steps": options.steps}
        case["config"] = config | {"model": model, "loss": loss}
        row = {"model": model, "loss": loss, "device": options.device, "threads": threads or result["machine"]["threads"]}
        row |= in_own_process(timing, case)
        result["rows"].append(row)
        write(options.output, result)
        print(f"{model:20} {loss:28} {row['threads']:3} threads, {row['images_per_second']:8.0f} images/s, "
              f"step {row['step_ms']:8.1f} ms, outside the network {row['outside_share']:.1%}", flush=True)


if __name__ == "__main__":
    main(arguments())
