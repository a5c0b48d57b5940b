"""A batch in parts: the gradient of the whole, a second pass that is the same as the first, and memory that does not grow."""

import copy
import tempfile

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import given, settings, strategies as st
from torch import nn

from gradient_surgery.anatomy import relative_error
from gradient_surgery.large_batches import InMicroBatches, peak_memory
from gradient_surgery.losses import CrossBatchMemory, MultiSimilarityLoss, ProxyAnchorLoss

LOSSES = {
    "MultiSimilarityLoss": lambda: MultiSimilarityLoss(),
    "ProxyAnchorLoss": lambda: ProxyAnchorLoss(5, 6),
    "CrossBatchMemory": lambda: CrossBatchMemory(MultiSimilarityLoss(), 6, memory_size=100),
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class RunningScale(nn.Module):
    "Divides by a running deviation: a buffer that it changes and then uses."

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("deviation", torch.ones(channels))

    def forward(self, x):
        self.deviation.mul_(0.9).add_(0.1 * x.detach().std((0, 2, 3)))
        return x / self.deviation.clone()[:, None, None]


LAYERS = {
    "group normalisation": lambda: nn.GroupNorm(2, 8),
    "dropout": lambda: nn.Dropout(0.5),
    "batch normalisation": lambda: nn.BatchNorm2d(8),
    "spectral normalisation": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)),
    "a running scale": lambda: RunningScale(8),
}


def small_network(layer="group normalisation"):
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3, 2, 1), LAYERS[layer](), nn.ReLU()
    return nn.Sequential(*first, nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 6))


