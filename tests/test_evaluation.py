"Scores against pytorch-metric-learning, scikit-learn and naive sorting; edges; errors."
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.metrics import normalized_mutual_info_score

from gradient_surgery import evaluation
from gradient_surgery.evaluation import (
    average_precision_at_r, count_relevant, evaluate, nearest, normalised_mutual_information, r_precision, recall_at,
)

NAMES = {"recall@1": "precision_at_1", "r_precision": "r_precision", "map@r": "mean_average_precision_at_r", "nmi": "NMI"}
CALCULATOR = AccuracyCalculator(include=tuple(NAMES.values()), k="max_bin_count", device=torch.device("cpu"))  # warns of small clusters


def cosine(queries, gallery):
    return F.normalize(queries.double()) @ F.normalize(gallery.double()).T


def unit(embeddings):
    "Normalised as evaluate does it, to the last bit: k-means can magnify a rounding."
    return F.normalize(embeddings.double()).float()


def has_ties(similarity, relevant, candidate):
    "Is a relevant image as similar to a query as another one, up to single precision?"
    apart = (similarity[:, :, None] - similarity[:, None, :]).abs() > 1e-6
    rivals = (relevant & candidate)[:, :, None] & (~relevant & candidate)[:, None, :]
    return bool((rivals & ~apart).any())


def embed(labels, dimensions, seed, split):
    "Embeddings with some class structure and no ties; the first `split` search the rest, or all search all if it is None."
    generator = torch.Generator().manual_seed(seed)
    classes, place = labels.unique(return_inverse=True)
    for _ in range(100):
        centres = torch.randn(len(classes), dimensions, generator=generator)
        embeddings = centres[place] + torch.randn(len(labels), dimensions, generator=generator)
        queries, gallery = (slice(None), slice(None)) if split is None else (slice(split), slice(split, None))
        relevant = labels[queries, None] == labels[None, gallery]
        candidate = ~torch.eye(len(labels), dtype=torch.bool) if split is None else torch.ones_like(relevant)
        if not has_ties(cosine(embeddings[queries], embeddings[gallery]), relevant, candidate):
            return embeddings
    raise AssertionError("no set without ties found")


def naive_recall(queries, labels, gallery, gallery_labels, k, leave_one_out):
    similarity = cosine(queries, gallery)
    found = []
    for i, row in enumerate(similarity.tolist()):
        others = [j for j in range(len(row)) if not (leave_one_out and i == j)]
        if any(gallery_labels[j] == labels[i] for j in others):
            best = sorted(others, key=lambda j: -row[j])[:k]
            found.append(any(gallery_labels[j] == labels[i] for j in best))
    return sum(found) / len(found)


sizes = st.lists(st.integers(1, 9), min_size=2, max_size=7).filter(lambda sizes: max(sizes) > 1)


@settings(max_examples=40, deadline=None)
@given(sizes=sizes, dimensions=st.integers(4, 40), seed=st.integers(0, 2**31))
def test_leave_one_out_equals_pytorch_metric_learning(sizes, dimensions, seed):
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    embeddings = embed(labels, dimensions, seed, None)
    ks = (1, min(3, len(labels) - 1))
    ours = evaluate(embeddings, labels, ks=ks, seed=1234)
    theirs = CALCULATOR.get_accuracy(unit(embeddings), labels)
    for here, there in NAMES.items():
        assert ours[here] == pytest.approx(theirs[there], abs=1e-6), here
    for k in ks:
        assert ours[f"recall@{k}"] == pytest.approx(naive_recall(embeddings, labels, embeddings, labels, k, True), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    query_labels=st.lists(st.integers(-2, 6), min_size=1, max_size=25), gallery_labels=st.lists(st.integers(-3, 5), min_size=2, max_size=25),
    dimensions=st.integers(4, 40), seed=st.integers(0, 2**31),
)
def test_query_gallery_equals_pytorch_metric_learning(query_labels, gallery_labels, dimensions, seed):
    if not set(query_labels) & set(gallery_labels):
        query_labels = query_labels + gallery_labels[:1]
    labels, split = torch.tensor(query_labels + gallery_labels), len(query_labels)
    embeddings = embed(labels, dimensions, seed, split)
    sets = embeddings[:split], labels[:split], embeddings[split:], labels[split:]
    ours = evaluate(sets[0], sets[1], gallery=sets[2], gallery_labels=sets[3], ks=(1, 2), seed=1234)
    theirs = CALCULATOR.get_accuracy(unit(sets[0]), sets[1], unit(sets[2]), sets[3])
    for here, there in NAMES.items():
        assert ours[here] == pytest.approx(theirs[there], abs=1e-6), here
    for k in (1, 2):
        assert ours[f"recall@{k}"] == pytest.approx(naive_recall(*sets, k, False), abs=1e-6)


