"""Dissection: every kind of loss, its bad inputs, and what it prints, draws and exports."""

import pandas
import pytest
import torch

from gradient_surgery.anatomy import dissect, example_batch, factorise, relative_error, shape, triplet_coefficients
from gradient_surgery.geometry import to_sphere
from gradient_surgery.losses import CATALOGUE, CrossBatchMemory, build_loss
from gradient_surgery.pair_loss import pair_masks
from gradient_surgery.surgery import GradientSurgery

X, LABELS = example_batch()


def soft_pairs(similarity, labels):
    positives, negatives = pair_masks(labels, labels, torch.arange(len(labels)))
    return (torch.exp(-similarity) * positives + torch.exp(similarity) * negatives).mean()


def of_embeddings(embeddings, labels):
    f, _ = to_sphere(embeddings)
    return soft_pairs(f @ f.T, labels)


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_loss_is_dissected(name, tmp_path):
    torch.manual_seed(0)
    found = dissect(build_loss(name, (6, 8)).double(), X, LABELS)
    assert found.reconstruction_error < 1e-8
    assert found.coefficients.shape[0] == found.steps.shape[0] == found.attraction.shape[0] == len(X)
    assert 0 < found.active <= 1 and (found.steps >= 0).all() and found.outside.norm() < 1e-8
    share = found.radial_share[~found.radial_share.isnan()]
    assert ((0 <= share) & (share <= 1 + 1e-12)).all()
    assert len(found.to_frame()) == (found.positives | found.negatives).sum()
    for word in (name, "direction", "pair weight", "triplet weight", "factorisation error", "reconstruction error"):
        assert word in str(found)
    found.plot(tmp_path / "found.png")
    assert (tmp_path / "found.png").stat().st_size > 1000


def test_the_embeddings_and_the_loss_stay_as_they_are():
    memory = CrossBatchMemory(build_loss("ContrastiveLoss"), 8, memory_size=48)
    x, labels = X.detach().float().requires_grad_(), LABELS
    memory(x, labels)
    before = {name: value.clone() for name, value in memory.state_dict().items() if isinstance(value, torch.Tensor)}
    dissect(memory, x, labels)
    assert x.grad is None
    assert all(torch.equal(value, memory.state_dict()[name]) for name, value in before.items())


def test_functions_of_similarities_and_of_embeddings_agree():
    x, labels = example_batch(16, 24, 4)
    first, second = dissect(soft_pairs, x, labels), dissect(of_embeddings, x, labels)
    assert first.ask is not None and second.ask is None and not second.composed
    K, L = (one.coefficients + one.coefficients.T for one in (first, second))
    assert relative_error(L, K) < 1e-8 and second.reconstruction_error < 1e-10
    assert relative_error(dissect(lambda u, v: soft_pairs(u, v), x, labels, sees="similarity").coefficients, first.coefficients) < 1e-12
    with pytest.raises(ValueError, match="single triplets"):
        second.factors


def test_more_embeddings_than_dimensions_are_rebuilt_all_the_same():
    assert dissect(of_embeddings, *example_batch(40, 4, 6)).reconstruction_error < 1e-8


def test_what_pairs_cannot_say_stays_outside():
    target = torch.randn(8, dtype=torch.float64)
    found = dissect(lambda x, y: of_embeddings(x, y) + (x @ target).sum(), X, LABELS)
    assert found.reconstruction_error > 0.1
    lengthwise = dissect(lambda x, y: x.square().sum(), X, LABELS)
    assert abs(lengthwise.reconstruction_error - 1) < 1e-6


def test_surgery_is_read_back():
    for direction in ("euclidean", "geodesic"):
        found = dissect(GradientSurgery(direction, "constant", "hinge", "all"), X, LABELS)
        assert found.direction == direction and shape(found.triplet_weight) == "step, 0 to 1"
        assert [shape(weight) for weight in found.pair_weight] == ["constant", "constant"]
        assert found.factorisation_error < 1e-10
    found = dissect(GradientSurgery("cosine", "linear", "sigmoid", "all"), X, LABELS)
    s = found.factors.similarity
    pull, push = found.pair_weight
    linear = (1.25 - s).clamp(min=0)
    assert relative_error(pull / pull[0], linear / linear[0]) < 1e-6
    assert relative_error(push / pull[0], (s + 0.25).clamp(min=0) / linear[0]) < 1e-6


