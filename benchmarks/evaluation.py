"""How much longer than the bare search does `evaluate` take, at the size of the largest sets of this field?

Random embeddings stand in for the images; in a few of their dimensions each class has a centre. The bare search asks faiss, or on a
GPU products and their largest numbers, for the same neighbours of the same unit embeddings; it, `evaluate` and the
calculator of pytorch-metric-learning (on the processor) run in turn in one process. The peak of memory is measured in a
process of its own, on a GPU as PyTorch counts it.

    python benchmarks/evaluation.py --sets in-shop --shrink 4 --output new.json
"""

import argparse

from measuring import facts, in_own_process, in_turn, peak_rss, use, write

SETS = { # queries, gallery (None: one another), classes
    "stanford-online-products": (60_502, None, 11_316),
    "in-shop": (14_218, 12_612, 3_985),
}


# In a process of its own

def embeddings(case: dict):
    "Queries with their labels, and the gallery with its; each class has two images at least, or one on either side."
    import torch

    generator = torch.Generator().manual_seed(0)
    number, gallery, classes = case["queries"], case["gallery"], case["classes"]
    few = max(1, case["d"] // 16) # so that this takes hardly more memory than the embeddings themselves
    centres = 3 * torch.randn(classes, few, generator=generator)

    def some(number, at_least):
        every = torch.arange(classes).repeat(at_least)
        labels = torch.cat([every, torch.randint(classes, (number - len(every),), generator=generator)])
        x = torch.randn(number, case["d"], generator=generator)
        x[:, :few] += centres[labels]
        return x, labels

    if gallery is None:
        return *some(number, 2), None, None
    return *some(number, 1), *some(gallery, 1)


def calls(case: dict):
    import faiss
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    from gradient_surgery.evaluation import count_relevant, evaluate

    x, labels, gallery, gallery_labels = embeddings(case)
    unit = torch.nn.functional.normalize(x)
    searched = unit if gallery is None else torch.nn.functional.normalize(gallery)
    searched_there = searched.cuda() if case["device"] == "cuda" else None
    depth = max(8, count_relevant(labels, gallery_labels).max().item()) + (gallery is None)

    def search_on_gpu():
        for rows in unit.cuda().split(4096):
            (rows @ searched_there.T).topk(depth)

    def search():
        index = faiss.IndexFlatIP(case["d"])
        index.add(searched.numpy())
        index.search(unit.numpy(), depth)

    def ours():
        return evaluate(x, labels, gallery=gallery, gallery_labels=gallery_labels, nmi=False)

    def rival():
        calculator = AccuracyCalculator(
            include=("precision_at_1", "r_precision", "mean_average_precision_at_r"), k="max_bin_count",
            device=torch.device("cpu"))
        return calculator.get_accuracy(unit, labels, *(() if gallery is None else (searched, gallery_labels)))

    def with_nmi():
        return evaluate(x, labels, gallery=gallery, gallery_labels=gallery_labels)

    measured = {"search": search_on_gpu if case["device"] == "cuda" else search, "ours": ours}
    return measured | ({"rival": rival} if case["rival"] else {}), with_nmi, depth


def timing(case: dict) -> dict:
    synchronise = use(case["device"], case["threads"])
    in_turn_calls, with_nmi, depth = calls(case)
    milliseconds, repeats, failed = in_turn(in_turn_calls, seconds=case["seconds"], synchronise=synchronise)
    if failed:
        raise next(iter(failed.values()))
    once = in_turn({"with nmi": with_nmi}, seconds=0, synchronise=synchronise)[0] if case["nmi"] else {}
    return {
        "neighbours": depth, "search_ms": milliseconds["search"], "ours_ms": milliseconds["ours"],
        "rival_ms": milliseconds.get("rival"), "ours_over_search": milliseconds["ours"] / milliseconds["search"],
        "rival_over_ours": milliseconds["rival"] / milliseconds["ours"] if case["rival"] else None, "repeats": repeats,
        "with_nmi_ms": once.get("with nmi"),
    }


def memory(case: dict) -> tuple[float, float, float]: # of the embeddings; before, and the most there was; in MB
    "The peak of memory of one evaluation without NMI. A small one goes first, so that what is loaded late counts as before."
    from gradient_surgery.evaluation import evaluate

    import torch

    use(case["device"], case["threads"])
    most = lambda: torch.cuda.max_memory_allocated() / 2**20 if case["device"] == "cuda" else peak_rss()
    x, labels, gallery, gallery_labels = embeddings(case)
    few = slice(32)
    evaluate(x[few], labels[few] % 4, ks=(1,), nmi=False)
    given = sum(part.nbytes for part in (x, gallery) if part is not None) / 2**20
    before = most()
    evaluate(x, labels, gallery=gallery, gallery_labels=gallery_labels, nmi=False)
    return given, before, most()


# In the process that starts the others

def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS, help="whose sizes to take")
    parser.add_argument("--shrink", type=int, default=1, metavar="TIMES", help="take so many times fewer images and classes")
    parser.add_argument("--d", type=int, default=512, help="dimensions of an embedding")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda: `evaluate` takes a GPU where there is one")
    parser.add_argument("--threads", type=int, help="by default as many as PyTorch takes")
    parser.add_argument("--seconds", type=float, default=120, help="for each implementation, roughly")
    parser.add_argument("--no-rival", dest="rival", action="store_false", help="leave pytorch-metric-learning out")
    parser.add_argument("--nmi", action="store_true", help="also evaluate once with NMI, which takes minutes")
    parser.add_argument("--output", default="runs/speed/evaluation.json", metavar="FILE")
    return parser.parse_args(words)


def main(options: argparse.Namespace) -> None:
    result = {"benchmark": "evaluation"} | in_own_process(facts, options.device, options.threads)
    result |= {"settings": {name: value for name, value in vars(options).items() if name != "output"}, "rows": []}
    for name in options.sets:
        sizes = (size and size // options.shrink for size in SETS[name])
        case = dict(zip(("queries", "gallery", "classes"), sizes)) | {
            key: getattr(options, key) for key in ("d", "device", "threads", "seconds", "rival", "nmi")}
        row = {"set": name} | {key: case[key] for key in ("queries", "gallery", "classes", "d", "device")}
        row |= in_own_process(timing, case)
        given, before, peak = in_own_process(memory, case)
        row |= {"embeddings_mb": given, "before_mb": before, "peak_mb": peak - before}
        result["rows"].append(row)
        write(options.output, result)
        rival = f"rival {row['rival_over_ours']:.2f} x ours, " if row["rival_ms"] else ""
        print(f"{name:26} search {row['search_ms'] / 1000:7.2f} s, evaluate {row['ours_over_search']:.2f} x that, "
              f"{rival}{row['peak_mb']:.0f} MB over {row['before_mb']:.0f} MB", flush=True)


if __name__ == "__main__":
    main(arguments())
