"""What the doctor says: findings, and how they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One line of the table; `ok` is False where something does not fit."""

    subject: str
    text: str
    ok: bool = True


def render(findings: Sequence[Finding]) -> str:
    """The findings as aligned text; what does not fit is marked."""
    width = max(len(finding.subject) for finding in findings)
    return "\n".join(f"{'   ' if f.ok else 'NO '}{f.subject:<{width}}  {f.text}" for f in findings)
