"""Machines in network namespaces of their own, on one bridge: links can be cut while processes run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

from tests.support.deadlines import hung

RAY = str(Path(sys.executable).with_name("ray"))


def why_not() -> str | None:
    """Why this machine has no namespaces to offer; None where it has."""
    if shutil.which("ip") is None:
        return "the command ip (iproute2) is absent"
    name = f"dav-{uuid.uuid4().hex[:6]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode == 0:
        made = subprocess.run(["ip", "link", "add", name, "type", "bridge"], capture_output=True, text=True)
        subprocess.run(["ip", "link", "del", name], capture_output=True)
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return None if made.returncode == 0 else f"no network namespaces here: {made.stderr.strip()}"


class Net:
    """This process is at address 1; `add` gives the others. Ray nodes are ended with the net."""

    def __init__(self, files: str) -> None:
        self.name, self._files = f"dav{uuid.uuid4().hex[:6]}", files
        self._prefix = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self._machines: list[int] = []
        self._nodes: list[subprocess.Popen[bytes]] = []
        _ip("link", "add", self.name, "type", "bridge")
        _ip("addr", "add", f"{self.address(1)}/24", "dev", self.name)
        _ip("link", "set", self.name, "up")

    def address(self, machine: int) -> str:
        return f"{self._prefix}.{machine}"

    def add(self, machine: int) -> None:
        space, link = f"{self.name}-{machine}", f"{self.name}-{machine}"
        _ip("netns", "add", space)
        self._machines.append(machine)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", link, "master", self.name, "up")
        _ip("-n", space, "addr", "add", f"{self.address(machine)}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", space, "link", "set", "lo", "up")

    def cut(self, machine: int) -> None:
        """From everyone."""
        _ip("link", "set", f"{self.name}-{machine}", "down")

    def mend(self, machine: int) -> None:
        _ip("link", "set", f"{self.name}-{machine}", "up")

    def blind(self, machine: int, *, so: bool = True) -> None:
        """This process' machine and that one no longer see each other; both see the others."""
        word = "add" if so else "del"
        _ip("route", word, "blackhole", f"{self.address(machine)}/32")
        _ip("-n", f"{self.name}-{machine}", "route", word, "blackhole", f"{self.address(1)}/32")

    def start(self, machine: int, head: str, *options: str) -> None:
        """A Ray node there; head: its options, or how to reach it."""
        space = [] if machine == 1 else ["ip", "netns", "exec", f"{self.name}-{machine}"]
        command = [*space, RAY, "start", "--block", *head.split(), f"--node-ip-address={self.address(machine)}"]
        command += ["--include-log-monitor=false", "--object-store-memory=100000000", *options]
        env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        env |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        with open(f"{self._files}/node-{machine}.log", "ab") as log:
            self._nodes.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True))

    def close(self) -> None:
        for node in self._nodes:
            node.terminate()  # `ray start --block` takes its own processes down with it
        for node in self._nodes:
            try:
                node.wait(hung(30))
            except subprocess.TimeoutExpired:
                node.kill()
        for machine in self._machines:
            subprocess.run(["ip", "netns", "del", f"{self.name}-{machine}"], capture_output=True)
        subprocess.run(["ip", "link", "del", self.name], capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
