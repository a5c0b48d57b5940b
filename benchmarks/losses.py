"""Forward and backward of every loss: ours, the same loss of pytorch-metric-learning, and the floor of two products.

The floor is what no implementation of this kind can do without: the similarities S = F F' and the step C F; with
proxies the similarities S = F R' and the steps C R and C'F, since both sides move. The three run in turn in one
process; the peak of memory is measured for ours and theirs in a process of its own each, and on a GPU in the same
process, where PyTorch counts it. A size at which theirs must be expected to run out of patience or memory is left out,
and the row says so.

    python benchmarks/losses.py --losses NTXentLoss CircleLoss --n 256 1024 --d 128 --per-class 4 --output new.json
"""

import argparse
import inspect
import math
import warnings

from measuring import (
    Exceeded, facts, in_own_process, in_this_process, in_turn, out_of_memory, peak_rss, settle_allocator, use, write)

LARGE = ["TripletMarginLoss:8192", "NTXentLoss:32768", "LiftedStructureLoss:32768", "SupConLoss:32768", "MultiSimilarityLoss:32768"]


# In a process of its own

def names() -> list[str]:
    from gradient_surgery.losses import CATALOGUE

    return list(CATALOGUE)


def number_of_classes(case: dict) -> int:
    return -(-case["n"] // case["per_class"])


def batch(case: dict):
    "Unit embeddings around a centre for each class, and their labels."
    import torch

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(case["n"]) // case["per_class"]
    centres = torch.randn(number_of_classes(case), case["d"], generator=generator)
    x = centres[labels] + torch.randn(case["n"], case["d"], generator=generator)
    x = torch.nn.functional.normalize(x).to(case["device"], getattr(torch, case["dtype"]))
    return x.requires_grad_(), labels.to(case["device"])


def build(case: dict, whose: str):
    "The loss, ours or theirs, with the same options; None if they have none of that name."
    import pytorch_metric_learning.losses
    import torch

    from gradient_surgery.losses import USUAL, build_loss

    torch.manual_seed(0) # for proxies
    sizes = number_of_classes(case), case["d"]
    if whose == "ours":
        loss = build_loss(case["loss"], sizes)
    else:
        kind = getattr(pytorch_metric_learning.losses, case["loss"], None)
        if kind is None:
            return None
        options = dict(USUAL.get(case["loss"], {}))
        asked = {name for base in kind.__mro__ for name in inspect.signature(base.__init__).parameters}
        if "embedding_size" in asked:
            options |= dict(zip(("num_classes", "embedding_size"), sizes))
        with warnings.catch_warnings(): # of options that its own paper gives
            warnings.simplefilter("ignore")
            loss = kind(**options)
    return loss.to(case["device"], getattr(torch, case["dtype"]))


def step(loss, x, labels):
    "One forward and backward."
    def run():
        x.grad = None
        loss(x, labels).backward()
    return run


def floor(x, loss):
    "The two products of the batch with itself or the three with proxies, into memory of their own as in any implementation."
    import torch

    f, proxies = x.detach(), getattr(loss, "proxies", None)
    r = f if proxies is None else proxies.detach()
    coefficients = torch.randn(len(f), len(r), device=f.device, dtype=f.dtype)

    def run():
        return f @ r.T, coefficients @ r, None if proxies is None else coefficients.T @ f
    return run


def timing(case: dict, with_rival: bool) -> dict:
    synchronise = use(case["device"], case["threads"])
    settle_allocator()
    x, labels = batch(case)
    ours = build(case, "ours")
    calls = {"floor": floor(x, ours), "ours": step(ours, x, labels)}
    if case["n"] in case["fused"]:
        fused = build(case, "ours")
        fused.compile()
        calls["fused"] = step(fused, x, labels)
        calls["fused"]() # compiles
    if with_rival and (rival := build(case, "rival")) is not None:
        calls["rival"] = step(rival, x, labels)
    if case["device"] == "cuda":
        in_turn(calls, seconds=0, synchronise=synchronise) # loads the kernels
    milliseconds, repeats, failed = in_turn(calls, seconds=case["seconds"], synchronise=synchronise)
    for needed in calls.keys() - {"rival"}:
        if needed in failed:
            raise failed[needed]
    problem = failed.get("rival")
    return {
        "floor_ms": milliseconds["floor"], "ours_ms": milliseconds["ours"], "rival_ms": milliseconds.get("rival"),
        "ours_over_floor": milliseconds["ours"] / milliseconds["floor"],
        "rival_over_ours": milliseconds["rival"] / milliseconds["ours"] if "rival" in milliseconds else None,
        "fused_ms": milliseconds.get("fused"),
        "ours_over_fused": milliseconds["ours"] / milliseconds["fused"] if "fused" in milliseconds else None,
        "repeats": repeats,
        "rival_note": None if "rival" in milliseconds else "has no such loss" if problem is None and with_rival
        else "memory" if problem is not None and out_of_memory(problem) else _short(problem) if problem else None,
    }


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}" if str(error) else type(error).__name__