def test_nmi_of_many_classes_equals_pytorch_metric_learning():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40).repeat_interleave(10)
    embeddings = torch.randn(40, 16, generator=generator)[labels] + torch.randn(400, 16, generator=generator)
    theirs = CALCULATOR.get_accuracy(unit(embeddings), labels, include=("NMI",))
    assert evaluate(embeddings, labels, seed=1234)["nmi"] == pytest.approx(theirs["NMI"], abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(-3, 5), st.integers(0, 4)), min_size=1, max_size=60))
def test_nmi_equals_scikit_learn(pairs):
    labels, clusters = map(np.array, zip(*pairs))
    assert normalised_mutual_information(labels, clusters) == pytest.approx(normalized_mutual_info_score(labels, clusters), abs=1e-9)


def test_nmi_ignores_the_names_of_clusters_and_knows_its_ends():
    assert normalised_mutual_information([0, 0, 1, 1, 2], [7, 7, -4, -4, 0]) == pytest.approx(1)
    assert normalised_mutual_information([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx(0, abs=1e-12)
    assert normalised_mutual_information([3, 3], [5, 5]) == 1.0


def test_scores_by_hand():
    hits = torch.tensor([[0, 1, 1, 0, 1], [1, 0, 0, 0, 0]]).bool()
    num_relevant = torch.tensor([3, 1])
    assert recall_at(hits, 1).tolist() == [0, 1]
    assert recall_at(hits, 2).tolist() == [1, 1]
    assert r_precision(hits, num_relevant).tolist() == pytest.approx([2 / 3, 1])
    assert average_precision_at_r(hits, num_relevant).tolist() == pytest.approx([(1 / 2 + 2 / 3) / 3, 1])


def test_rank_beyond_r_counts_for_recall_only():
    # the query at 0 degrees: first a stranger at 5, then its one relative at 20
    angle = torch.tensor([0.0, 5, 20]).deg2rad()
    points = torch.stack([angle.cos(), angle.sin()], dim=1)
    scores = evaluate(points[:1], [1], gallery=points[1:], gallery_labels=[2, 1], ks=(1, 2), nmi=False)
    assert scores == {"recall@1": 0.0, "recall@2": 1.0, "r_precision": 0.0, "map@r": 0.0}


@pytest.fixture
def blobs():
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(12).repeat_interleave(5)
    return torch.randn(12, 16, generator=generator)[labels] + torch.randn(60, 16, generator=generator), labels


def test_nearest_excludes_the_query_by_index_among_copies(blobs):
    embeddings = blobs[0][:20].repeat(10, 1)
    similarity, index = nearest(embeddings, k=4)
    own = torch.arange(len(embeddings))[:, None]
    assert (index != own).all()
    assert (index % 20 == own % 20).all()
    assert similarity.allclose(torch.ones(()), atol=1e-6)
    # without the exclusion, many a query would not even be among its first five, let alone first
    plain = nearest(embeddings, k=5, gallery=embeddings)[1]
    assert (plain[:, 0] != own[:, 0]).any() and (plain != own).all(dim=1).any()


def test_copies_under_other_labels_cost_and_under_the_same_label_help(blobs):
    embeddings, labels = blobs
    assert evaluate(embeddings.repeat(2, 1), torch.cat([labels, labels]), nmi=False)["recall@1"] == 1
    assert evaluate(embeddings.repeat(2, 1), torch.cat([labels, labels + 100]), nmi=False)["recall@1"] == 0


def test_nearest_is_a_full_sort(blobs):
    embeddings, _ = blobs
    expected = cosine(embeddings, embeddings).fill_diagonal_(-2).sort(descending=True)
    similarity, index = nearest(embeddings, k=59)
    assert similarity.double().allclose(expected.values[:, :59], atol=1e-5)
    assert index.sort().values.equal(expected.indices[:, :59].sort().values)
    similarity, index = nearest(embeddings[:7], k=53, gallery=embeddings[7:])
    assert similarity.double().allclose(cosine(embeddings[:7], embeddings[7:]).sort(descending=True).values, atol=1e-5)
    assert similarity.double().allclose(cosine(embeddings[:7], embeddings[7:]).gather(1, index), atol=1e-5)


def test_singletons_are_left_out_but_stay_in_the_gallery():
    angle = torch.tensor([0.0, 10, 1, 90]).deg2rad()
    points = torch.stack([angle.cos(), angle.sin()], dim=1)
    scores = evaluate(points, [0, 0, 1, 2], ks=(1, 2), nmi=False)
    assert scores == {"recall@1": 0.0, "recall@2": 1.0, "r_precision": 0.0, "map@r": 0.0}
    assert count_relevant([0, 0, 1, 2]).tolist() == [1, 1, 0, 0]


def test_nothing_to_find(blobs):
    embeddings, labels = blobs
    with pytest.raises(ValueError, match="^labels: none of the 60 queries"):
        evaluate(embeddings, torch.arange(60))
    with pytest.raises(ValueError, match="^labels: none of the 60 queries"):
        evaluate(embeddings, labels, gallery=embeddings, gallery_labels=labels + 100)
    with pytest.raises(ValueError, match="^labels: none of the 1 queries"):
        evaluate(embeddings[:1], labels[:1])


def test_chunks_change_nothing(blobs, monkeypatch):
    embeddings, labels = blobs
    whole, whole_index = evaluate(embeddings, labels), nearest(embeddings, 9)[1]
    for held in (1, 200, 777):
        monkeypatch.setattr(evaluation, "_NEIGHBOURS_AT_ONCE", held)
        monkeypatch.setattr(evaluation, "_ROWS_AT_ONCE", held)
        assert evaluate(embeddings, labels) == pytest.approx(whole, abs=1e-12)
        assert nearest(embeddings, 9)[1].equal(whole_index)


def test_ks_may_repeat_come_in_any_order_or_be_absent(blobs):
    scores = evaluate(*blobs)
    assert evaluate(*blobs, ks=(8, 1, 8, np.int64(2))) == {k: v for k, v in scores.items() if k != "recall@4"}
    assert set(evaluate(*blobs, ks=())) == {"r_precision", "map@r", "nmi"}


def test_length_of_an_embedding_is_nothing(blobs):
    embeddings, labels = blobs
    lengths = torch.logspace(-30, 30, 60, dtype=torch.float64)[:, None]
    assert evaluate(embeddings * lengths, labels) == pytest.approx(evaluate(embeddings, labels), abs=1e-12)


def test_repeats_and_leaves_its_arguments_alone(blobs):
    embeddings, labels = blobs
    before = embeddings.clone(), labels.clone()
    assert evaluate(embeddings, labels, seed=5) == evaluate(embeddings, labels, seed=5)
    assert embeddings.equal(before[0]) and labels.equal(before[1])
    assert len({evaluate(embeddings, labels, seed=seed)["nmi"] for seed in range(8)}) > 1


@pytest.mark.parametrize("convert", [
    lambda x, y: (x.numpy(), y.numpy()),
    lambda x, y: (x.double(), y.int()),
    lambda x, y: (x.numpy()[::-1][::-1], y.numpy().astype(np.uint16)),
    lambda x, y: (x.T.contiguous().T, y.tolist()),
    lambda x, y: (x.clone().requires_grad_(), y),
    lambda x, y: (np.asfortranarray(x.numpy().astype(np.float64)), y),
])
def test_kinds_of_input(blobs, convert):
    embeddings, labels = convert(*blobs)
    scores = evaluate(embeddings, labels)
    assert scores == pytest.approx(evaluate(*blobs), abs=1e-12)
    assert list(scores) == ["recall@1", "recall@2", "recall@4", "recall@8", "r_precision", "map@r", "nmi"]
    assert all(type(value) is float and 0 <= value <= 1 for value in scores.values())


def test_half_precision_is_scored_as_it_is(blobs):
    embeddings, labels = blobs
    assert evaluate(embeddings.bfloat16(), labels) == evaluate(embeddings.bfloat16().float(), labels)


def test_the_search_for_gpus_finds_the_same(blobs, monkeypatch):
    embeddings, labels = blobs
    half = torch.arange(len(labels)) % 2 == 0
    gallery = dict(gallery=embeddings[~half], gallery_labels=labels[~half])

    def results():
        return (evaluate(embeddings, labels, nmi=False), evaluate(embeddings[half], labels[half], **gallery, nmi=False),
                *nearest(embeddings, 59), *nearest(embeddings, 3), *nearest(embeddings[half], 30, gallery=embeddings[~half]))

    expected = results()
    monkeypatch.setattr(evaluation, "_search", evaluation._search_with_torch)
    for held in (1, 200, 2**20):
        monkeypatch.setattr(evaluation, "_SIMILARITIES_AT_ONCE", held)
        for one, other in zip(results(), expected):
            assert one == other if isinstance(one, dict) else one.allclose(other, atol=1e-6)


def test_the_search_for_gpus_ignores_what_training_set(blobs):
    unit_length = unit(blobs[0])
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (unit_length @ unit_length.T).dtype == torch.bfloat16
            similarity, _ = evaluation._search_with_torch(unit_length, unit_length, 5)
        assert matmul.fp32_precision == "tf32"
        with evaluation._whole_precision("cpu"):
            assert matmul.fp32_precision == "ieee"
    finally:
        matmul.fp32_precision = before
    assert similarity.double().allclose(cosine(unit_length, unit_length).topk(5).values, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_gives_the_same_as_the_cpu(blobs, monkeypatch):
    embeddings, labels = blobs
    here = evaluate(embeddings.cuda(), labels.cuda(), nmi=False), nearest(embeddings.cuda(), 3)[1]
    assert here[0] == evaluate(embeddings, labels, nmi=False), "embeddings from the CPU are searched on the GPU"
    assert evaluation._unit(embeddings, "embeddings").is_cuda
    monkeypatch.setattr(evaluation, "_device", lambda embeddings: torch.device("cpu"))
    assert here[0] == evaluate(embeddings, labels, nmi=False) and here[1].equal(nearest(embeddings, 3)[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_nmi_of_embeddings_on_a_gpu(blobs):
    embeddings, labels = blobs
    centres = 10 * torch.eye(12)[labels]
    assert evaluate(centres.cuda(), labels)["nmi"] == evaluate(centres, labels)["nmi"]
    assert 0 < evaluate(embeddings.cuda(), labels)["nmi"] < 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what a process may allocate")
def test_memory_is_bounded():
    "Where all similarities would fill 1.6 GB, and the embeddings fill 5 MB, 200 MB more than before must do."
    code = """if True:
        import resource, torch
        from gradient_surgery.evaluation import evaluate

        x, labels = torch.randn(20_000, 64), torch.arange(20_000) // 4
        evaluate(x[:100], labels[:100], nmi=False)
        (held,) = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")]
        resource.setrlimit(resource.RLIMIT_DATA, (2**10 * held + 200 * 2**20, resource.RLIM_INFINITY))
        try:
            torch.empty(20_000, 20_000)
        except RuntimeError:
            evaluate(x, labels, nmi=False)
        else:
            raise SystemExit("the limit does not hold")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_perfect_and_collapsed_embeddings():
    labels = torch.arange(6).repeat_interleave(4)
    perfect = evaluate(torch.eye(6)[labels], labels)
    assert perfect["recall@1"] == perfect["r_precision"] == perfect["map@r"] == 1
    assert perfect["nmi"] == pytest.approx(1)
    assert evaluate(torch.ones(24, 3), labels)["nmi"] == 0


def broken(x, row, value):
    x = x.clone()
    x[row] = value
    return x


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda x, y: evaluate(x[0], y), ValueError, r"^embeddings: .*got shape \(16,\)"),
    (lambda x, y: evaluate(x[:0], y[:0]), ValueError, r"^embeddings: .*got shape \(0, 16\)"),
    (lambda x, y: evaluate(x, y[:-1]), ValueError, "^labels: expected 60, .*got 59"),
    (lambda x, y: evaluate(x, y[:, None]), ValueError, r"^labels: .*got shape \(60, 1\)"),
    (lambda x, y: evaluate(x, y.double()), TypeError, "^labels: expected integers, got float64"),
    (lambda x, y: evaluate(x, y > 3), TypeError, "^labels: expected integers, got bool"),
    (lambda x, y: evaluate(x, [str(label) for label in y]), TypeError, "^labels: expected integers"),
    (lambda x, y: evaluate(broken(x, 7, math.nan), y), ValueError, r"^embeddings: row 7 of 60 has NaN .*\(1 such"),
    (lambda x, y: evaluate(broken(x, 8, math.inf), y), ValueError, "^embeddings: row 8 of 60 has NaN or infinite"),
    (lambda x, y: evaluate(broken(x, slice(4, 6), 0.0), y), ValueError, r"^embeddings: row 4 of 60 has only zeros.*\(2 such"),
    (lambda x, y: evaluate(x, y, ks=(1, 60)), ValueError, "^ks: 60 neighbours wanted, .*only 59"),
    (lambda x, y: evaluate(x, y, ks=(0,)), ValueError, "^ks: .*got 0"),
    (lambda x, y: evaluate(x, y, ks=(1.5,)), ValueError, "^ks: .*got 1.5"),
    (lambda x, y: evaluate(x, y, gallery=x), ValueError, "^gallery_labels: expected together with gallery"),
    (lambda x, y: evaluate(x, y, gallery_labels=y), ValueError, "^gallery: expected together with gallery_labels"),
    (lambda x, y: evaluate(x, y, gallery=x[:, :9], gallery_labels=y), ValueError, "^gallery: expected 16 dimensions .*got 9"),
    (lambda x, y: evaluate(x, y, gallery=x, gallery_labels=y[1:]), ValueError, "^gallery_labels: expected 60, .*got 59"),
    (lambda x, y: evaluate(x, y, gallery=broken(x, 2, 0.0), gallery_labels=y), ValueError, "^gallery: row 2"),
    (lambda x, y: evaluate(x, y, gallery=x[:5], gallery_labels=y[:5]), ValueError, "^ks: 8 neighbours wanted, .*only 5"),
    (lambda x, y: nearest(x, 60), ValueError, "^k: 60 neighbours wanted, .*only 59"),
    (lambda x, y: nearest(x, 4, gallery=x[:3]), ValueError, "^k: 4 neighbours wanted, .*only 3"),
    (lambda x, y: nearest(x, 0), ValueError, "^k: .*got 0"),
    (lambda x, y: normalised_mutual_information(y, y[1:]), ValueError, "^clusters: expected 60"),
])
def test_errors_name_the_argument(blobs, call, error, message):
    with pytest.raises(error, match=message):
        call(*blobs)


def test_the_package_does_not_load_faiss():
    code = "import sys, gradient_surgery; sys.exit('faiss' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
