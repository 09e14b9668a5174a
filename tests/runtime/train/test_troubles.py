"""When ranks that fail are started again, and when that is given up."""

from __future__ import annotations

import errno

import pytest
from ray.exceptions import ObjectLostError

from dav_ray.runtime.train.troubles import Trouble, hopeless, in_words, may_pass


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError("Cannot load model sd"), False),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (TypeError("an argument too many"), False),
        (ModuleNotFoundError("no module"), False),
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (ConnectionResetError(errno.ECONNRESET, "reset by peer"), True),
        (TimeoutError("no answer"), True),
        (RuntimeError("NCCL error"), True),
        (ObjectLostError("00", None, ""), True),
    ],
)
def test_what_another_try_may_mend(error: Exception, passes: bool) -> None:
    assert may_pass(error) is passes


def test_the_same_error_of_one_rank_twice_is_enough_if_no_try_mends_it() -> None:
    missing = Trouble(0, "OSError: Cannot load model sd", passing=False)
    peer = Trouble(1, "RuntimeError: connection closed by peer")
    assert hopeless([missing, peer], 2) is None
    assert hopeless([missing, Trouble(1, missing.cause, passing=False)], 2) is None  # both at the first start
    assert hopeless([missing, peer, missing], 2) == "rank 0 failed twice with the same OSError: Cannot load model sd"
    assert hopeless([missing, Trouble(0, "OSError: another", passing=False)], 1) is None


def test_what_may_pass_is_tried_three_times_more() -> None:
    reset = Trouble(0, "ConnectionResetError: reset by peer")
    assert hopeless([reset] * 3, 1) is None and hopeless([reset] * 6, 2) is None
    assert hopeless([reset] * 4, 1) == "its ranks failed again and again, last with ConnectionResetError: reset by peer"


def test_words_for_a_terminal() -> None:
    found = in_words(Trouble(3, "OSError: x", '  File "a.py", line 7, in f\n    g()', "n" * 56, "logs/worker.err"))
    assert found.splitlines() == [
        "train: rank 3 failed and is started again: OSError: x (log on node nnnnnnnn: logs/worker.err)",
        '  File "a.py", line 7, in f',
        "    g()",
    ]