def test_what_does_not_factor_is_said():
    s = torch.linspace(-0.9, 0.9, 7, dtype=torch.float64)
    s_an, s_ap = torch.meshgrid(s, s, indexing="ij")
    assert factorise(s, -(s_an - s_ap).sigmoid(), (s_an - s_ap).sigmoid()).error < 1e-12
    assert factorise(s, -(s_an - s_ap).sigmoid(), (s_an - 3 * s_ap).sigmoid()).error > 0.05


def test_triplets_of_ours_and_of_the_rival_agree():
    rivals = pytest.importorskip("pytorch_metric_learning.losses")
    s_ap, s_an = (2 * torch.rand(2, 50, dtype=torch.float64) - 1) * 0.95
    for name in ("TripletMarginLoss", "ContrastiveLoss", "NormalizedSoftmaxLoss"):
        sizes = dict(num_classes=2, embedding_size=4) if name == "NormalizedSoftmaxLoss" else {}
        ours = torch.stack(triplet_coefficients(build_loss(name, (2, 4)), s_ap, s_an))
        theirs = torch.stack(triplet_coefficients(getattr(rivals, name)(**sizes), s_ap, s_an))
        ratio = theirs[ours != 0] / ours[ours != 0]  # they are asked about four anchors, we about one
        assert torch.allclose(ratio, ratio[0], rtol=1e-6), name


def test_a_rival_is_read_in_single_precision_and_with_equal_embeddings():
    rivals = pytest.importorskip("pytorch_metric_learning.losses")
    x, labels = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)), torch.arange(64) // 4
    twins = x.clone()
    twins[5] = twins[2]  # of two classes
    for batch in x, twins:
        ours = dissect(build_loss("MultiSimilarityLoss"), batch, labels)
        found = dissect(rivals.MultiSimilarityLoss(), batch, labels)
        assert found.reconstruction_error < 1e-5 and relative_error(found.coefficients, ours.coefficients) < 1e-5
    assert dissect(rivals.SmoothAPLoss(), x, labels).reconstruction_error < 1e-5  # compares class by class


def test_a_step_is_along_the_sphere():
    lengthened = dissect(lambda x, y: of_embeddings(x, y) + x.square().sum(), X, LABELS)
    assert torch.allclose(lengthened.steps, dissect(of_embeddings, X, LABELS).steps)


def test_where_nothing_acts_nothing_is_missing():
    x, labels = torch.eye(3, dtype=torch.float64).repeat_interleave(2, 0), torch.arange(6) // 2
    found = dissect(GradientSurgery("euclidean", "constant", "hinge", "all"), x, labels)
    assert found.active == 0 and found.reconstruction_error == 0


@pytest.mark.parametrize("case, error, message", [
    (dict(loss=3), TypeError, "loss is a int"),
    (dict(sees="pixels"), ValueError, "sees is 'pixels'"),
    (dict(labels=LABELS[:-1]), ValueError, "labels has shape"),
    (dict(labels=torch.zeros(24, dtype=int)), ValueError, "no negative pair"),
    (dict(embeddings=X.detach() * float("nan")), ValueError, "NaN"),
], ids=lambda value: str(value)[:30])
def test_bad_input(case, error, message):
    arguments = dict(loss=soft_pairs, embeddings=X, labels=LABELS) | case
    with pytest.raises(error, match=message):
        dissect(arguments["loss"], arguments["embeddings"], arguments["labels"], sees=arguments.get("sees"))


def test_frame_holds_the_coefficients():
    found = dissect(build_loss("MultiSimilarityLoss"), X, LABELS)
    frame = found.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    pulls = frame[frame["positive"]].groupby("anchor")["coefficient"].sum()
    assert torch.allclose(-torch.tensor(pulls.values), found.attraction[torch.tensor(pulls.index.values)])