def batch(number=40, dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(number) % 5
    images = torch.randn(5, 3, 1, 1, generator=generator)[labels] + 0.5 * torch.randn(number, 3, 12, 12, generator=generator)
    return images.to(device, dtype), labels.to(device)


class KeepingAll(InMicroBatches):
    "The same parts with all their feature maps kept: what the second pass has to come to."

    def forward(self, images):
        return torch.cat([self.network(part) for part in images.split(self.micro_batch)])


def gradient(*modules):
    return torch.cat([p.grad.flatten() for module in modules for p in module.parameters()])


def step(model, loss, images, labels, backward=torch.Tensor.backward):
    value = loss(model(images), labels)
    backward(value)
    return value.detach()


@pytest.mark.parametrize("name", LOSSES)
@given(number=st.integers(10, 40), micro_batch=st.integers(1, 50))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_gradient_is_that_of_the_whole_batch(name, number, micro_batch):
    for dtype, limit in ((torch.float64, 1e-10), (torch.float32, 1e-6)):
        results = []
        for size, dtype in ((number, torch.float64), (micro_batch, dtype)):  # against the exact one, not another rounding
            network = small_network().to(dtype)
            loss = LOSSES[name]().to(dtype)
            value = step(InMicroBatches(network, micro_batch=size), loss, *batch(number, dtype))
            results.append((gradient(network, loss).double(), value.double()))
        assert relative_error(results[1][0], results[0][0]) < limit
        assert torch.isclose(results[1][1], results[0][1], rtol=limit)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layer", LAYERS)
def test_second_pass_is_the_same_as_the_first(layer, device):
    results = []
    for kind in (InMicroBatches, KeepingAll):
        network = small_network(layer).to(device, torch.float64)
        torch.manual_seed(1)
        for _ in range(2):  # the second step starts from what the first left
            step(kind(network, micro_batch=7), MultiSimilarityLoss(), *batch(device=device))
        results.append((gradient(network), *network.buffers(), torch.rand(3, device=device), torch.rand(3)))
    for ours, expected in zip(*results, strict=True):
        assert torch.allclose(ours, expected, rtol=1e-10, atol=1e-12)


def test_batch_statistics_are_those_of_a_part():
    layer, gradients = "batch normalisation", {}
    for training in (True, False):
        for size in (40, 8):
            network = small_network(layer).double()
            network[1].train(training)
            step(InMicroBatches(network, micro_batch=size), MultiSimilarityLoss(), *batch())
            assert network[1].num_batches_tracked == (40 // size if training else 0)  # once for each part
            gradients[training, size] = gradient(network)
    assert relative_error(gradients[True, 8], gradients[True, 40]) > 1e-3
    assert relative_error(gradients[False, 8], gradients[False, 40]) < 1e-10


def test_loss_is_called_once_and_sees_the_whole_batch():
    seen, loss = [], LOSSES["CrossBatchMemory"]().double()
    loss.register_forward_pre_hook(lambda module, arguments: seen.append(len(arguments[0])))
    network, (images, labels) = small_network().double(), batch()
    step(InMicroBatches(network, micro_batch=7), loss, images, labels)
    assert seen == [40] and loss.filled == loss.position == 40
    assert torch.allclose(loss.embedding_memory[:40], network(images), rtol=1e-10)


def test_without_a_gradient_it_only_embeds():
    network, (images, _) = small_network("batch normalisation").double().eval(), batch()
    before = copy.deepcopy(network.state_dict())
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.allclose(InMicroBatches(network, micro_batch=7)(images), network(images), rtol=1e-10)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_gradient_reaches_the_images_and_can_be_asked_for_twice():
    network, (images, labels) = small_network().double(), batch()
    images.requires_grad_()
    (expected,) = torch.autograd.grad(MultiSimilarityLoss()(network(images), labels), images)
    value = MultiSimilarityLoss()(InMicroBatches(network, micro_batch=7)(images), labels)
    for _ in range(2):
        (found,) = torch.autograd.grad(value, images, retain_graph=True)
        assert relative_error(found, expected) < 1e-10


@pytest.mark.parametrize("device", DEVICES)
def test_scaled_gradients_in_half_precision(device):
    kind, results = torch.float16 if device == "cuda" else torch.bfloat16, []
    for size in (400, 1):
        network = small_network().to(device)
        scaler = torch.amp.GradScaler(device, init_scale=2.0**10)
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        images, labels = batch(400, torch.float32, device)
        with torch.autocast(device, dtype=kind):
            embeddings = InMicroBatches(network, micro_batch=size)(images)
        scaler.scale(MultiSimilarityLoss()(embeddings, labels)).backward()
        scaler.unscale_(optimizer)
        results.append((embeddings.dtype, gradient(network)))
    assert results[0][0] == results[1][0] == kind
    # rounded no more than a single part: the gradients of all are added up in float32
    assert relative_error(results[1][1], results[0][1]) < torch.finfo(kind).eps


@pytest.fixture
def another_precision():
    "accelerate holds a process to the first precision that it was given."
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("precision, limit", [("no", 1e-6), ("bf16", 0.02)])
def test_with_accelerate(precision, limit, another_precision):
    results = []
    for size in (40, 7):
        accelerator = Accelerator(mixed_precision=precision, cpu=True)
        network, loss = small_network(), ProxyAnchorLoss(5, 6)
        model = accelerator.prepare(InMicroBatches(network, micro_batch=size))
        step(model, loss, *batch(dtype=torch.float32), backward=accelerator.backward)
        results.append(gradient(network, loss))
    assert relative_error(results[1], results[0]) < limit


def test_processes_exchange_their_gradients_once():
    exchanged, (images, labels) = [], batch()

    def exchange(state, bucket):
        exchanged.append(len(bucket.parameters()))
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            network, alone = small_network().double(), small_network().double()
            model = nn.parallel.DistributedDataParallel(InMicroBatches(network, micro_batch=7))
            model.register_comm_hook(None, exchange)
            step(model, MultiSimilarityLoss(), images, labels)
        finally:
            torch.distributed.destroy_process_group()
    step(alone, MultiSimilarityLoss(), images, labels)
    assert exchanged == [len(list(network.parameters()))]
    assert relative_error(gradient(network), gradient(alone)) < 1e-10


def test_memory_does_not_grow_with_the_batch():
    network, peaks = small_network(), {}
    for number in (40, 400):
        images, labels = batch(number, torch.float32)
        for size in (20, number):
            model = InMicroBatches(network, micro_batch=size)
            network.zero_grad()
            peaks[number, size] = peak_memory(lambda: step(model, ProxyAnchorLoss(5, 6), images, labels))
    assert peaks[400, 400] > 8 * peaks[40, 40]
    assert peaks[400, 20] < 1.5 * peaks[40, 20]


def test_memory_is_counted():
    there = torch.zeros(1000)
    assert peak_memory(lambda: [torch.zeros(1000).sum().item() for _ in range(9)]) < 2 * 4000
    assert peak_memory(lambda: [torch.zeros(1000) for _ in range(9)]) == 9 * 4000
    assert peak_memory(lambda: there.view(10, 100).add_(1)) == 0
    assert peak_memory(lambda: None) == 0


@pytest.mark.parametrize("micro_batch", [0, -3, 2.5, "8", None])
def test_a_wrong_size_is_named(micro_batch):
    with pytest.raises(ValueError, match=f"micro_batch is {micro_batch!r}; expected a whole number of at least 1"):
        InMicroBatches(nn.Identity(), micro_batch=micro_batch)


def test_says_what_it_is():
    assert "micro_batch=8" in repr(InMicroBatches(nn.Identity(), micro_batch=8))
