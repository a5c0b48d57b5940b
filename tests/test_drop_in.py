"""Our losses in the place of pytorch-metric-learning's: its miners, its wrappers, its trainer; and as modules that are saved, copied and compiled."""

import copy
import io
import multiprocessing
import pickle

import pytest
import torch
from torch.utils.data import TensorDataset

from gradient_surgery.anatomy import relative_error
from gradient_surgery.distributed import Group
from gradient_surgery.geometry import DIRECTIONS
from gradient_surgery.losses import CATALOGUE, CrossBatchMemory, GradientSurgery, build_loss
from gradient_surgery.mining import MINING
from gradient_surgery.weights import (
    PAIR_WEIGHTS, TRIPLET_WEIGHTS, linear_pair_weight, sigmoid_triplet_weight,
)

losses = pytest.importorskip("pytorch_metric_learning.losses")
from pytorch_metric_learning import miners, trainers

pytestmark = pytest.mark.filterwarnings("ignore")
LABELS = torch.arange(30) % 5
MINERS = {
    "multi-similarity": miners.MultiSimilarityMiner(epsilon=0.0),
    "pair margin": miners.PairMarginMiner(0.3, 0.6),
    "semi-hard triplets": miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard"),
    "hardest triplets": miners.BatchHardMiner(),
}
FOLLOW = [name for name in CATALOGUE if hasattr(losses, name) and build_loss(name, (5, 6)).indices]


@pytest.fixture(autouse=True)
def the_same_batch_in_double_precision():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def gradient(loss, x, *batch):
    x = x.detach().clone().requires_grad_()
    value = loss(x, *batch)
    return torch.autograd.grad(value, x)[0] if value.requires_grad else torch.zeros_like(x)


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("name", FOLLOW)
def test_follows_their_miners(name, miner):
    x, ours, theirs = torch.randn(30, 6), build_loss(name), getattr(losses, name)()
    chosen = MINERS[miner](x, LABELS)
    if len(chosen) not in ours.indices:
        with pytest.raises(ValueError, match=f"indices_tuple has 3 tensors; {name} expects"):
            ours(x, LABELS, chosen)
        return
    expected = gradient(theirs, x, LABELS, chosen)
    assert relative_error(gradient(ours, x, LABELS, chosen), expected) < 1e-10
    assert torch.isclose(ours(x, LABELS, chosen), theirs(x, LABELS, chosen))
    assert relative_error(gradient(ours, x, LABELS), expected) > 1e-9  # the choice matters
    ours.entries, ours.kept = 3 * 30, 0
    assert relative_error(gradient(ours, x, LABELS, chosen), expected) < 1e-10  # in chunks, too


def test_what_follows_a_miner_and_what_does_not():
    assert {"TripletMarginLoss", "MultiSimilarityLoss", "ContrastiveLoss", "NTXentLoss"} <= set(FOLLOW)
    x, chosen = torch.randn(30, 6), MINERS["pair margin"](torch.randn(30, 6), LABELS)
    for name in set(CATALOGUE) - set(FOLLOW) - {"GradientSurgery"}:
        loss = build_loss(name, (5, 6))
        if not loss.indices:
            with pytest.raises(ValueError, match=f"{name} expects None"):
                loss(x, LABELS, chosen)
        loss(x, LABELS, None)


@pytest.mark.parametrize("names", [("cosine", "linear", "sigmoid", "hardest"), ("geodesic", "constant", "hinge", "all")])
def test_a_composition_follows_triplets_and_pairs(names):
    x, loss = torch.randn(30, 6), GradientSurgery(*names)
    triplets = MINERS["hardest triplets"](x, LABELS)
    (a, p, n), first = triplets, gradient(loss, x, LABELS, triplets)
    assert relative_error(gradient(loss, x, LABELS, (a, p, a, n)), first) < 1e-10  # one of each: the same
    twice = tuple(torch.cat([one, one[:3]]) for one in triplets)
    assert relative_error(gradient(loss, x, LABELS, twice), first) > 1e-3  # a triplet counts as often as it is listed


def test_nothing_chosen_is_zero():
    x, none = torch.randn(30, 6), torch.empty(0, dtype=torch.long)
    for name in FOLLOW + ["GradientSurgery"]:
        loss = build_loss(name)
        for length in loss.indices:
            assert gradient(loss, x, LABELS, (none,) * length).abs().max() == 0, (name, length)


def test_mistakes_are_named():
    x, loss = torch.randn(30, 6), build_loss("TripletMarginLoss")
    zero, one, five = torch.tensor([0]), torch.tensor([1]), torch.tensor([5])
    with pytest.raises(ValueError, match="indices_tuple has a positive pair whose labels say otherwise"):
        loss(x, LABELS, (zero, one, one))
    with pytest.raises(ValueError, match="indices_tuple has a negative pair whose labels say otherwise"):
        loss(x, LABELS, (zero, five, five))
    with pytest.raises(ValueError, match="of one embedding with itself"):
        loss(x, LABELS, (zero, zero, one))
    with pytest.raises(ValueError, match="a place below 0"):
        loss(x, LABELS, (zero, five, one - 2))
    with pytest.raises(TypeError, match="indices_tuple is a Tensor; .* References are the next argument"):
        loss(x, LABELS, x, LABELS)
    with pytest.raises(ValueError, match="indices_tuple are places in the batch, which is compared with the memory"):
        CrossBatchMemory(loss, 6, memory_size=40)(x, LABELS, (zero, five, one))
    loss.processes = type("Two", (Group,), {"size": 2})()
    with pytest.raises(ValueError, match="joined over 2; expected None"):
        loss(x, LABELS, (zero, five, one))


