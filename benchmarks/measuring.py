"""What the benchmarks share: timing in turn, peak memory, processes of their own, and what it was measured on.

PyTorch is imported by the functions that need it and not here. A process that starts others must stay small:
on Linux a new process counts what the old one held as its own peak."""

import json
import math
import multiprocessing
import os
import platform
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

PACKAGES = ("gradient_surgery", "pytorch-metric-learning", "torch", "faiss-cpu", "faiss-gpu", "numpy")
SHORTEST = 0.005 # seconds; quicker calls are repeated within one measurement


class Exceeded(Exception):
    "A process took more time or memory than it was given."


# Time

def in_turn(
    calls: dict[str, Callable[[], object]], # what to measure, by name
    *,
    seconds: float, # for each of them, roughly
    synchronise: Callable[[], None] = lambda: None, # waits until the device has finished
) -> tuple[dict[str, float], dict[str, int], dict[str, Exception]]: # medians, repeats, failures
    """The median time of each call in milliseconds. They are called one after the other, round after round,
    so that whatever else the machine does slows all of them: five to fifty rounds, three for a call that
    takes a fifth of `seconds`, one for a call that takes all of it. A first call counts only where it takes ten
    times `seconds`, for it also loads and fetches."""
    def measure(name, number=1):
        synchronise()
        start = time.perf_counter()
        for _ in range(number):
            calls[name]()
        synchronise()
        return (time.perf_counter() - start) / number

    first, failed = {}, {}
    for name in calls: # also the warm-up
        try:
            first[name] = measure(name)
            if first[name] < 10 * seconds: # it also loaded and fetched what later calls find in place
                first[name] = measure(name)
        except Exception as error:
            failed[name] = error
    times = {name: [t] if t > seconds else [] for name, t in first.items()}
    number = {name: max(1, math.ceil(SHORTEST / t)) for name, t in first.items()}
    rounds = {name: _rounds(t * number[name], seconds) for name, t in first.items()}
    for turn in range(max(rounds.values(), default=0)):
        for name in first:
            if turn < rounds[name]:
                times[name].append(measure(name, number[name]))
    milliseconds = {name: 1000 * median(values) for name, values in times.items()}
    return milliseconds, {name: len(values) for name, values in times.items()}, failed


def _rounds(one: float, seconds: float) -> int:
    if one > seconds:
        return 0 # its first call was enough
    return 3 if 5 * one > seconds else min(50, int(seconds / one))


# Memory and processes

def peak_rss() -> float: # in MB
    "The most memory that this process has held at any time."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def in_own_process(
    function: Callable, # of a module; it gets the arguments and returns plain values
    *arguments,
    seconds: float | None = None, # after which it is killed
    gigabytes: float | None = None, # what it may allocate, where the system can limit that
):
    "What a function returns in a new process. Raises `Exceeded`, or `RuntimeError` with the new process's error."
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, gigabytes, function, arguments))
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            raise Exceeded(f"more than {seconds:.0f} s")
        problem, answer = receiver.recv()
        process.join(10) # let it clean up
    except EOFError: # it ended without an answer
        process.join()
        if process.exitcode == -signal.SIGKILL:
            raise Exceeded("killed by the system, which happens for want of memory") from None
        raise RuntimeError(f"{function.__name__} ended with exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if problem == "memory":
        raise Exceeded(f"more than {gigabytes:g} GB")
    if problem:
        raise RuntimeError(answer)
    return answer


def in_this_process(function: Callable, *arguments, **limits):
    "What a function returns, without limits: for a GPU, whose start takes seconds and whose memory PyTorch counts."
    return function(*arguments)


def _answer(sender, gigabytes, function, arguments):
    try:
        if gigabytes:
            limit_memory(gigabytes)
        sender.send((None, function(*arguments)))
    except Exception as error:
        sender.send(("memory" if out_of_memory(error) else "error", traceback.format_exc()))


def limit_memory(gigabytes: float) -> None:
    "Let allocations fail beyond this, before the system picks a process to kill. Linux only; elsewhere without effect."
    resource.setrlimit(resource.RLIMIT_DATA, (int(gigabytes * 2**30), resource.RLIM_INFINITY))


def out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error)


# What it was measured on

def facts(device: str, threads: int | None) -> dict:
    "The machine, the versions and the commit: no names of hosts, users or folders. Call it in a process of its own."
    import torch

    from gradient_surgery.records import commit

    use(device, threads)
    machine = {
        "processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": platform.system(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
    }
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"machine": machine, "versions": versions | {"torch": torch.__version__}, "commit": commit()}


def use(device: str, threads: int | None) -> Callable[[], None]: # waits until the device has finished
    "Prepare this process for a device, before anything else in it. Raises `ValueError` if there is no such device."
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = "" # what takes a GPU where there is one shall find none
    import torch

    if threads:
        torch.set_num_threads(threads)
    if device == "cpu":
        return lambda: None
    if device != "cuda" or not torch.cuda.is_available():
        raise ValueError(f"--device is {device}, and PyTorch finds no such device here; expected cpu, or cuda with a GPU")
    return torch.cuda.synchronize


def settle_allocator() -> None:
    """Have the C library keep freed memory, as it does in any process that has once freed a large block, such as one
    that trains. A fresh process hands it back after every other operation, and what is measured is the fetching."""
    import torch

    torch.zeros(31 * 2**18) # just below the 32 MiB up to which glibc adapts


def _processor() -> str:
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    if sys.platform == "darwin":
        return subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True).stdout.strip()
    return platform.machine()


def write(path: str | Path, result: dict) -> None:
    "The result as JSON, whole or not at all."
    from gradient_surgery.files import replacing

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
