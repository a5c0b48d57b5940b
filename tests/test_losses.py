"""What has to hold for every loss and every built-in composition, on batches drawn at random."""

import ast
import copy
import inspect
import json
import math
import warnings
from itertools import product
from pathlib import Path
from statistics import median

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from torch.nn.functional import normalize

from gradient_surgery.anatomy import dissect, relative_error
from gradient_surgery.geometry import DIRECTIONS, Direction
from gradient_surgery.losses import CATALOGUE, FAMILIES, CrossBatchMemory, build_loss
from gradient_surgery.mining import MINING
from gradient_surgery.proxy_loss import ProxyLoss, proxy_gradient_error
from gradient_surgery.surgery import GradientSurgery
from gradient_surgery.weights import (
    PAIR_WEIGHTS, TRIPLET_WEIGHTS, PairWeight, constant_pair_weight, hinge_triplet_weight)

COMPOSITIONS = [GradientSurgery(*names) for names in product(DIRECTIONS, PAIR_WEIGHTS, TRIPLET_WEIGHTS, MINING)]
# other arguments than the defaults, where they take another path through the code
VARIANTS = [
    ("TripletMarginLoss", dict(smooth_loss=True)),
    ("TripletMarginLoss", dict(swap=True, margin=0.2)),
    ("TripletMarginLoss", dict(swap=True, smooth_loss=True, direction="geodesic")),
    ("MarginLoss", dict(learn_beta=True, nu=0.1)),
    ("MarginLoss", dict(learn_beta=True, nu=0.1, num_classes=6)),
    ("MultiSimilarityLoss", dict(epsilon=0.1)),
    ("CircleLoss", dict(detached=False)),
]
PLAIN = [(name, {}) for name in CATALOGUE if name != "GradientSurgery"] + VARIANTS


def built(chosen, dimensions=5):
    "A loss from its name and options; anything else is one already."
    if not isinstance(chosen, tuple):
        return chosen
    torch.manual_seed(0)
    return build_loss(chosen[0], (6, dimensions), **chosen[1]).double()


ALL = PLAIN + COMPOSITIONS
name_of = lambda chosen: " ".join(map(str, chosen)) if isinstance(chosen, tuple) else str(chosen)


@pytest.fixture(autouse=True)
def the_same_batches_each_time():
    torch.manual_seed(0)


@st.composite
def batches(draw):
    "Embeddings of any length, with singletons, duplicates, opposite and nearly equal vectors, and one-sided classes."
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    number, dimensions = draw(st.integers(4, 14)), draw(st.integers(3, 6))
    x = torch.randn(number, dimensions, dtype=torch.float64, generator=generator)
    x *= 10 ** (4 * torch.rand(number, 1, dtype=torch.float64, generator=generator) - 2)
    labels = torch.randint(draw(st.integers(2, 5)), (number,), generator=generator)
    if draw(st.booleans()):  # one negative against all others
        labels[3:] = 0
    labels[:3] = torch.tensor([0, 0, 1])  # at least one positive and one negative pair
    if draw(st.booleans()):
        x[1] = 2 * x[0]  # a positive in the same place
    if draw(st.booleans()):
        x[2] = draw(st.sampled_from([-1.0, 1.0, 1 + 1e-9])) * x[0]  # a negative opposite, or in the same place
    return x, labels


def gradient(loss, x, labels):
    x = x.detach().clone().requires_grad_()
    loss(x, labels).backward()
    return x.grad


@given(batches(), st.sampled_from(ALL))
@settings(max_examples=500, deadline=None)
def test_gradient_is_finite_and_tangent(batch, chosen):
    x, labels = batch
    loss = built(chosen, x.shape[1])
    g = gradient(loss, x, labels)
    assert g.isfinite().all() and loss(x, labels).isfinite()
    radial = (g * x).sum(1).abs()  # of each embedding; its own scale is |g| |x|
    assert (radial <= 1e-9 * (g.norm(dim=1) * x.norm(dim=1) + 1)).all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in loss.parameters())


