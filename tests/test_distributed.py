"""Two and four processes, each with its part of a batch, have the gradient of one process with all of it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gradient_surgery.anatomy import example_batch, relative_error
from gradient_surgery.distributed import joined
from gradient_surgery.losses import CATALOGUE, CrossBatchMemory, build_loss

SCRIPT = """
import sys, torch, torch.distributed as dist
from gradient_surgery.anatomy import example_batch
from gradient_surgery.distributed import joined
from gradient_surgery.losses import CATALOGUE, build_loss

torch.set_num_threads(1)
if sys.argv[2] == "accelerate":
    from accelerate import Accelerator
    assert Accelerator(cpu=True).num_processes == dist.get_world_size()
else:
    dist.init_process_group("gloo")
x, labels = example_batch()
rank, parts = dist.get_rank(), torch.tensor_split(torch.arange(24), list(map(int, sys.argv[3:])))
mine, found = x.detach()[parts[rank]].requires_grad_(), {}
for name in CATALOGUE:
    torch.manual_seed(0)
    loss = joined(build_loss(name, (6, 8)).double())
    value = loss(mine, labels[parts[rank]])
    found[name] = [value.detach(), *torch.autograd.grad(value, [mine, *loss.parameters()])]
torch.save(found, f"{sys.argv[1]}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("starter, cuts", [
    ("torch", [9, 12, 20]), ("accelerate", [9]),
    ("torch", [23]),  # the second process has one embedding, which is alone in its class
], ids=lambda value: str(value))
def test_the_joined_batch(starter: str, cuts: list[int], tmp_path: Path) -> None:
    processes = len(cuts) + 1
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    arguments = [tmp_path / "script.py", tmp_path, starter, *map(str, cuts)]
    done = subprocess.run([*launch, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(processes)]
    x, labels = example_batch()
    for name in CATALOGUE:
        torch.manual_seed(0)
        loss = build_loss(name, (6, 8)).double()
        value = loss(x, labels)
        expected, *by_parameters = torch.autograd.grad(value, [x, *loss.parameters()])
        found = torch.cat([part[name][1] for part in parts])
        assert relative_error(found, expected) < 1e-10, name
        for part in parts:
            assert torch.isclose(part[name][0], value, rtol=1e-10), name
            for ours, whole in zip(part[name][2:], by_parameters, strict=True):
                assert relative_error(ours, whole) < 1e-10, name


def test_without_a_process_group_it_is_said() -> None:
    with pytest.raises(RuntimeError, match="torchrun"):
        joined(build_loss("ContrastiveLoss"))


def test_what_cannot_be_joined_is_refused() -> None:
    with pytest.raises(TypeError, match="CrossBatchMemory; expected a PairLoss"):
        joined(CrossBatchMemory(build_loss("ContrastiveLoss"), 8))
