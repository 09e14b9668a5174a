"""Stands for the Python interpreter in a worker's command: `python launcher.py SOCKET COMMAND...`.

Only the standard library, and little of it: this runs before each worker.
"""

import array
import json
import os
import signal
import socket
import sys

LENGTH = 8  # bytes of a length, a process id or an exit status


def main(path: str, command: list[str]) -> int:
    """Have the command run by a fork of the template process; its exit status."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
        request = json.dumps({"command": command, "environment": dict(os.environ), "folder": os.getcwd()}).encode()
        files = array.array("i", [0, 1, 2])
        connection.sendmsg(
            [len(request).to_bytes(LENGTH, "little")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files.tobytes())]
        )
        connection.sendall(request)
        worker = connection.recv(LENGTH)
    except OSError:
        worker = b""
    if not worker and not os.path.isdir(os.path.dirname(path)):
        return 1  # the run is over
    if not worker:
        os.execv(sys.executable, [sys.executable, *command])
    pid = int.from_bytes(worker, "little")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    status = connection.recv(LENGTH)
    return int.from_bytes(status, "little", signed=True) % 256 if status else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