@given(batches(), st.sampled_from(ALL))
@settings(max_examples=300, deadline=None)
def test_lengths_do_not_matter(batch, chosen):
    x, labels = batch
    loss = built(chosen, x.shape[1])
    lengths = 1 + torch.arange(len(x), dtype=x.dtype)[:, None]
    x = x + 0.01 * x.norm(dim=1, keepdim=True) * torch.randn_like(x)  # no duplicates: there the pull jumps from something to nothing
    assert torch.allclose(loss(x * lengths, labels), loss(x, labels), rtol=1e-6, atol=1e-9)


def exchanged(labels):
    "An order of the batch that mixes the classes and keeps the order within each: N-pairs takes the first two."
    return torch.randperm(6)[labels].argsort(stable=True)


def rotated(loss, rotation):
    "The same loss with its proxies turned as the embeddings are."
    loss = copy.deepcopy(loss)
    for name, p in loss.named_parameters() if isinstance(loss, ProxyLoss) else ():
        p.data = p.data @ rotation if name == "proxies" else rotation.T @ p.data
    return loss


@pytest.mark.parametrize("chosen", ALL, ids=name_of)
def test_order_and_rotation_do_not_matter(chosen):
    loss, generator = built(chosen), torch.Generator().manual_seed(0)
    x, labels = torch.randn(20, 5, dtype=torch.float64, generator=generator), torch.arange(20) % 6
    g = gradient(loss, x, labels)
    order = exchanged(labels) if type(loss).__name__ == "NPairsLoss" else torch.randperm(20, generator=generator)
    assert relative_error(gradient(loss, x[order], labels[order]), g[order]) < 1e-10
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=generator)).Q
    if type(loss).__name__ == "SignalToNoiseRatioContrastiveLoss":  # the mean over dimensions must stay where it is
        towards_mean = torch.eye(5, dtype=x.dtype)
        towards_mean[:, 0] = 1
        basis = torch.linalg.qr(towards_mean).Q
        turn = torch.block_diag(torch.ones(1, 1, dtype=x.dtype), rotation[:4, :4])
        rotation = basis @ torch.linalg.qr(turn).Q @ basis.T
    turned = gradient(rotated(loss, rotation), x @ rotation, labels)
    assert relative_error(turned, g @ rotation) < 1e-8


@pytest.mark.parametrize("chosen", ALL, ids=name_of)
def test_chunks_references_and_dissection_agree(chosen):
    loss, generator = built(chosen), torch.Generator().manual_seed(1)
    x, labels = torch.randn(20, 5, dtype=torch.float64, generator=generator), torch.arange(20) % 6
    whole = gradient(loss, x, labels)
    in_chunks = copy.deepcopy(loss)
    in_chunks.entries = 3 * len(x)
    assert relative_error(gradient(in_chunks, x, labels), whole) < 1e-10
    in_chunks.kept = 0  # as if the batch were too large for its coefficients to be held
    assert relative_error(gradient(in_chunks, x, labels), whole) < 1e-10
    assert dissect(loss, x, labels).reconstruction_error < 1e-10
    if isinstance(loss, ProxyLoss):  # it has references of its own
        return
    anchors, references = x[:8].clone().requires_grad_(), x[8:].clone().requires_grad_()
    value = loss(anchors, labels[:8], None, references, labels[8:])
    value.backward()
    assert anchors.grad.isfinite().all() and references.grad.isfinite().all() and references.grad.abs().sum() > 0


def is_a_derivative(chosen):
    loss = built(chosen)
    return not getattr(loss, "detached", False) and getattr(loss, "integrable", True)


@pytest.mark.parametrize("chosen", [chosen for chosen in ALL if is_a_derivative(chosen)], ids=name_of)
def test_gradient_is_the_derivative_of_the_value(chosen):
    loss, generator = built(chosen), torch.Generator().manual_seed(3)
    x, labels = torch.randn(16, 5, dtype=torch.float64, generator=generator), torch.arange(16) % 5
    g, along = gradient(loss, x, labels), torch.randn(16, 5, dtype=torch.float64, generator=generator)
    h = 1e-6
    with torch.no_grad():
        difference = (loss(x + h * along, labels) - loss(x - h * along, labels)) / (2 * h)
    slope = (g * along).sum()
    assert abs(difference - slope) <= 1e-5 * (abs(slope) + g.norm())


