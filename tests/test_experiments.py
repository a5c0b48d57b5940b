"""Grids of runs: nothing is run twice, nothing that was found is lost, and what fails is told."""

import inspect
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec
from typer.testing import CliRunner

from gradient_surgery.cli import app
from gradient_surgery.experiments import EXPERIMENTS, Experiment, FailedRuns, run_grid
from gradient_surgery.records import Table, append_line, locked, new_record, read_lines, read_records

MOCK = '''
import os, signal, time
from pathlib import Path

def study(x, seed, wait=0.0, trouble=None):
    with open(Path(__file__).with_name("calls"), "a") as calls:
        calls.write(f"{x} {seed}\\n")
    time.sleep(wait)
    if trouble == "error" and x == 1:
        raise ArithmeticError("one is the loneliest number")
    if trouble == "death" and x == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    value = float("nan") if trouble == "infinite" and x == 1 else x + seed / 8
    return {"metrics": {"recall@1": value}, "selected_on": "nothing: a mock", "trace": [x, seed]}

def threads(seed):
    import torch
    found = {"threads": torch.get_num_threads(), "variable": float(os.environ["OMP_NUM_THREADS"])}
    return {"metrics": found, "selected_on": "nothing"}

GRID = {"x": [0, 1, 2]}
'''


@pytest.fixture
def mock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    "An experiment whose function writes down its calls; a module of its own for each test."
    name = f"mock_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MOCK)
    monkeypatch.syspath_prepend(str(tmp_path))
    return Experiment("mock", f"{name}:study", smoke=f"{name}:GRID", full={"x": list(range(10))}, seconds=0.1, seeds=2)


