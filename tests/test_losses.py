"""What has to hold for every loss and every built-in composition, on batches drawn at random."""

import copy
from itertools import product

import pytest
import torch
from hypothesis import given, settings, strategies as st

from gradient_surgery.anatomy import dissect, relative_error
from gradient_surgery.geometry import DIRECTIONS
from gradient_surgery.losses import CATALOGUE, build_loss
from gradient_surgery.mining import MINING
from gradient_surgery.surgery import GradientSurgery
from gradient_surgery.weights import PAIR_WEIGHTS, TRIPLET_WEIGHTS

COMPOSITIONS = [GradientSurgery(*names) for names in product(DIRECTIONS, PAIR_WEIGHTS, TRIPLET_WEIGHTS, MINING)]
LOSSES = [build_loss(name) for name in CATALOGUE if name != "GradientSurgery"] + COMPOSITIONS


@pytest.fixture(autouse=True)
def the_same_batches_each_time():
    torch.manual_seed(0)


@st.composite
def batches(draw):
    "Random embeddings of any length, with singletons, exact duplicates and opposite vectors among them."
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    number, dimensions = draw(st.integers(4, 14)), draw(st.integers(2, 6))
    x = torch.randn(number, dimensions, dtype=torch.float64, generator=generator)
    x *= 10 ** (4 * torch.rand(number, 1, dtype=torch.float64, generator=generator) - 2)
    labels = torch.randint(draw(st.integers(2, 5)), (number,), generator=generator)
    labels[:3] = torch.tensor([0, 0, 1])  # at least one positive and one negative pair
    if draw(st.booleans()):
        x[1] = x[0]
    if draw(st.booleans()):
        x[2] = -x[0]
    return x, labels


def gradient(loss, x, labels):
    x = x.detach().clone().requires_grad_()
    loss(x, labels).backward()
    return x.grad


@given(batches(), st.sampled_from(LOSSES))
@settings(max_examples=300, deadline=None)
def test_gradient_is_finite_and_tangent(batch, loss):
    x, labels = batch
    g = gradient(loss, x, labels)
    assert g.isfinite().all() and loss(x, labels).isfinite()
    radial = (g * x).sum(1).abs()  # of each embedding; its own scale is |g| |x|
    assert (radial <= 1e-9 * (g.norm(dim=1) * x.norm(dim=1) + 1)).all()


@given(batches(), st.sampled_from(LOSSES))
@settings(max_examples=300, deadline=None)
def test_lengths_do_not_matter(batch, loss):
    x, labels = batch
    lengths = 1 + torch.arange(len(x), dtype=x.dtype)[:, None]
    x = x + 1e-3  # no exact duplicates: there the pull jumps from something to nothing
    assert torch.allclose(loss(x * lengths, labels), loss(x, labels), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_order_and_rotation_do_not_matter(loss):
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(20, 5, dtype=torch.float64, generator=generator), torch.arange(20) % 6
    g, order = gradient(loss, x, labels), torch.randperm(20, generator=generator)
    assert relative_error(gradient(loss, x[order], labels[order]), g[order]) < 1e-10
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=generator)).Q
    assert relative_error(gradient(loss, x @ rotation, labels), g @ rotation) < 1e-8


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_chunks_references_and_dissection_agree(loss):
    generator = torch.Generator().manual_seed(1)
    x, labels = torch.randn(20, 5, dtype=torch.float64, generator=generator), torch.arange(20) % 6
    whole = gradient(loss, x, labels)
    in_chunks = copy.deepcopy(loss)
    in_chunks.entries = 3 * len(x)
    assert relative_error(gradient(in_chunks, x, labels), whole) < 1e-10
    assert dissect(loss, x, labels).reconstruction_error < 1e-10
    anchors, references = x[:8].clone().requires_grad_(), x[8:].clone().requires_grad_()
    value = loss(anchors, labels[:8], references, labels[8:])
    value.backward()
    assert anchors.grad.isfinite().all() and references.grad.isfinite().all() and references.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(loss, dtype):
    generator = torch.Generator().manual_seed(2)
    x, labels = torch.randn(24, 16, generator=generator).to(dtype), torch.arange(24) % 6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        g = gradient(loss, x, labels)
    assert g.dtype == dtype
    exact = gradient(loss, x.float(), labels)  # of the same, rounded, embeddings
    assert relative_error(g.float(), exact) < torch.finfo(dtype).eps


@pytest.mark.parametrize("loss", [build_loss(name) for name in CATALOGUE], ids=str)
def test_behaves_like_a_module(loss):
    x, labels = torch.randn(8, 4), torch.arange(8) % 3
    again = copy.deepcopy(loss)
    assert again(x, labels) == loss(x, labels)
    assert repr(loss).startswith(type(loss).__name__ + "(") and loss.components._fields
    assert loss(x, labels).requires_grad is False
    with torch.no_grad():
        assert loss(x.requires_grad_(), labels).requires_grad is False


@pytest.mark.parametrize("name", ["ContrastiveLoss", "TripletMarginLoss", "MultiSimilarityLoss"])
def test_equals_pytorch_metric_learning(name):
    rivals = pytest.importorskip("pytorch_metric_learning.losses")
    x, labels = torch.randn(40, 8, dtype=torch.float64), torch.arange(40) % 7
    ours, theirs = build_loss(name), getattr(rivals, name)()
    assert torch.isclose(ours(x, labels), theirs(x, labels), rtol=1e-6)
    assert relative_error(gradient(ours, x, labels), gradient(theirs, x, labels)) < 1e-6


@pytest.mark.gpu
def test_every_loss_on_a_gpu():
    x, labels = torch.randn(40, 8, dtype=torch.float64), torch.arange(40) % 7
    for loss in LOSSES:
        assert relative_error(gradient(loss, x.cuda(), labels).cpu(), gradient(loss, x, labels)) < 1e-10, loss


def test_a_gradient_scaler_saves_small_gradients():
    x, labels = 500 * torch.randn(24, 16), torch.arange(24) % 6
    loss, half = build_loss("MultiSimilarityLoss"), x.half().requires_grad_()
    exact = gradient(loss, half.float(), labels)
    assert exact.abs().max() < 1e-4  # so small that float16 keeps only few bits of it
    (loss(half, labels) * 2**16).backward()
    assert relative_error(half.grad.float() / 2**16, exact) < torch.finfo(torch.float16).eps


def test_second_derivative_is_refused():
    x, labels = torch.randn(8, 4, requires_grad=True), torch.arange(8) % 3
    (g,) = torch.autograd.grad(build_loss("MultiSimilarityLoss")(x, labels), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad|once_differentiable"):
        g.sum().backward()