@pytest.mark.parametrize("name", ["ContrastiveLoss", "TripletMarginLoss", "MultiSimilarityLoss"])
def test_in_their_wrappers(name):
    x, pair = torch.randn(30, 6), (build_loss(name), getattr(losses, name)())
    several = [losses.MultipleLosses([one, losses.NTXentLoss()], weights=[1, 0.5]) for one in pair]
    assert relative_error(*(gradient(one, x, LABELS) for one in several)) < 1e-6
    views = [losses.SelfSupervisedLoss(one)(x, x + 0.1) for one in pair]
    assert torch.isclose(*views)
    memories = [losses.CrossBatchMemory(one, 6, memory_size=50) for one in pair]
    for _ in range(4):  # the ring is full after two
        x = torch.randn(30, 6)
        assert relative_error(*(gradient(one, x, LABELS) for one in memories)) < 1e-6


@pytest.mark.parametrize("miner", [None, "semi-hard triplets"])
def test_in_their_trainer(miner):
    def trained(loss):
        torch.manual_seed(1)
        trunk, images = torch.nn.Linear(12, 6), torch.randn(60, 12)
        trainers.MetricLossOnly(
            models={"trunk": trunk}, loss_funcs={"metric_loss": loss},
            optimizers={"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.1)},
            mining_funcs={"tuple_miner": MINERS[miner]} if miner else {},
            dataset=TensorDataset(images, torch.arange(60) % 4), batch_size=20,
            dataloader_num_workers=0, data_device="cpu", dtype=torch.float64).train(num_epochs=2)
        return trunk.weight.detach()

    ours, theirs = (kind(margin=0.2) for kind in (CATALOGUE["TripletMarginLoss"], losses.TripletMarginLoss))
    assert relative_error(trained(ours), trained(theirs)) < 1e-8
    if miner is None:  # proxies are not mined
        proxies = build_loss("ProxyAnchorLoss", (4, 6))
        trained(proxies)
        assert all(p.grad is not None for p in proxies.parameters())


VALUES = [
    *(GradientSurgery(*names) for names in zip(DIRECTIONS, PAIR_WEIGHTS, list(TRIPLET_WEIGHTS)[1:], MINING)),
    GradientSurgery("squared", linear_pair_weight(margin=0.5), sigmoid_triplet_weight(scale=3.0, margin=0.1), "all"),
    GradientSurgery(triplet_weight="circle", mining="hardest"), GradientSurgery(triplet_weight="sigmoid", mining="all"),
    *(build_loss(name, (5, 6)) for name in CATALOGUE), CrossBatchMemory(GradientSurgery(), 6, memory_size=40),
]


@pytest.mark.parametrize("loss", VALUES, ids=str)
def test_is_saved_and_copied(loss):
    loss, x = copy.deepcopy(loss).double(), torch.randn(30, 6)
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    again = [pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss), torch.load(file, weights_only=False)]
    expected = gradient(loss, x, LABELS)
    for one in again:
        assert repr(one) == repr(loss)
        assert torch.equal(gradient(one, x, LABELS), expected)
    one.load_state_dict(loss.state_dict())
    assert {name for name, _ in torch.nn.ModuleList([loss]).named_parameters()} == {
        f"0.{name}" for name, _ in loss.named_parameters()}


def in_another_process(loss, x, results):
    results.put(float(loss(x, LABELS)))


def test_is_sent_to_another_process():
    context, loss, x = multiprocessing.get_context("spawn"), GradientSurgery("geodesic", "linear"), torch.randn(30, 6)
    results = context.Queue()
    process = context.Process(target=in_another_process, args=(loss, x, results))
    process.start()
    assert results.get(timeout=120) == pytest.approx(loss(x, LABELS).item())
    process.join()


def test_in_a_compiled_step():
    loss, network = build_loss("MultiSimilarityLoss"), torch.nn.Linear(12, 6)
    images = torch.randn(30, 12)

    def step(images, labels):
        network.zero_grad()
        value = loss(network(images), labels)
        value.backward()
        return value, network.weight.grad.clone()

    torch.compiler.reset()
    for ours, expected in zip(torch.compile(step, backend="eager")(images, LABELS), step(images, LABELS)):
        assert torch.allclose(ours, expected)
    compiled = torch.compile(loss, backend="eager")
    assert torch.allclose(compiled(images[:, :6], LABELS), loss(images[:, :6], LABELS))


def test_a_functional_transform_is_refused():
    with pytest.raises(RuntimeError, match="functorch"):
        torch.func.grad(lambda x: GradientSurgery()(x, LABELS))(torch.randn(30, 6))