@pytest.mark.parametrize("chosen", ALL, ids=name_of)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(chosen, dtype):
    loss, generator = built(chosen, 16), torch.Generator().manual_seed(2)
    loss = loss.float()
    x, labels = torch.randn(24, 16, generator=generator).to(dtype), torch.arange(24) % 6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        g = gradient(loss, x, labels)
    assert g.dtype == dtype
    exact = gradient(loss, x.float(), labels)  # of the same, rounded, embeddings
    assert relative_error(g.float(), exact) < torch.finfo(dtype).eps


@pytest.mark.parametrize("chosen", PLAIN + [GradientSurgery()], ids=name_of)
def test_float32_is_near_float64(chosen):
    loss, generator = built(chosen, 16), torch.Generator().manual_seed(4)
    x, labels = torch.randn(24, 16, generator=generator), torch.arange(24) % 6
    exact = gradient(loss, x.double(), labels)
    assert relative_error(gradient(loss.float(), x, labels).double(), exact) < 1e-3


@pytest.mark.parametrize("chosen", PLAIN + [GradientSurgery()], ids=name_of)
def test_behaves_like_a_module(chosen):
    loss = built(chosen)
    x, labels = torch.randn(8, 5), torch.arange(8) % 3
    again = copy.deepcopy(loss)
    assert again(x, labels) == loss(x, labels)
    again.load_state_dict(loss.state_dict())
    assert repr(loss).startswith(type(loss).__name__ + "(") and loss.components._fields
    if isinstance(chosen, tuple):
        assert all(f"{option}=" in repr(loss) for option in chosen[1])
    with torch.no_grad():
        assert loss(x.requires_grad_(), labels).requires_grad is False


RIVALS = pytest.importorskip("pytorch_metric_learning.losses")
SHARED = [
    (name, options) for name, options in PLAIN
    if hasattr(RIVALS, name) and not {"direction", "epsilon", "detached"} & set(options)]


def rival_of(name, options, loss):
    "The rival's loss with the same arguments and the same proxies."
    if isinstance(loss, ProxyLoss):
        options = options | dict(num_classes=6, embedding_size=8)
    if name == "RankedListLoss":
        options = options | dict(margin=0.4, Tn=10)
    rival = getattr(RIVALS, name)(**options).double()
    if list(loss.parameters()):
        rival.load_state_dict(loss.state_dict())
    if name == "AngularLoss":  # it forgets to normalise the negatives
        return lambda x, labels: rival(normalize(x), labels)
    return rival


@pytest.fixture
def in_double():
    "The rival makes some of its constants in the default type."
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("chosen", SHARED, ids=name_of)
@pytest.mark.parametrize("labels", [torch.arange(40) % 6, torch.cat([torch.zeros(5, dtype=int), torch.arange(1, 6)])])
def test_equals_pytorch_metric_learning(chosen, labels, in_double):
    if "SmoothAPLoss" in chosen:  # it wants as many classes as members of each, in this order
        labels = torch.arange(16) // 4
    loss = built(chosen, 8)
    rival = rival_of(*chosen, loss)
    x = torch.randn(len(labels), 8, dtype=torch.float64)
    assert torch.isclose(loss(x, labels), rival(x, labels).squeeze(), rtol=1e-6)
    ours, theirs = gradient(loss, x, labels), gradient(rival, x, labels)
    assert (ours - theirs).norm() <= 1e-6 * theirs.norm()  # N-pairs of a single class is zero


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("in_double")
@given(batches(), st.sampled_from([c for c in SHARED if c[0] not in ("SmoothAPLoss", "AngularLoss")]))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equals_pytorch_metric_learning_on_any_batch(batch, chosen):
    x, labels = batch
    cosines = normalize(x) @ normalize(x).T
    assume(cosines.triu(1).abs().max() < 0.9999)  # at duplicates the rival's derivative may be infinite
    x = torch.nn.functional.pad(x, (0, 8 - x.shape[1]))
    loss = built(chosen, 8)
    rival = rival_of(*chosen, loss)
    ours, theirs = gradient(loss, x, labels), gradient(rival, x, labels)
    assert (ours - theirs).norm() <= 1e-6 * theirs.norm() + 1e-9


