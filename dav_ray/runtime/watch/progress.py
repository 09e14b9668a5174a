"""Live progress: one line that moves on a terminal, one plain line per interval elsewhere."""

from __future__ import annotations

import sys
import time

INTERVAL_S = 10.0


class Progress:
    """What is being done, how far it is, the reward so far, and the time left in the run."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._start = self._shown = time.monotonic()
        self._round_start = self._start
        self._per_round: float | None = None
        self._live = sys.stdout.isatty()
        self._width = 0

    def say(self, text: str) -> None:
        """A line that stays."""
        self._clear()
        print(text, flush=True)

    def stage(self, text: str) -> None:
        """A line that stays, with the time so far: what a run does before its first round."""
        self.say(f"{_clock(self.seconds())} | {text}")

    def update(self, round: int, doing: str, reward: float | None = None) -> None:
        """Progress within a round; doing: for instance "search: chunk 3/8"."""
        now = time.monotonic()
        if not self._live and now - self._shown < INTERVAL_S:
            return
        self._shown = now
        parts = [f"round {round}/{self._rounds}", doing]
        if reward is not None:
            parts.append(f"reward {reward:.4g}")
        parts.append(self._time_left(round))
        line = " | ".join(parts)
        if not self._live:
            print(line, flush=True)
            return
        self._clear()
        self._width = len(line)
        print(f"\r{line}", end="", flush=True)

    def begin_round(self) -> None:
        """Rounds of this process are timed, to tell how long the rest will take."""
        self._round_start = time.monotonic()

    def end_round(self) -> None:
        self._per_round = time.monotonic() - self._round_start

    def seconds(self) -> float:
        return time.monotonic() - self._start

    def _time_left(self, round: int) -> str:
        if self._per_round is None:
            return f"{_clock(self.seconds())} so far"
        rest = self._per_round * (self._rounds - round + 1) - (time.monotonic() - self._round_start)
        return f"{_clock(self.seconds())} so far, about {_clock(max(0.0, rest))} left"

    def _clear(self) -> None:
        if self._live and self._width:
            print("\r" + " " * self._width + "\r", end="")
            self._width = 0


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
