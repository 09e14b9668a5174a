"""How long to wait before a reward is asked again that could not answer for now; pure.

Times are seconds of any clock that does not go back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FIRST_S = 1.0  # the first pause, at most
LONGEST_S = 60.0  # pauses double up to this
SPREAD = 0.5  # share of a pause that is drawn, lest all come back at once


@dataclass
class Patience:
    """Of one request, until it gets on. budget_s: from its first failure to its last try."""

    budget_s: float
    tries: int = 0  # that failed, in a row
    since: float = 0.0  # the first of them

    def pause(self, now: float, draw: float, retry_after_s: float | None = None) -> float | None:
        """Seconds to wait after one more failure; None where the budget ends before. draw: uniform in [0, 1);
        retry_after_s: what the other side asked for."""
        self.since = self.since if self.tries else now
        longest = min(LONGEST_S, FIRST_S * 2.0 ** min(self.tries, 30))
        self.tries += 1
        pause = max(longest * (1 - SPREAD * draw), (retry_after_s or 0.0) + SPREAD * draw * FIRST_S)
        return pause if now + pause <= self.since + self.budget_s else None

    def told(self, pause_s: float, cause: str | None) -> dict[str, Any]:
        """A pause, in the words of an event."""
        return {"tries": self.tries, "pause_s": round(pause_s, 1), "cause": cause}
