"""What a run holds while it goes on, seen from outside: memory, threads and files of its processes, Ray's object store.

Memory is `Pss_Anon`: what a process has for itself, its share of what it has with others. Libraries that are mapped
from files, and the object store, are left out: how many other programs of the machine use them is no run's doing.
"""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

PROC = Path("/proc")
TITLE = re.compile(r"ray::(?:[\w.-]+:)?(\w+)")  # Ray's titles: ray::name-of-the-actor:Class.method
LOGS = re.compile(r"--log_dir=(.+)/logs")  # an option of the raylet
STORE = re.compile(r"^ray_object_store_memory\{.*\} (\S+)$", re.MULTILINE)
MB = 1024.0  # kB, as the kernel counts


@dataclass
class Held:
    """What the processes of one kind hold, added up."""

    processes: int = 0
    memory_mb: float = 0.0
    threads: int = 0
    descriptors: int = 0
    cpu_s: float = 0.0  # since they started


def probe(driver: int) -> dict[str, dict[str, float]]:
    """By kind of process (`driver`, Ray's own programs, actors by class), for the driver (a pid) and all below it."""
    found: dict[str, Held] = defaultdict(Held)
    for pid in family(driver):
        try:
            memory = re.search(r"^Pss_Anon:\s+(\d+)", (PROC / pid / "smaps_rollup").read_text(), re.MULTILINE)
            held = found["driver" if int(pid) == driver else kind(words(pid))]
            held.processes += 1
            held.memory_mb += int(memory[1]) / MB if memory else 0.0
            held.threads += len(os.listdir(PROC / pid / "task"))
            held.descriptors += len(os.listdir(PROC / pid / "fd"))
            ticks = (PROC / pid / "stat").read_text().rpartition(")")[2].split()[11:13]
            held.cpu_s += sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    return {name: asdict(held) for name, held in found.items()}


def family(driver: int) -> list[str]:
    """The pids of a process and of all its descendants."""
    children: dict[str, list[str]] = defaultdict(list)
    for pid, parent in parents():
        children[parent].append(pid)
    found = [str(driver)]
    for pid in found:
        found += children[pid]
    return found


def parents() -> Iterator[tuple[str, str]]:
    """(pid, its parent's) of every process."""
    for folder in PROC.iterdir():
        try:
            if folder.name.isdigit():
                yield folder.name, (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except (FileNotFoundError, ProcessLookupError):
            continue


def words(pid: str) -> list[str]:
    """The command line; none where the process has ended."""
    try:
        return (PROC / pid / "cmdline").read_text(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def kind(line: Sequence[str]) -> str:
    """A short name for a command line; workers that wait for work are `IDLE`."""
    program = line[0] if line else "ended"
    if title := TITLE.match(program):
        return title[1]
    script = next((word for word in line[1:] if word.endswith(".py")), program)
    return script.split(" ")[0].rsplit("/", 1)[-1]


def store_mb(driver: int) -> float | None:
    """MB of Ray's objects on the driver's own node, in its processes too (small ones); None while nobody tells."""
    sessions = {m[1] for pid in family(driver) for m in map(LOGS.fullmatch, words(pid)) if m}
    ports = [file.read_text() for place in sessions for file in Path(place).glob("metrics_export_port_*")]
    if not ports:
        return None
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/metrics", timeout=5) as answer:
            used = STORE.findall(answer.read().decode())
    except (urllib.error.URLError, OSError):
        return None
    return sum(map(float, used)) / MB / MB if used else None
