"""Which replica serves: by its scores, by the tolerance or by the reward's own spread, by the mode."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dav_ray.config.sections.roles import RewardRole
from dav_ray.rewards.base import Scored
from dav_ray.rewards.golden import Golden, decode
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.reward.golden_scores import GoldenScores, judge
from dav_ray.runtime.reward.replica import Facts
from dav_ray.runtime.reward.spec import RewardSpec

SCORES = np.array([1.0, 3.0, 5.0, 7.0])  # of standard deviation 2.236
GOLDEN = Golden(np.zeros((4, 1)), ("a",) * 4, SCORES, False)


def spec(check: str = "refuse", **tolerance: float) -> RewardSpec:
    return RewardSpec(0, "judge", "kind", {}, RewardRole(), {}, tolerance, None, check)


@pytest.mark.parametrize(
    "facts, dtype, tolerance, gap, same",
    [
        (Facts("A100", "", "float32"), "float32", {}, 0.02, True),  # 1 % of the spread
        (Facts("A100", "", "float32"), "float32", {}, 0.05, False),
        (Facts("A100", "", "bfloat16"), "float32", {}, 0.2, True),  # 10 %
        (Facts("A100", "", "float64"), "bfloat16", {}, 0.2, True),  # no module is seen, the values tell
        (Facts("A100", "", "bfloat16"), "float32", {}, 0.3, False),
        (Facts("A100", "", "bfloat16"), "float32", {"A100": 1e-3}, 0.2, False),  # what is given counts
        (Facts("L4", "", "float32"), "float32", {"A100": 1e-3, "L4": 0.1}, 0.09, True),
    ],
)
def test_what_counts_as_the_same(facts: Facts, dtype: str, tolerance: dict[str, float], gap: float, same: bool) -> None:
    found = judge(spec(**tolerance), GOLDEN, facts, Scored(SCORES + gap, dtype=dtype))
    assert found.admitted == same and bool(found.differs) != same


def test_a_warning_lets_numbers_in_and_nothing_else() -> None:
    facts = Facts("L4", "", "float32")
    warned = judge(spec("warn"), GOLDEN, facts, Scored(SCORES + 0.5, dtype="float32"))
    assert warned.admitted and warned.gap == 0.5 and warned.differs["hardware"] == "L4"
    assert (warned.differs["value"], warned.differs["golden"], warned.differs["sample"]) == (1.5, 1.0, 0)
    for scored in (Scored(error="ValueError: no"), Scored(SCORES * np.nan), Scored(SCORES[:2])):
        assert not judge(spec("warn"), GOLDEN, facts, scored).admitted


def test_the_refusal_says_what_was_allowed() -> None:
    found = judge(spec(), GOLDEN, Facts("L4", "", "float32"), Scored(SCORES + [0, 0, 0.5, 0], dtype="float32"))
    assert found.words == (
        "judge: no replica reproduces the golden scores; the last one, on L4, gave 5.5 for sample 2 where 5.0 is "
        "golden (0.0224 off is allowed)"
    )


def test_what_is_stored_says_its_precision_and_is_wanted_from_then_on(tmp_path: Path) -> None:
    def keep(check: str, scored: Scored) -> Any:
        scores = GoldenScores(spec(check), open_storage(str(tmp_path / check)), None)
        made = np.zeros((4, 1)), ("a",) * 4, scored
        return scores, asyncio.run(scores.keep(made, False, Facts("L4", "", "bfloat16")))

    scores, event = keep("refuse", Scored(SCORES, dtype="float32"))
    assert event == {"path": "golden/judge.npz", "samples": 4, "hardware": "L4", "precision": "bfloat16"}
    stored = decode((tmp_path / "refuse/golden/judge.npz").read_bytes())
    assert (stored.values.tolist(), stored.precision) == (SCORES.tolist(), "bfloat16")
    assert scores.wanted is not None and not scores.missing
    off, nothing = keep("off", Scored(SCORES, dtype="float32"))
    assert nothing == {} and off.wanted is None and not off.missing
    bad, nothing = keep("warn", Scored(SCORES * np.nan))
    assert nothing == {} and bad.missing
