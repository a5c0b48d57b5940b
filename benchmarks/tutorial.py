"""How long does it take to follow the tutorial "Your own images in ten minutes" to the letter?

The shell commands that the page shows are run as they stand, in a fresh clone of a repository, and each step is
timed. What comes out is the record that the page reads; its commands are kept in it.

    python benchmarks/tutorial.py --output new.json
"""

import argparse
import json
import os
import re
import resource
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "nbs" / "tutorials" / "own_images.ipynb"


def shell_steps(notebook: Path = NOTEBOOK) -> list[tuple[str, str]]: # headings, commands
    "The shell blocks of a notebook, in order, each with the heading that it stands under."
    cells = json.loads(notebook.read_text())["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    heading, steps = "", []
    for found in re.finditer(r"^## (?P<heading>[^\n]+)$|^```sh\n(?P<commands>.+?)^```$", text, re.M | re.S):
        heading = found["heading"] or heading
        if found["commands"]:
            steps.append((heading, found["commands"]))
    return steps


def run(commands: str, folder: Path, environment: dict | None = None) -> str:
    """What a block prints, run in the folder's own Python environment if it has one.
    Raises `RuntimeError`, with all that was printed, where a command fails."""
    activate = ". .venv/bin/activate; " if (folder / ".venv").exists() else ""
    done = subprocess.run(
        ["bash", "-ec", activate + commands], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError(f"{commands}failed:\n{done.stdout}")
    return done.stdout


def processor_seconds() -> tuple[float, float]: # by the commands, by everything
    "Processor time that has been used so far."
    import psutil

    own, every = resource.getrusage(resource.RUSAGE_CHILDREN), psutil.cpu_times()
    return own.ru_utime + own.ru_stime, every.user + every.system + getattr(every, "nice", 0.0)


def follow(source: str, folder: Path) -> tuple[dict[str, float], dict[str, str]]: # seconds, commands
    "Clone the repository and do what the tutorial says; the time and the commands of each step."
    seconds, done = {}, {}
    steps = [("Clone", f"git clone --quiet {source} {folder}\n"), *shell_steps()]
    for heading, commands in steps:
        start = time.perf_counter()
        print(run(commands, folder if folder.exists() else folder.parent), flush=True)
        seconds[heading] = seconds.get(heading, 0.0) + time.perf_counter() - start
        done[heading] = done.get(heading, "") + commands
    return seconds, {heading: commands for heading, commands in done.items() if heading != "Clone"}


def main() -> None:
    from measuring import facts

    from gradient_surgery.records import new_record

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default=str(ROOT), help="what to clone (default: this repository)")
    parser.add_argument("--note", default="", help="what else a reader of the times should know, in a sentence")
    parser.add_argument("--output", type=Path, required=True, help="the record to write")
    arguments = parser.parse_args()
    before = processor_seconds()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "clone"
        seconds, commands = follow(arguments.source, folder)
        used, busy = (now - then for now, then in zip(processor_seconds(), before))
        metrics = json.loads((folder / "runs" / "mine" / "metrics.json").read_text())
        head = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    machine = facts("cpu", None)["machine"]
    total = sum(seconds.values())
    record = new_record(
        experiment="tutorial",
        parameters={"commands": commands, "epochs": metrics["epochs"], "seed": metrics["seed"]},
        metrics=metrics["after"]
        | {f"untrained {name}": value for name, value in metrics["before"].items()}
        | {f"{heading} seconds": round(value, 1) for heading, value in seconds.items()},
        seconds=round(total, 1), selected_on=metrics["selected_on"], device=metrics["device"],
        processor=machine["processor"], cores=os.cpu_count(),
        conditions=f"The commands used {used:.0f} seconds of processor time, "
                   f"and whatever else ran meanwhile {max(0, busy - used):.0f}. {arguments.note}".strip())
    record["commit"] = head.stdout.strip()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
