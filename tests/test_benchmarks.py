"""The benchmarks run at tiny sizes and write what the page on speed reads. What they measure is not judged here."""

import importlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest


def run(root: Path, script: str, output: Path, *words: str) -> dict:
    command = [sys.executable, f"benchmarks/{script}.py", "--threads", "1", "--output", str(output), *words]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    text = output.read_text(encoding="utf-8")
    for private in (platform.node(), str(root), str(Path.home())):
        assert len(private) < 3 or private not in text
    result = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    assert result["benchmark"] == script
    assert {"processor", "cores", "threads", "memory_gb", "system", "gpu"} == set(result["machine"])
    assert result["machine"]["processor"] and result["machine"]["threads"] == 1
    assert {"python", "torch", "gradient_surgery"} <= set(result["versions"])
    return result


@pytest.fixture(scope="module")
def losses(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    sizes = ["--n", "64", "32", "--d", "8", "--per-class", "4", "--seconds", "0.05", "--memory-from", "64"]
    chosen = ["--losses", "CircleLoss", "BinomialDevianceLoss", "SoftTripleLoss", "--large", "TripletMarginLoss:128"]
    return run(root, "losses", tmp_path_factory.mktemp("speed") / "new" / "losses.json", *chosen, *sizes)


def test_losses_has_a_row_for_each_size(losses: dict) -> None:
    assert [(row["loss"], row["n"]) for row in losses["rows"]] == [
        (loss, n) for loss in ("CircleLoss", "BinomialDevianceLoss", "SoftTripleLoss") for n in (32, 64)]
    for row in losses["rows"]:
        assert row["ours_over_floor"] == pytest.approx(row["ours_ms"] / row["floor_ms"])
        assert (row["d"], row["per_class"], row["device"], row["dtype"]) == (8, 4, "cpu", "float32")
        assert row["repeats"]["ours"] >= 1
        assert (row["ours_peak_mb"] is None) == (row["n"] < 64)


def test_losses_measures_the_rival_or_says_why_not(losses: dict) -> None:
    for row in losses["rows"]:
        if row["loss"] == "BinomialDevianceLoss":
            assert row["rival_ms"] is row["rival_over_ours"] is row["rival_peak_mb"] is None
            assert row["rival_note"] == "has no such loss"
        else:
            assert row["rival_over_ours"] == pytest.approx(row["rival_ms"] / row["ours_ms"])
            assert row["rival_note"] is None


def test_losses_measures_memory_of_large_batches(losses: dict) -> None:
    (row,) = losses["large"]
    assert (row["loss"], row["n"]) == ("TripletMarginLoss", 128)
    assert row["before_mb"] > 0 and row["peak_mb"] >= 0


def test_losses_knows_its_names(root: Path) -> None:
    done = subprocess.run([sys.executable, "benchmarks/losses.py", "--losses", "NoLoss"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1 and "--losses has NoLoss; expected some of" in done.stderr


def test_evaluation(root: Path, tmp_path: Path) -> None:
    result = run(root, "evaluation", tmp_path / "evaluation.json", "--shrink", "100", "--d", "16", "--seconds", "0.05", "--nmi")
    assert [row["set"] for row in result["rows"]] == ["stanford-online-products", "in-shop"]
    for row in result["rows"]:
        assert row["ours_over_search"] == pytest.approx(row["ours_ms"] / row["search_ms"])
        assert row["with_nmi_ms"] > 0 and row["embeddings_mb"] > 0 and row["before_mb"] > 0 and row["peak_mb"] >= 0
    assert result["rows"][0]["gallery"] is None and result["rows"][1]["gallery"] == 126


def test_training(root: Path, tmp_path: Path) -> None:
    result = run(root, "training", tmp_path / "training.json", "--steps", "1", "--losses", "TripletMarginLoss", "--num-classes", "4")
    (row,) = result["rows"]
    assert row["batch"] == 16 and row["steps"] == 1 and row["images_per_second"] > 0
    parts = {"loading", "augmentation", "forward", "loss", "backward", "optimiser", "everything else"}
    assert set(row["parts_ms"]) == parts and all(time > 0 for time in row["parts_ms"].values())
    assert sum(row["parts_ms"].values()) == pytest.approx(row["step_ms"])
    inside = row["parts_ms"]["forward"] + row["parts_ms"]["backward"]
    assert row["outside_share"] == pytest.approx(1 - inside / row["step_ms"])


@pytest.fixture
def measuring(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    return importlib.import_module("measuring")


def test_calls_take_turns_and_slow_ones_fewer(measuring, monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], []
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])

    def call(name, seconds):
        def spend():
            now[0] += seconds if name in order or name == "slowest" else 3 * seconds # the first call loads and fetches
            order.append(name)
        return spend

    def fails():
        raise ValueError("no")

    calls = {"quick": call("quick", 0.1), "slow": call("slow", 0.3), "slower": call("slower", 2), "slowest": call("slowest", 12), "fails": fails}
    milliseconds, repeats, failed = measuring.in_turn(calls, seconds=1)
    assert milliseconds == pytest.approx({"quick": 100, "slow": 300, "slower": 2000, "slowest": 12000})
    assert repeats == {"quick": 10, "slow": 3, "slower": 1, "slowest": 1}
    assert order == ["quick", "quick", "slow", "slow", "slower", "slower", "slowest"] + 3 * ["quick", "slow"] + 7 * ["quick"]
    assert set(failed) == {"fails"}


def test_a_process_of_its_own_ends_for_want_of_time_or_with_its_error(measuring) -> None:
    assert measuring.in_own_process(math.sqrt, 4) == 2
    with pytest.raises(measuring.Exceeded, match="more than 1 s"):
        measuring.in_own_process(time.sleep, 60, seconds=1)
    with pytest.raises(RuntimeError, match="math domain error"):
        measuring.in_own_process(math.sqrt, -1)
    with pytest.raises(RuntimeError, match="exit code 3"):
        measuring.in_own_process(os._exit, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what a process may allocate")
def test_a_process_of_its_own_ends_for_want_of_memory(measuring) -> None:
    with pytest.raises(measuring.Exceeded, match="more than 0.5 GB"):
        measuring.in_own_process(bytearray, 2**30, gigabytes=0.5)


def test_patience_follows_the_growth_so_far(measuring) -> None:
    patience = importlib.import_module("losses").Patience(10)
    case = lambda n: {"loss": "CircleLoss", "d": 8, "per_class": 4, "n": n}
    assert patience.reason_against(case(100)) is None # nothing is known yet
    patience.remember(case(100), 1.0, None)
    assert patience.reason_against(case(200)) is None # at most 8 s if it grows with the cube
    patience.remember(case(200), 4.0, None)
    assert "expected 16 s" in patience.reason_against(case(400)) # it grew with the square
    assert "expected 16 s" in patience.reason_against(case(800)) # and stays given up
    assert patience.reason_against(case(400) | {"d": 16}) is None
    patience.remember(case(100) | {"d": 16}, None, "not measured: more than 8 GB")
    assert "8 GB" in patience.reason_against(case(200) | {"d": 16})