def memory(case: dict, whose: str) -> tuple[float, float]: # before, and the most there was; in MB
    "The peak of memory of one forward and backward. A small batch goes first, so that what is loaded late counts as before."
    import torch

    synchronise = use(case["device"], case["threads"])
    small = case | {"n": 16 * case["per_class"]}
    step(build(small, whose), *batch(small))()
    synchronise()
    on_gpu = case["device"] == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() / 2**20 if on_gpu else peak_rss()
    step(build(case, whose), *batch(case))()
    synchronise()
    return before, torch.cuda.max_memory_allocated() / 2**20 if on_gpu else peak_rss()


# In the process that starts the others

class Patience:
    "Whether to measure the rival at a size, judged by how its time grew so far."
    def __init__(self, seconds: float):
        self.seconds, self.seen, self.over = seconds, {}, {}

    def reason_against(self, case: dict) -> str | None:
        key = self._key(case)
        if key in self.over:
            return self.over[key]
        expected = self._expected(self.seen.get(key, []), case["n"])
        if expected > self.seconds:
            self.over[key] = f"not measured: expected {expected:.0f} s, more than {self.seconds:g} s"
        return self.over.get(key)

    def remember(self, case: dict, seconds: float | None, note: str | None) -> None:
        "Keep a time; or why there is none, if greater sizes will have none either."
        if seconds is not None:
            self.seen.setdefault(self._key(case), []).append((case["n"], seconds))
        elif note and note.startswith("not measured"):
            self.over[self._key(case)] = note

    @staticmethod
    def _key(case):
        return case["loss"], case["d"], case["per_class"]

    @staticmethod
    def _expected(seen: list[tuple[int, float]], n: int) -> float:
        if not seen:
            return 0.0
        (last, seconds), power = seen[-1], 3.0 # before its growth is known: all triplets of a batch
        if len(seen) > 1:
            before, earlier = seen[-2]
            power = max(2.0, math.log(seconds / earlier) / math.log(last / before))
        return seconds * (n / last) ** power


def process_for(device: str):
    return in_this_process if device == "cuda" else in_own_process


def measure(case: dict, patience: Patience, gigabytes: float, memory_from: int) -> dict:
    "One row."
    in_process = process_for(case["device"])
    note = patience.reason_against(case)
    result = None
    if note is None:
        allowed = 60 + 12 * case["seconds"] + 4 * patience.seconds
        try:
            result = in_process(timing, case, True, seconds=allowed, gigabytes=gigabytes)
            if result["rival_note"] == "memory":
                result["rival_note"] = ("not measured: more than the GPU's memory" if case["device"] == "cuda"
                                        else f"not measured: more than {gigabytes:g} GB")
        except Exceeded as error:
            note = f"not measured: {error}"
    if result is None:
        result = in_process(timing, case, False) | {"rival_note": note}
    patience.remember(case, result["rival_ms"] and result["rival_ms"] / 1000, result["rival_note"])
    row = {name: case[name] for name in ("loss", "n", "d", "per_class", "device", "dtype")} | result
    for whose in ("ours", "rival"):
        wanted = case["n"] >= memory_from and row[f"{whose}_ms"] is not None
        try:
            before, peak = in_process(memory, case, whose, gigabytes=gigabytes) if wanted else (None, None)
        except Exceeded:
            before = peak = None
        row |= {f"{whose}_before_mb": before, f"{whose}_peak_mb": peak and peak - before}
    return row


