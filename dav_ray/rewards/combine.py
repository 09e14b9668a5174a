"""The product of rewards: a sample is as good as its factors allow, and worth nothing where one of them is 0.

A weighted sum needs no class: a recipe may list several rewards with weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dav_ray.rewards.samples.columns import columns_of
from dav_ray.rewards.samples.pixels import WANTS, Wants, as_wanted, wants_of


class Product:
    """The product of the factors' values, each in [0, inf), or -inf where any of them is.

    rewards: a list of {kind, args}, as in a recipe. A factor that answers a negative number, a NaN or plus infinity is
    an error that names it: a product would turn two wrongs into a right.
    """

    # What a product may be: preflight reads the class alone. The object's own is whether all its factors are, and one
    # that is not ends the first call that asks for a gradient.
    differentiable = True

    def __init__(self, rewards: list[dict[str, Any]]) -> None:
        if not isinstance(rewards, list) or not rewards:
            raise ValueError(f"rewards = {rewards!r}; allowed: a list of at least one {{kind, args}}")
        self.factors = [(f"rewards[{i}] ({_kind(i, entry)})", _build(i, entry)) for i, entry in enumerate(rewards)]
        self._flat = [name for name, factor in self.factors if not getattr(factor, "differentiable", False)]
        self.differentiable = not self._flat
        wanted = [wants_of(factor) for _, factor in self.factors]
        self.wants: Wants = "uint8" if set(wanted) == {"uint8"} else "float32"
        wanted_columns = [columns_of(factor) for _, factor in self.factors]
        self.prompt_columns = tuple(dict.fromkeys(name for names in wanted_columns for name in names))
        self.by_row = all(getattr(factor, "by_row", False) is True for _, factor in self.factors)

    def __call__(self, samples: Tensor, conditions: Sequence[str], *columns: Mapping[str, Sequence[Any]]) -> Tensor:
        """Float64 [B]. columns: of all factors together."""
        if samples.requires_grad and self._flat:
            flat = ", ".join(self._flat)
            raise ValueError(f"{flat}: no gradient; allowed: search.gradient = false, or differentiable factors")
        shown = {wants: samples if samples.requires_grad else as_wanted(samples, wants) for wants in WANTS}
        answers = (
            (name, factor(shown[wants_of(factor)], conditions, *_own(factor, columns))) for name, factor in self.factors
        )
        values = torch.stack([_checked(name, answer) for name, answer in answers])
        dead = torch.isneginf(values)
        # 0 * -inf is NaN: what is dead is left out of the product and its gradient
        product = torch.where(dead, torch.ones_like(values), values).prod(dim=0)
        return torch.where(dead.any(dim=0), torch.full_like(product, -torch.inf), product)


def _own(factor: Any, columns: Sequence[Mapping[str, Sequence[Any]]]) -> list[dict[str, Sequence[Any]]]:
    """Of the columns those that a factor wants."""
    names = columns_of(factor)
    return [{name: held[name] for name in names} for held in columns] if names else []


def _checked(name: str, values: Tensor) -> Tensor:
    """The factor's values [B], float64. ValueError naming the first that is no number >= 0 and not -inf."""
    fine = (values >= 0) & (values < torch.inf) | torch.isneginf(values)
    if not bool(fine.all()):
        row = int((~fine).int().argmax())
        raise ValueError(f"{name} gave {values[row].item()} for sample {row}; allowed: numbers >= 0, or -inf")
    return values.double()


def _kind(i: int, entry: Any) -> str:
    """ValueError unless the entry is {kind, args} or {kind}."""
    if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str) or set(entry) - {"kind", "args"}:
        raise ValueError(f"rewards[{i}] = {entry!r}; allowed: {{kind, args}}")
    return entry["kind"]


def _build(i: int, entry: dict[str, Any]) -> Any:
    """The factor. ValueError where its kind is unknown or its constructor refuses the arguments."""
    from dav_ray.rewards.registry import REWARDS, make

    kind, args = entry["kind"], entry.get("args") or {}
    if ":" not in kind and kind not in REWARDS:
        raise ValueError(f"rewards[{i}].kind = {kind}; allowed: {', '.join(sorted(REWARDS))}, or module.path:Name")
    try:
        return make(kind, args)
    except (TypeError, ValueError) as error:
        raise ValueError(f"rewards[{i}].args = {args}: {kind}: {error}") from error
