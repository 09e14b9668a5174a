"""The template process: imports what workers will need, then forks one for each request.

    python -m dav_ray.runtime.template.process SOCKET MODULE[:NAME]...

Standard input is a pipe that the driver holds: the process ends when it is closed. What can't be imported is left to
the workers, whose error says what is missing.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from dav_ray.runtime.template.launcher import LENGTH

MOST_FILES = 1024  # open files that a fork closes


def main(path: str, targets: Sequence[str]) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(128)
    preload(targets)
    gc.freeze()  # what is imported stays in pages that all workers share
    _Forks(server).serve()


def preload(targets: Sequence[str]) -> None:
    """Import modules, and names that modules load lazily (`module:Name`)."""
    gc.disable()  # imports make objects that stay
    for target in targets:
        module, _, name = target.partition(":")
        with contextlib.suppress(Exception):
            found = importlib.import_module(module)
            if name:
                getattr(found, name)
    gc.enable()


class _Forks:
    """The workers that run, each with the connection of the launcher that waits for its exit status."""

    def __init__(self, server: socket.socket) -> None:
        self._server, self._waiting = server, dict[int, socket.socket]()
        self._select = selectors.DefaultSelector()
        self._wakeup, written = os.pipe()
        os.set_blocking(written, False)
        os.set_blocking(self._wakeup, False)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for file in (server, self._wakeup, sys.stdin.fileno()):
            self._select.register(file, selectors.EVENT_READ)

    def serve(self) -> None:
        """Until the driver closes the pipe."""
        while True:
            for key, _ in self._select.select():
                if key.fileobj is self._server:
                    self._accept()
                elif key.fileobj == self._wakeup:
                    self._reap()
                elif key.data is not None:
                    self._abandoned(key.data)
                elif not os.read(sys.stdin.fileno(), 1):
                    return

    def _accept(self) -> None:
        connection, _ = self._server.accept()
        try:
            request, files = _receive(connection)
        except (OSError, ValueError):
            connection.close()  # its launcher died
            return
        pid = os.fork()
        if pid == 0:
            _become(request, files)
        for file in files:
            os.close(file)
        self._waiting[pid] = connection
        self._select.register(connection, selectors.EVENT_READ, pid)
        with contextlib.suppress(OSError):
            connection.sendall(pid.to_bytes(LENGTH, "little"))

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wakeup, 4096)
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                connection = self._waiting.pop(ended[0])
                with contextlib.suppress(KeyError):  # its launcher was killed
                    self._select.unregister(connection)
                status = os.waitstatus_to_exitcode(ended[1])
                with contextlib.suppress(OSError):
                    connection.sendall(status.to_bytes(LENGTH, "little", signed=True))
                connection.close()

    def _abandoned(self, pid: int) -> None:
        """A launcher was killed: so is its worker, as if they were one process."""
        if pid not in self._waiting:
            return  # reaped a moment ago
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self._select.unregister(self._waiting[pid])


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What a launcher asks for, and its standard files. ValueError if it stops midway."""
    files = array.array("i")
    head, ancillary, *_ = connection.recvmsg(LENGTH, socket.CMSG_SPACE(3 * files.itemsize))
    for _, _, data in ancillary:
        files.frombytes(data)
    length, body = int.from_bytes(head, "little"), b""
    while len(body) < length:
        part = connection.recv(length - len(body))
        if not part:
            raise ValueError("a request that ends midway")
        body += part
    if len(files) != 3:
        raise ValueError("a request without its files")
    return json.loads(body), list(files)


def _become(request: dict[str, Any], files: Sequence[int]) -> None:
    """In the fork: be the process that the command would have started. Never returns."""
    code = 1
    try:
        os.setpgrp()  # Ray ends a worker with its whole process group
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.closerange(3, MOST_FILES)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        script, *arguments = [word for i, word in enumerate(request["command"]) if i or word != "-u"]
        sys.argv = [script, *arguments]
        paths = [os.path.dirname(script), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        sys.path[:] = list(dict.fromkeys([*filter(None, paths), *sys.path]))
        gc.enable()
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
