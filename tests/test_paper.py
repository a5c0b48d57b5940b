"""All experiments of the paper at smoke size, by the command of `make paper`: killed, started again, and tabulated."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradient_surgery.experiments import EXPERIMENTS
from gradient_surgery.records import FORMATS, Table, read_lines, read_records

SECONDS = 900  # only there to end a command that hangs


def start(folder: Path, kernels: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", "from gradient_surgery.cli import app; app()", "experiment", "all", "--quiet", "--output", str(folder)]
    return subprocess.Popen(
        command, env=os.environ | {"JUPYTER_PATH": str(kernels)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def lines(folder: Path) -> list[dict]:
    return [line for path in sorted(folder.rglob("records.jsonl")) for line in read_lines(path)]


@pytest.mark.usefixtures("features")
def test_the_whole_paper_in_small(kernels: Path, tmp_path: Path) -> None:
    "What is finished when the command is killed stays as it is; the rest is made by the next."
    before = []
    for more in (1, 4):
        process, end = start(tmp_path, kernels), time.monotonic() + SECONDS
        while len(lines(tmp_path)) < len(before) + more and process.poll() is None:
            assert time.monotonic() < end, "it took too long"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = lines(tmp_path)
        assert all(record in now for record in before)
        before = now
    process = start(tmp_path, kernels)
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    assert all(record in lines(tmp_path) for record in before)
    for name, experiment in EXPERIMENTS.items():
        records = read_records(tmp_path / name)
        assert len(records) == len(experiment.runs()), f"{name}: a run is missing, or was made twice"
        for suffix, write in FORMATS.items():
            assert (tmp_path / name / f"table.{suffix}").read_text(encoding="utf-8") == write(Table(records))
