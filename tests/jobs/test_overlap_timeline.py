"""The simulated part of jobs/overlap: a fake clock against sums that are known, and the lag in exact EM."""

from __future__ import annotations

import pytest

from jobs.overlap import em, timeline

ALIKE = (10.0,) * 4  # 4 workers, 10 s a chunk


@pytest.mark.parametrize(
    ("overlap", "fit_s", "seconds"),
    [
        ("none", 30.0, 30.0 + 30.0),
        ("none", 60.0, 30.0 + 60.0),
        ("stream", 30.0, 30.0 + 10.0),  # the last of 3 groups comes with the search's end
        ("stream", 60.0, 10.0 + 60.0),  # the first one after 10 s, and then the trainer never waits
        ("round", 15.0, 30.0),
        ("round", 60.0, 60.0),
    ],
)
def test_a_round_takes_what_is_not_hidden(overlap: str, fit_s: float, seconds: float) -> None:
    load = timeline.Load(ALIKE, chunks=12, group=4, fit_s=fit_s)
    line = timeline.run(load, overlap, rounds=10)
    assert line.round_s == pytest.approx(seconds, abs=0.1)
    total = line.policies[-1]
    assert line.train_busy == pytest.approx(10 * fit_s / total)
    assert 10 * 30.0 <= line.search_busy * total + 1e-6


def test_the_first_policy_takes_equally_long_without_stream() -> None:
    load = timeline.Load(ALIKE, chunks=12, group=4, fit_s=20.0)
    for overlap in ("none", "round"):
        assert timeline.run(load, overlap, 4).policies[0] == pytest.approx(50.0)


def test_fast_workers_do_more() -> None:
    pool = timeline.Pool((10.0, 40.0))
    done = pool.search(5, 0.0, in_order=False)
    assert sorted(done) == [10.0, 20.0, 30.0, 40.0, 40.0]


def test_when_a_share_of_the_gain_is_reached() -> None:
    assert timeline.time_to(0.9, [1.0, 2.0, 2.0, 4.0], [10.0, 20.0, 40.0], final=4.0) == pytest.approx(20 + 20 * 0.85)
    assert timeline.time_to(0.9, [1.0, 2.0], [10.0], final=4.0) is None


def test_an_exact_m_step_takes_twice_the_rounds_with_a_lag() -> None:
    """Each policy comes of the last but one alone: two runs of EM that take turns."""
    for setting in (s for s in em.SETTINGS if s.step == 1.0):
        direct, lagging = em.rewards(setting, 0, 4), em.rewards(setting, 1, 8)
        assert lagging[1::2] == pytest.approx(direct[1:])
        assert lagging[2::2] == pytest.approx(direct[1:])


def test_small_m_steps_lose_little_by_a_lag() -> None:
    for setting in (s for s in em.SETTINGS if s.step < 1.0):
        direct, lagging = em.rewards(setting, 0, 10), em.rewards(setting, 1, 11)
        assert lagging[0] == direct[0] and lagging[1] == pytest.approx(direct[1])
        assert lagging[10] < direct[10] < lagging[11]  # less than one round