@pytest.mark.parametrize("name", ["ContrastiveLoss", "TripletMarginLoss", "MultiSimilarityLoss", "SupConLoss"])
def test_memory_equals_pytorch_metric_learning(name):
    ours = CrossBatchMemory(build_loss(name), 8, memory_size=24)
    theirs = RIVALS.CrossBatchMemory(getattr(RIVALS, name)(), 8, memory_size=24)
    for _ in range(5):  # the ring is full after three
        x, labels = torch.randn(10, 8, dtype=torch.float64), torch.randint(4, (10,))
        assert relative_error(gradient(ours, x, labels), gradient(theirs, x, labels)) < 1e-6
    x, labels = torch.randn(10, 8, dtype=torch.float64), torch.randint(4, (10,))
    again = CrossBatchMemory(build_loss(name), 8, memory_size=24)
    again.load_state_dict(ours.state_dict())
    assert relative_error(gradient(again, x, labels), gradient(ours, x, labels)) < 1e-6
    assert dissect(ours, torch.randn_like(x), labels).reconstruction_error < 1e-10


def code_lines(kind):
    "The lines of a class without blanks, comments and docstrings."
    source = inspect.getsource(kind)
    without = [line for line in source.splitlines() if line.strip() and not line.strip().startswith("#")]
    strings = sum(
        node.end_lineno - node.lineno + 1 for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str))
    return len(without) - strings


def test_a_loss_is_a_dozen_lines():
    lines = {name: code_lines(kind) for name, kind in CATALOGUE.items() if name != "GradientSurgery"}
    assert len(lines) >= 28
    assert median(lines.values()) <= 12, sorted(lines.items(), key=lambda one: one[1])


def test_every_loss_has_its_page_with_all_sections():
    folder = Path(__file__).resolve().parent.parent / "nbs" / "losses"
    pages = {}
    for path in folder.glob("*.ipynb"):
        text = "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
        for kind in (kind for family in FAMILIES.values() for kind in family):
            if f"class {kind.__name__}(" in text:
                pages[kind.__name__] = text
    assert set(pages) == set(CATALOGUE) - {"GradientSurgery"}
    for name, text in pages.items():
        for section in ("# ", "## What it wants", "## Its gradient", "## The code", "## Proof", "## Picture", "## What to notice"):
            assert f"\n{section}" in "\n" + text, (name, section)
        assert "gradient_error" in text and "autograd" in text and "show_" in text, name


def gradient_of(loss, x, labels):
    return torch.autograd.grad(loss(x, labels), x)[0]


@pytest.mark.parametrize("chosen", PLAIN + [GradientSurgery()], ids=name_of)
def test_a_fused_loss_has_the_same_gradient(chosen, request):
    if request.config.getoption("--device") != "cpu" and "learn_beta" in str(chosen):
        pytest.skip("the option --device brings a learned threshold in a way that cannot be compiled")
    loss = built(chosen)
    x, labels = torch.randn(24, 5, dtype=torch.float64, requires_grad=True), torch.arange(24) // 4
    plain = gradient_of(loss, x, labels)
    loss.compile(backend="eager") # traced as for any backend, which needs no compiler
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning) # the traced function runs, and not its stand-in
        assert relative_error(gradient_of(loss, x, labels), plain) < 1e-12
        assert relative_error(gradient_of(copy.deepcopy(loss), x, labels), plain) < 1e-12


