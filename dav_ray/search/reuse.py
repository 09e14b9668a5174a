"""Which candidates need an evaluation of their own. A timeless network (a masked model without time conditioning)
says the same of equal states: a candidate that equals its parent, or one drawn before it, shares its evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reuse:
    """For B parents with M candidates each. The pool is: the B parents, then the N rows that are evaluated.

    rows [N]: of the B * M candidates, those to evaluate; source [B * M]: each candidate's place in the pool;
    parents [K]: those that some candidate equals, ascending.
    """

    rows: Tensor
    source: Tensor
    parents: Tensor

    @classmethod
    def of(cls, parents: Tensor, candidates: Tensor) -> Reuse:
        """parents [B, *event], candidates [B, M, *event]: equal states are evaluated once per parent."""
        batch, num = candidates.shape[:2]
        states = torch.cat([parents.unsqueeze(1), candidates], dim=1).flatten(2).cpu()
        equal = (states.unsqueeze(2) == states.unsqueeze(1)).all(-1)
        first = equal.int().argmax(-1)[:, 1:]  # of the first equal state: 0 the parent, m candidate m
        fresh = first == torch.arange(1, num + 1)
        rows = fresh.flatten().nonzero().squeeze(1)
        place = torch.zeros(batch * num, dtype=torch.int64)
        place[rows] = batch + torch.arange(len(rows))
        offset = torch.arange(batch).unsqueeze(1)
        source = torch.where(first == 0, offset, place[(offset * num + first - 1).clamp_min(0)])
        return cls(rows, source.flatten(), (first == 0).any(1).nonzero().squeeze(1))
