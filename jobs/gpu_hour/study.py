"""What to measure in the first hour on a GPU, on networks of Stable Diffusion 1.5's sizes with random weights.

    python jobs/gpu_hour [--steps tests unet ...] [--minutes M] [--out runs/gpu_hour] [--device cuda|cpu] [--tiny]
                         [--again STEP ...]

Each step has a process of its own and 8 minutes at most. OUT/gpu_hour.json is written after every case; the same
command goes on where it stopped, and measures nothing twice. `--minutes` says how long this call may take in all.
`--again` measures steps once more. Tables, and a verdict for each claim, go to stdout and OUT/gpu_hour.md. Nothing is
downloaded. `--tiny --device cpu` goes through all of it in a few minutes. Exit code 2 where there is no CUDA GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from dav_ray.diffusion.device import free_memory, in_a_line, out_of_memory, quiet
from jobs.gpu_hour import claims
from jobs.gpu_hour.record import Record
from jobs.gpu_hour.setting import Setting
from jobs.gpu_hour.steps import gpu_tests, roofline, same_chunk, through_ray, timeline, training
from jobs.gpu_hour.steps.base import Measure, Step

STEPS = {
    step.name: step
    for step in (
        gpu_tests.STEP,
        roofline.UNET,
        roofline.DECODER,
        timeline.STEP,
        training.STEP,
        roofline.UNET_COMPILED,
        through_ray.STEP,
        same_chunk.STEP,
    )
}
LIMIT_S = 480.0  # of a step's process
LEAST_S = 60.0  # with less left no step is begun
END_S = 20.0  # that a process has to end by itself


def main(words: Sequence[str] | None = None) -> int:
    given = arguments(words)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("gpu_hour: torch sees no CUDA GPU; allowed: one, or --device cpu --tiny", file=sys.stderr)
        return 2
    setting = Setting(given.out, given.device, given.tiny)
    if given.only is not None:
        quiet()
        if given.device == "cpu":
            torch.set_num_threads(1)  # tiny networks are slower with several
        work(STEPS[given.only], setting, given.limit_s)
        return 0
    return hour(setting, given)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--again", nargs="+", default=[], choices=list(STEPS))
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_hour"))
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", choices=list(STEPS), help=argparse.SUPPRESS)  # in a step's own process
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def hour(setting: Setting, given: argparse.Namespace) -> int:
    """The steps one after another, then the tables."""
    deadline, record = time.monotonic() + 60 * given.minutes, Record(setting.out / "gpu_hour.json")
    for step in given.again:
        record.forget(step)
    record.about(
        {"card": setting.card, "torch": torch.__version__, "real": setting.device == "cuda" and not setting.tiny}
    )
    for name in given.steps:
        limit_s = min(LIMIT_S, deadline - time.monotonic())
        if limit_s < LEAST_S:
            break
        if left(STEPS[name], setting, Record(setting.out / "gpu_hour.json")):
            apart(name, setting, limit_s)
    page = render(Record(setting.out / "gpu_hour.json"))
    print(page, flush=True)
    (setting.out / "gpu_hour.md").write_text(page)
    return 0


def apart(name: str, setting: Setting, limit_s: float) -> None:
    """A step in a process of its own: what ends it leaves the others alone."""
    start = time.monotonic()
    command = [sys.executable, str(Path(__file__).parent), "--only", name, "--limit-s", str(limit_s)]
    command += ["--out", str(setting.out), "--device", setting.device, *(["--tiny"] if setting.tiny else [])]
    process = subprocess.Popen(command, stdout=sys.stderr)
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
        process.kill()
        process.wait()
    print(f"{name}: {time.monotonic() - start:.0f} s, exit code {process.returncode}", file=sys.stderr, flush=True)


def left(step: Step, setting: Setting, record: Record) -> list[str]:
    """Cases that nobody has begun."""
    return [case for case in step.cases(setting) if case not in record.cases(step.name)]


def work(step: Step, setting: Setting, limit_s: float) -> None:
    """What is left of a step, as long as another case like the longest so far still ends in time."""
    start, record = time.monotonic(), Record(setting.out / "gpu_hour.json")
    setting.config()  # makes the model, where it is not there
    with step.open(setting) as measure:
        longest = 0.0
        for case in left(step, setting, record):
            began = time.monotonic()
            if began - start + longest > limit_s:
                break
            record.begin(step.name, case)
            record.put(step.name, case, result(measure, case))
            longest = max(longest, time.monotonic() - began)


def result(measure: Measure, case: str) -> dict:
    """Memory that runs out is a result, and so is what goes wrong: the other cases are measured all the same."""
    start = time.monotonic()
    try:
        found = measure(case)
    except Exception as error:
        found = {"out_of_memory": True} if out_of_memory(error) else {"error": in_a_line(error)}
        print(f"{case}: {in_a_line(error)}", file=sys.stderr, flush=True)
    free_memory()
    return {**found, "took_s": round(time.monotonic() - start, 2)}


def render(record: Record) -> str:
    """All tables, of the steps that have begun."""
    machine = ", ".join(f"{key} {value}" for key, value in record.machine.items() if key != "real")
    tables = [step.table(record.cases(name)) for name, step in STEPS.items() if record.cases(name)]
    return "\n".join([machine, "", *(table.markdown() for table in [*tables, claims.table(record)])])