def test_a_loss_that_cannot_be_fused_goes_on_with_a_warning():
    def no_compiler(graph, inputs):
        raise RuntimeError("there is no compiler")

    loss, x, labels = build_loss("NTXentLoss"), torch.randn(8, 4, requires_grad=True), torch.arange(8) // 2
    plain = gradient_of(loss, x, labels)
    loss.compile(backend=no_compiler)
    with pytest.warns(UserWarning, match="NTXentLoss.rows could not be compiled.*there is no compiler"):
        assert torch.equal(gradient_of(loss, x, labels), plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error") # it is said once
        assert torch.equal(gradient_of(loss, x, labels), plain)


def test_an_error_of_a_fused_loss_is_its_own():
    loss = build_loss("MarginLoss", num_classes=2, learn_beta=True)
    loss.compile(backend="eager")
    with pytest.raises(ValueError, match="labels contain 3; expected 0 to 1"):
        loss(torch.randn(8, 4), torch.arange(8) // 2)


def test_a_gradient_that_is_no_number_proves_nothing():
    loss = built(("NormalizedSoftmaxLoss", {}))
    x, labels = torch.randn(8, 5, dtype=torch.float64), torch.arange(8) // 2
    of_infinity = lambda x, labels: loss(x, labels) + (loss.proxies * 0).sum().sqrt()  # by the proxies alone
    assert proxy_gradient_error(loss, loss, x, labels) == 0
    assert math.isnan(proxy_gradient_error(loss, of_infinity, x, labels))


def test_a_compiler_is_given_its_options():
    seen = []
    def backend(graph, inputs, options=None):
        seen.append(options)
        return graph

    loss, x, labels = build_loss("NTXentLoss"), torch.randn(8, 4, requires_grad=True), torch.arange(8) // 2
    plain = gradient_of(loss, x, labels)
    loss.compile(backend=backend, options={"max_autotune": True})
    assert relative_error(gradient_of(loss, x, labels), plain) < 1e-6
    assert seen and all(options == {"max_autotune": True} for options in seen)


@pytest.mark.parametrize("mining", MINING)
def test_nobody_has_a_positive(mining):
    x, labels = torch.randn(40, 5, dtype=torch.float64, requires_grad=True), torch.arange(40) // 2
    none = torch.zeros(0, dtype=torch.long)
    nobody = none, none, torch.tensor([0, 4]), torch.tensor([2, 1])  # of a miner that found no positive pair
    loss = GradientSurgery(mining=mining)
    assert (torch.autograd.grad(loss(x, labels, nobody), x)[0] == 0).all()
    labels = torch.cat([torch.arange(20) // 2, torch.arange(100, 120)])  # a chunk of rows without one
    whole, chunked = GradientSurgery(mining=mining), GradientSurgery(mining=mining)
    chunked.entries = 10 * 40
    assert relative_error(gradient_of(chunked, x, labels), gradient_of(whole, x, labels)) < 1e-10


@pytest.mark.parametrize("chosen", [one for one in PLAIN if not isinstance(built(one), ProxyLoss)], ids=name_of)
def test_coefficients_of_singletons_alone(chosen):
    value, C = built(chosen).coefficients(torch.rand(5, 5, dtype=torch.float64), torch.arange(5))
    assert value.isfinite() and C.isfinite().all()


def test_a_slope_may_be_infinite_where_nothing_acts():
    chord = Direction("chord", lambda s: (2 - 2 * s).clamp(min=0).sqrt(), lambda s: (2 - 2 * s).clamp(min=0).rsqrt())
    x, labels = torch.randn(40, 5, dtype=torch.float64, requires_grad=True), torch.arange(40) // 3
    x.data = torch.cat([torch.eye(5, dtype=torch.float64), x[5:]])  # s = 1 without rounding
    for names in product(PAIR_WEIGHTS, TRIPLET_WEIGHTS, MINING):
        ours, known = GradientSurgery(chord, *names), GradientSurgery("euclidean", *names)
        assert torch.isclose(ours(x, labels), known(x, labels)), names
        assert relative_error(gradient_of(ours, x, labels), gradient_of(known, x, labels)) < 1e-10, names


def test_a_triplet_weight_with_a_gap_of_its_own_keeps_it_over_all_triplets():
    hinge = hinge_triplet_weight()._replace(gap=lambda s_ap, s_an: 3 * (s_an - s_ap))
    x, labels = torch.randn(24, 5, dtype=torch.float64, requires_grad=True), torch.arange(24) // 4
    one_by_one = GradientSurgery("geodesic", "constant", hinge._replace(over_all=None), "all")
    assert torch.equal(
        gradient_of(GradientSurgery("geodesic", "constant", hinge, "all"), x, labels), gradient_of(one_by_one, x, labels))


def test_what_is_integrable_is_told_by_what_it_is_and_not_by_its_name():
    weak = PairWeight("constant", lambda s: 0.1 * torch.ones_like(s), torch.ones_like)
    assert not GradientSurgery("euclidean", weak, "sigmoid", "all").integrable
    assert not GradientSurgery("euclidean", "linear", hinge_triplet_weight()._replace(name="constant")).integrable
    assert GradientSurgery("euclidean", constant_pair_weight()._replace(name="mine"), "sigmoid").integrable
    x, step = torch.randn(2, 9, 4, dtype=torch.float64)
    loss, labels, x = GradientSurgery("euclidean", weak, "constant", "all"), torch.arange(9) // 3, x.requires_grad_()
    given = loss(x + 1e-6 * step, labels) - loss(x - 1e-6 * step, labels)
    expected = 2e-6 * (torch.autograd.grad(loss(x, labels), x)[0] * step).sum()
    assert loss.integrable and torch.isclose(given, expected, rtol=1e-5)  # the works, a tenth of the pull's
    assert all(copy.deepcopy(one).integrable == one.integrable for one in COMPOSITIONS)


def test_a_miner_of_ones_own_may_have_any_name():
    def all(similarity, positives, negatives):
        return MINING["hardest"](similarity, positives, negatives)

    x, labels = torch.randn(9, 4, dtype=torch.float64, requires_grad=True), torch.arange(9) // 3
    losses = [GradientSurgery(mining=mining) for mining in (all, "hardest", "all", MINING["all"])]
    own, hardest, every, by_object = (torch.autograd.grad(loss(x, labels), x)[0] for loss in losses)
    assert own.equal(hardest) and every.equal(by_object) and not own.allclose(every)
    assert [loss.mining_name for loss in losses] == ["custom", "hardest", "all", "all"]


def test_lifted_structure_of_one_class_has_no_coefficients():
    _, C = build_loss("LiftedStructureLoss").coefficients(torch.eye(4), torch.zeros(4, dtype=torch.long))
    assert C.equal(torch.zeros(4, 4))


def test_memory_of_a_miner_of_ones_own_is_bounded():
    sizes = []
    def own(similarity, positives, negatives):
        sizes.append(len(similarity))
        return MINING["all"](similarity, positives, negatives)

    loss = GradientSurgery(mining=own)
    loss.entries = loss.on_gpu = 24 * 24
    gradient_of(loss, torch.randn(24, 5, requires_grad=True), torch.arange(24) // 4)
    assert max(sizes) == 6  # each of its rows has four in its class


@pytest.mark.gpu
def test_every_loss_on_a_gpu():
    x, labels = torch.randn(40, 8, dtype=torch.float64), torch.arange(40) % 6
    for chosen in ALL:
        loss = built(chosen, 8)
        there = copy.deepcopy(loss).cuda()
        assert relative_error(gradient(there, x.cuda(), labels).cpu(), gradient(loss, x, labels)) < 1e-10, chosen


@pytest.mark.gpu
@pytest.mark.parametrize("chosen", PLAIN + [GradientSurgery()], ids=name_of)
def test_dissection_on_a_gpu(chosen):
    x, labels = torch.randn(40, 8, dtype=torch.float64), torch.arange(40) % 6
    here = dissect(built(chosen, 8), x, labels)
    for where in "cpu", "cuda":
        there = dissect(built(chosen, 8).cuda(), x.cuda(), labels.to(where))
        assert there.reconstruction_error < 1e-8
        assert relative_error(there.coefficients.cpu(), here.coefficients) < 1e-8


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