def large(case: dict) -> dict:
    "One row of the batches that are too large for a matrix of all triplets, or even of all pairs."
    before, peak = process_for(case["device"])(memory, case, "ours")
    return {name: case[name] for name in ("loss", "n", "d", "per_class", "device", "dtype")} | {
        "before_mb": before, "peak_mb": peak - before}


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", metavar="NAME", help="names of the catalogue; by default all of it")
    parser.add_argument("--n", nargs="+", type=int, default=[128, 512, 1024], help="batch sizes")
    parser.add_argument("--d", nargs="+", type=int, default=[512], help="dimensions of an embedding")
    parser.add_argument("--fused", nargs="*", type=int, default=[], metavar="N", help="batch sizes at which the compiled loss is measured, too")
    parser.add_argument("--per-class", nargs="+", type=int, default=[4], help="images of each class")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, help="by default as many as PyTorch takes")
    parser.add_argument("--seconds", type=float, default=1, help="for each implementation at each size, roughly")
    parser.add_argument("--patience", type=float, default=30, help="seconds that a single step of the rival may take")
    parser.add_argument("--memory", type=float, default=14, metavar="GB", help="that a process may allocate")
    parser.add_argument("--memory-from", type=int, default=1024, metavar="N", help="smallest batch whose memory is measured")
    parser.add_argument("--large", nargs="*", default=LARGE, metavar="LOSS:N", help="batches whose memory alone is measured")
    parser.add_argument("--output", default="runs/speed/losses.json", metavar="FILE")
    return parser.parse_args(words)


def main(options: argparse.Namespace) -> None:
    catalogue = in_own_process(names)
    options.losses = options.losses or catalogue
    if unknown := sorted(set(options.losses) - set(catalogue)):
        raise SystemExit(f"--losses has {', '.join(unknown)}; expected some of {', '.join(catalogue)}")
    result = {"benchmark": "losses"} | in_own_process(facts, options.device, options.threads)
    result |= {"settings": {name: value for name, value in vars(options).items() if name != "output"}, "rows": [], "large": []}
    common = {name: getattr(options, name) for name in ("device", "dtype", "threads", "seconds", "fused")}
    patience = Patience(options.patience)
    for loss in options.losses:
        for d in options.d:
            for per_class in options.per_class:
                for n in sorted(options.n):
                    case = common | {"loss": loss, "n": n, "d": d, "per_class": per_class}
                    row = measure(case, patience, options.memory, options.memory_from)
                    result["rows"].append(row)
                    write(options.output, result)
                    print(line(row), flush=True)
    for name, n in (chosen.split(":") for chosen in options.large):
        case = common | {"loss": name, "n": int(n), "d": 128, "per_class": options.per_class[0]}
        row = large(case)
        result["large"].append(row)
        write(options.output, result)
        print(f"{name:34} {n:>6}  {row['peak_mb']:8.0f} MB over {row['before_mb']:.0f} MB", flush=True)


def line(row: dict) -> str:
    rival = f"rival {row['rival_over_ours']:8.2f} x ours" if row["rival_ms"] else row["rival_note"]
    fused = f", fused {row['ours_over_fused']:.2f} x as fast" if row["fused_ms"] else ""
    return (f"{row['loss']:34} {row['n']:>6} x {row['d']:<4} {row['ours_ms']:10.2f} ms, "
            f"{row['ours_over_floor']:6.2f} x floor, {rival}{fused}")


if __name__ == "__main__":
    main(arguments())