def calls(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def started(mock: Experiment, folder: Path, **options: object) -> subprocess.Popen:
    "A process of its own that runs a grid."
    (folder / "start.py").write_text(
        f"import sys; sys.path.insert(0, {str(folder)!r})\n"
        "from gradient_surgery.experiments import Experiment, run_grid\n"
        f"if __name__ == '__main__':\n    run_grid(Experiment(**{vars(mock)!r}), {str(folder / 'records')!r}, **{options!r})\n")
    return subprocess.Popen(
        [sys.executable, folder / "start.py"], stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # which a job in the background ignores


def wait_for(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


def test_each_run_once(mock, tmp_path):
    records = run_grid(mock, tmp_path / "records", seeds=2, workers=2, quiet=True)
    assert [record["parameters"] | {"value": record["metrics"]["recall@1"]} for record in records] == [
        {"x": x, "seed": seed, "wait": 0.0, "trouble": None, "value": x + seed / 8} for seed in (0, 1) for x in (0, 1, 2)]
    assert records[3]["trace"] == [0, 1] and records[3]["commit"] == new_record(
        experiment="", parameters={}, metrics={}, seconds=0, selected_on="")["commit"]
    before = (tmp_path / "records" / "records.jsonl").read_bytes()
    again = run_grid(mock, tmp_path / "records", full=True, quiet=True)  # has the six among its twenty
    after = (tmp_path / "records" / "records.jsonl").read_bytes()
    assert after.startswith(before) and len(again) == 20 and [again[0], again[10]] == [records[0], records[3]]
    assert len(calls(tmp_path)) == len(set(calls(tmp_path))) == 20
    other = run_grid(mock, tmp_path / "records", values={"wait": 0.001}, quiet=True)  # another setting, although a default
    assert len(other) == 3 and len(calls(tmp_path)) == 23


def test_killed_and_started_again(mock, tmp_path):
    values = {"x": list(range(15)), "wait": 0.05}
    options = dict(seeds=2, values=values, workers=2, quiet=True)
    lines, finished, dice = tmp_path / "records" / "records.jsonl", [], random.Random(0)
    for more in (1, 7, 6):
        process, had = started(mock, tmp_path, **options), len(finished)
        wait_for(lambda: lines.exists() and len(read_lines(lines)) >= had + more)
        time.sleep(dice.uniform(0, 0.1))
        process.kill()  # only this process: its workers end with it
        process.wait()
        time.sleep(0.3)
        asked, finished = calls(tmp_path), [f"{each['parameters']['x']} {each['parameters']['seed']}" for each in read_lines(lines)]
        time.sleep(0.3)
        assert calls(tmp_path) == asked, "a worker outlived the process that started it"
        (tmp_path / "calls").write_text("")
        with lines.open("a") as file:
            file.write('{"experiment": "mo')  # as if it had been killed here
        with pytest.warns(UserWarning, match="half a line"):
            run_grid(mock, tmp_path / "records", seeds=1, values=values | {"x": [100 + more]}, workers=1, quiet=True)
        assert not set(calls(tmp_path)) & set(finished)
    run_grid(mock, tmp_path / "records", **options)
    assert not set(calls(tmp_path)) & set(finished)
    records = [each for each in read_records(tmp_path / "records") if each["parameters"]["x"] < 100]
    assert len({str(each["parameters"]) for each in records}) == len(records) == 30
    undisturbed = run_grid(mock, tmp_path / "undisturbed", **options)
    assert Table(records).csv() == Table(undisturbed).csv() and Table(records).markdown() == Table(undisturbed).markdown()


def test_interrupted(mock, tmp_path):
    options = dict(values={"x": list(range(6)), "wait": 1}, workers=2, quiet=True)
    process = started(mock, tmp_path, **options)
    wait_for(lambda: (tmp_path / "records" / "records.jsonl").exists())
    with pytest.raises(BlockingIOError, match="another process"):
        run_grid(mock, tmp_path / "records", **options)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to workers, too
    _, told = process.communicate(timeout=5)
    assert told.count("Traceback") == 1 and told.strip().endswith("KeyboardInterrupt"), told
    assert len(run_grid(mock, tmp_path / "records", **options)) == 6
    assert not (tmp_path / "records" / "failures.jsonl").exists()


@pytest.mark.parametrize("trouble, said", [("error", "loneliest"), ("infinite", "recall@1 is nan"), ("death", "process died")])
def test_failures_are_told_at_the_end(mock, tmp_path, trouble, said):
    values = {"trouble": trouble}
    with pytest.raises(FailedRuns, match=f"(?s)'x': 1.*{said}.*1 of 3 runs"):
        run_grid(mock, tmp_path / "records", values=values, workers=1, quiet=True)
    assert len(read_records(tmp_path / "records")) == 2
    with pytest.raises(FailedRuns, match=said):
        run_grid(mock, tmp_path / "records", values=values, quiet=True)
    tries = 2 if trouble == "death" else 1  # who died has not finished
    assert calls(tmp_path).count("1 0") == tries and len(calls(tmp_path)) == 2 + tries
    module = next(tmp_path.glob("mock_*.py"))
    module.write_text(module.read_text().replace("x == 1", "x == 11"))
    assert len(run_grid(mock, tmp_path / "records", values=values, retry=True, quiet=True)) == 3
    assert calls(tmp_path).count("0 0") == 1


def test_one_thread_each(mock, tmp_path):
    threads = Experiment("threads", mock.run.replace("study", "threads"), smoke={}, full={}, seconds=1)
    before = os.environ.get("OMP_NUM_THREADS")
    (record,) = run_grid(threads, tmp_path / "records", quiet=True)
    assert record["metrics"] == {"threads": 1, "variable": 1} and os.environ.get("OMP_NUM_THREADS") == before


def test_unknown_is_an_error(mock, tmp_path):
    for options, said in (({"values": {"y": 1}}, "no parameter y; expected some of x, seed"), ({"executor": "cloud"}, "local or slurm")):
        with pytest.raises(ValueError, match=said):
            run_grid(mock, tmp_path / "records", **options)
    assert not (tmp_path / "records").exists()


def test_a_full_disk_leaves_whole_lines(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_line(path, {"kept": 1})
    script = ("import resource, sys\nfrom gradient_surgery.records import append_line\n"
              "resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))\nappend_line(sys.argv[1], {'too long': 'x' * 100})")
    limited = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
    assert limited.returncode and "OSError" in limited.stderr
    assert path.read_text() == '{"kept": 1}\n'


def test_damaged_records_are_named(tmp_path):
    lines = [json.dumps(new_record(experiment="e", parameters={"seed": s}, metrics={"m": s}, seconds=1, selected_on="-")) for s in range(3)]
    for damaged, said in (('{"experiment": "e"', "line 2"), ('{"experiment": "e"}', "nothing as parameters"),
                          (lines[1].replace('"m": 1', '"m": "1"'), "m is '1'"), (lines[1].replace('"m": 1', '"m": NaN'), "m is nan")):
        (tmp_path / "records.jsonl").write_text("\n".join([lines[0], damaged, lines[2], ""]))
        with pytest.raises(ValueError, match=f"records.jsonl.*{said}"):
            read_records(tmp_path)


def test_a_lock_ends_with_its_process(tmp_path):
    script = "import sys, time\nfrom gradient_surgery.records import locked\nwith locked(sys.argv[1]):\n    print('in', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    with pytest.raises(BlockingIOError), locked(tmp_path):
        pass
    process.kill()
    process.wait()
    with locked(tmp_path):
        pass


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    "A notebook that fails for one parameter, and its grid."
    write_kernel_spec(tmp_path / "jupyter" / "kernels" / "python3")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    write = ("from pathlib import Path\nfrom gradient_surgery.records import write_record\n"
             "write_record(Path(folder) / 'record.json', experiment='halves', parameters={'x': x, 'options': options, 'seed': seed},"
             " metrics={'half': 1 / x}, seconds=0, selected_on='nothing')")
    cells = [nbformat.v4.new_code_cell("x, options, seed, root, folder = 1, {}, 0, None, None", metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell(write)]
    cells[0].source = "x = 1\noptions = {}\nseed = 0\nroot = None\nfolder = None"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "halves.ipynb")
    return Experiment("halves", str(tmp_path / "halves.ipynb"), smoke={"x": [2, 0], "options": [{"a": [1]}]}, full={}, seconds=5)


def test_notebooks(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FailedRuns, match="(?s)halves.ipynb, cell 2.*write_record.*ZeroDivisionError.*1 of 2 runs"):
        run_grid(notebook, "records", values={"root": str(tmp_path)}, workers=2, quiet=True)
    (record,) = read_records("records")
    assert record["metrics"] == {"half": 0.5} and record["parameters"] == {"x": 2, "options": {"a": [1]}, "seed": 0}
    (kept,) = [path.parent for path in Path("records").rglob("record.json")]
    executed = (kept / "executed.ipynb").read_text()
    assert f'folder = \\"{kept}\\"' in executed and "papermill" not in executed.replace("# Parameters", "")
    before = kept.stat().st_mtime_ns
    elsewhere = run_grid(notebook, "records", values={"x": 2, "root": "/elsewhere"}, quiet=True)  # the data lie elsewhere, the run is the same
    assert elsewhere == [record] and kept.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="no parameter y; expected some of x, options, seed, root, folder"):
        run_grid(notebook, "records", values={"y": 1})


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_grids_of_the_paper(name):
    experiment = EXPERIMENTS[name]
    small, whole = experiment.runs(), experiment.runs(full=True)
    assert 0 < len(small) <= 20 and len({json.dumps(run, sort_keys=True) for run in whole}) == len(whole) >= len(small)
    empty = inspect.Parameter.empty
    required = {name for name, default in experiment.parameters().items() if default is empty}
    assert all(required <= set(run) for run in small + whole)


def test_a_grid_names_each_run_once(mock):
    twice = replace(mock, full=[{"x": [1, 2]}, {"x": [2, 3], "wait": [0.0]}])
    assert [(run["x"], run["seed"]) for run in twice.runs(full=True)] == [(1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (3, 1)]
    assert len(twice.runs(full=True, seeds=1, values={"x": 7})) == 1
    assert {run["seed"] for run in mock.runs(values={"seed": [7, 8]})} == {7, 8}


SBATCH = '''#!/usr/bin/env python3
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
tasks = int(re.search(r"--array=0-([0-9]+)", script).group(1)) + 1
for task in range(tasks):
    there = {"SLURM_JOB_ID": str(70 + task), "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(task), "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
    subprocess.Popen(["bash", sys.argv[-1]], env=os.environ | there, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("Submitted batch job 7")
'''
SRUN = "#!/bin/bash\nwhile [[ $1 == --* ]]; do [[ $1 == --unbuffered ]] || shift; shift; done\nexec \"$@\" >/dev/null 2>\"$HOME/job.$SLURM_ARRAY_TASK_ID\"\n"


def test_slurm(mock, tmp_path, monkeypatch):
    "With commands of slurm's names that start the jobs at once, on this machine."
    options = dict(full=True, values={"trouble": "error"}, executor="slurm", workers=2, quiet=True)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(FileNotFoundError, match="sbatch"):
        run_grid(mock, tmp_path / "records", **options)
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", "#!/bin/sh\n")):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.defpath}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(FailedRuns, match="2 of 20 runs"):
        run_grid(mock, tmp_path / "records", **options)
    assert {path.parent.name.partition("-")[0] for path in tmp_path.rglob("records.jsonl")} == {"job0", "job1"}
    assert len(read_records(tmp_path / "records")) == 18 and len(calls(tmp_path)) == 20
    with pytest.raises(FailedRuns, match="loneliest"):
        run_grid(mock, tmp_path / "records", **options | {"executor": "local"})  # knows what the jobs did
    assert len(calls(tmp_path)) == 20


def test_commands(mock, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(EXPERIMENTS, "mock", mock)

    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, [*words])
        return result.exit_code, result.stdout + result.stderr

    code, told = run("experiment", "mock", "--full", "--set", "wait=[0, 0.01]", "--dry-run", "--workers", "4")
    assert code == 0 and "40 runs: 0 done, 0 failed; 40 to make at about 0.1 s" in told and "wait: 0, 0.01" in told
    assert "records/mock" in told and not Path("records").exists()
    code, told = run("experiment", "mock", "--set", "trouble=error", "--quiet")
    assert code == 1 and "loneliest" in told and "1 of 3 runs" in told
    assert run("experiment", "mock", "--seeds", "3", "--quiet")[0] == 0
    assert json.loads(Path("runs/mock/failures.jsonl").read_text())["parameters"]["x"] == 1
    code, told = run("table", "runs/mock")
    assert code == 0 and told == Path("runs/mock/table.md").read_text()
    assert "| 2 | null | 212.50 ± 12.50 | 3 |" in told and "Selected on nothing: a mock" in told
    code, told = run("table", "mock", "--format", "csv")
    assert code == 0 and told == Path("runs/mock/table.csv").read_text() and "2,0.0,null,2.125,0.125,3" in told
    assert run("table", "mock", "--format", "tex", "--output", "elsewhere")[1] == Path("elsewhere/table.tex").read_text() == Path("runs/mock/table.tex").read_text()
    code, told = run("experiment", "end_to_end", "--dataset", "cub", "--root", "DIR", "--cache", "DIR", "--recipe", "cub.yaml", "--dry-run")
    assert code == 0 and "epochs: None" in told and "cache: DIR" in told and "for an unknown time" in told  # the recipe's epochs
    for words, said in (
        (["experiment", "mock", "--dataset", "cub", "--root", "images"], "no parameter dataset, root"),
        (["experiment", "mocking"], "expected all, or some of impact"), (["table", "nothing"], "no records of nothing"),
        (["table", "mock", "--metric", "speed"], "metric speed is in no record; expected some of recall@1"),
        (["table", "mock", "--format", "pdf"], "expected one of md, csv, tex"), (["experiment", "mock", "--set", "x"], "key=value"),
    ):
        code, told = run(*words)
        assert code == 1 and said in told and "Traceback" not in told
    before = Path("runs/mock/records.jsonl").read_text()
    code, told = run("experiment", "mock", "collapse", "--set", "trouble=none", "--seeds", "5", "--quiet")
    assert code == 1 and "no parameter trouble" in told and Path("runs/mock/records.jsonl").read_text() == before
