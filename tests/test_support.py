"""What tests rely on: waiting says what did not come, and no process outlives its tests unseen."""

from __future__ import annotations

import subprocess
import sys
import tempfile

import psutil
import pytest

from tests.conftest import SCRATCH
from tests.support import deadlines
from tests.support.clusters import TRIES, attempts
from tests.support.deadlines import hung, limit, stretched, until
from tests.support.processes import end_those_left, of_this_run


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


def test_a_process_that_is_left_is_named_and_ended() -> None:
    process = sleeper()
    (told,) = end_those_left(grace_s=0.1)
    assert told.startswith(f"{process.pid} ") and "time.sleep(600)" in told
    assert of_this_run() == [] and not psutil.pid_exists(process.pid)
    assert end_those_left(grace_s=0.1) == []


def test_what_a_process_started_is_known_too() -> None:
    code = "import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True)"
    subprocess.run([sys.executable, "-c", code], check=True)
    until(lambda: [process.name() for process in of_this_run()] == ["sleep"], "nothing is left")
    assert len(end_those_left(grace_s=0.1)) == 1


def test_agents_of_a_node_that_is_gone_are_ended_without_a_word() -> None:
    subprocess.run(["bash", "-c", "(exec -a ray::DashboardAgent sleep 600) >/dev/null 2>&1 &"], check=True)
    until(lambda: [process.cmdline()[:1] for process in of_this_run()] == [["ray::DashboardAgent"]], "no agent")
    assert end_those_left(grace_s=0.1) == [] and of_this_run() == []


def test_what_does_not_start_is_tried_again_and_leaves_nothing() -> None:
    tries: list[int] = []

    def start() -> int:
        tries.append(sleeper().pid)
        if len(tries) < TRIES:
            raise TimeoutError("Failed to get node info")
        return tries[-1]

    assert attempts(start) == tries[-1] and len(tries) == TRIES
    assert [process.pid for process in of_this_run()] == [tries[-1]]
    end_those_left(grace_s=0.1)
    with pytest.raises(ZeroDivisionError):
        attempts(lambda: 1 // 0)


def test_limits_stretch_with_the_load_up_to_ten_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    for load, factor in ((0.1, 1.0), (6.0, 3.0), (400.0, 10.0)):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert (stretched(5.0), hung(5.0)) == (5.0 * factor, 10.0 * factor)


def test_waiting_ends_with_what_did_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "load_factor", lambda: 1.0)
    answers = iter([False, False, True])
    assert until(lambda: next(answers), "no third", pause_s=0.01) >= 0.02
    with pytest.raises(AssertionError, match="nothing came"):
        until(lambda: False, lambda: "nothing came", 0.05, pause_s=0.01)
    process = subprocess.Popen(["sh", "-c", "echo gone"], stdout=subprocess.PIPE, text=True)
    with pytest.raises(AssertionError, match="gone"):
        until(lambda: False, "never", 60, process=process, pause_s=0.01)
    in_time = limit(0.05, "too long")
    in_time()
    with pytest.raises(AssertionError, match="too long"):
        while True:
            in_time()


def test_temporary_files_have_a_folder_that_goes_with_the_tests(pytestconfig: pytest.Config) -> None:
    assert tempfile.gettempdir() == pytestconfig.stash[SCRATCH]
