"""What a run directory's results depend on: what may be another value when a run goes on, and what counts as the same.

One list, with a reason for each key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

ANEW = "a new run can start from this one's policy (init.run)"


@dataclass(frozen=True)
class Rule:
    """keys: dotted ones without indices; `*` is one part of a key, `**` all that follow."""

    keys: tuple[str, ...]
    free: bool
    why: str
    fixed_before: bool = False  # in 0.1.0, whose manifests hold a checksum over what was fixed then

    @property
    def words(self) -> str:
        """The keys as people read them."""
        shown = [key.replace("**", "*") for key in self.keys if f"{key}.**" not in self.keys]
        return "all others" if shown == ["*"] else ", ".join(shown)

    def names(self, key: str) -> bool:
        return any(re.fullmatch(_pattern(name), key) for name in self.keys)


RULES = (  # the first that names a key counts
    Rule(
        ("rounds",),
        True,
        "more: the run goes on; fewer: it ends at the rounds that are closed, none is discarded",
        fixed_before=True,
    ),
    Rule(
        (
            *(f"evaluate.{name}" for name in ("samples", "batch", "kl_samples", "elbo_draws", "grid")),
            *(f"evaluate.heldout.role.{name}" for name in ("threads", "batch", "merge")),
        ),
        True,
        "it measures, and decides nothing; rounds that are evaluated keep theirs",
        fixed_before=True,
    ),
    Rule(
        ("model.origin", "evaluate.origin")
        + tuple(
            f"{at}.{name}"
            for at in ("reward", "evaluate.heldout")
            for name in ("origin", "python", "golden", "golden_check")
        )
        + ("reward.tolerance", "reward.tolerance.**", "evaluate.heldout.tolerance", "evaluate.heldout.tolerance.**"),
        True,
        "no result depends on it",
    ),
    Rule(
        ("roles.*.threads", "roles.train.replicas", "roles.reward.batch", "roles.reward.merge")
        + tuple(f"reward.role.{name}" for name in ("threads", "batch", "merge")),
        False,
        "it decides the order of sums, and so the last bits of every result",
    ),
    Rule(
        ("roles.*.**", "reward.role.**", "evaluate.heldout.role.**"),
        True,
        "places, resources, environments and deadlines: no result depends on them",
    ),
    Rule(
        ("evaluate.heldout", "evaluate.heldout.**"),
        True,
        "measures may come and go, and rounds that are evaluated keep theirs; a name stays the measure that it was",
        fixed_before=True,
    ),
    Rule(
        ("evaluate.seed", "evaluate.features", "evaluate.reference", "evaluate.kmer", "evaluate.**"),
        False,
        "rounds are compared by one measure, on the same seeds",
    ),
    Rule(("modules", "modules.**"), True, "where a module of your own lies; it is to be the same one"),
    Rule(("track", "track.**"), True, "trackers only watch"),
    Rule(("retain", "retain.**"), True, "it counts from now on; what was deleted does not come back"),
    Rule(
        ("search.chunk", "search.micro_batch", "search.decode_batch", "search.gradient_batch")
        + ("mstep.micro_batch", "mstep.group", "batches"),
        False,
        "the shapes of batches decide the last bits of every result",
    ),
    Rule(("mstep.checkpointing",), True, "memory against time: the gradients are the same"),
    Rule(("mstep.kl_measured",), True, "it measures, and decides nothing"),
    Rule(("model.long_prompts",), True, "it refuses, or it does not: no result depends on it"),
    Rule(("model.**",), False, "another model is another run"),
    Rule(("init", "init.**"), False, "the run has started; " + ANEW),
    Rule(("**",), False, "it decides what a round finds or learns; " + ANEW),
)


@cache
def rule(key: str) -> Rule:
    """The rule for a dotted key, indices or not."""
    name = re.sub(r"\[\d+\]|\.\d+(?=\.|$)", "", key)
    return next(found for found in RULES if found.names(name))


def may_change(key: str) -> bool:
    """Whether a run may be gone on with under another value of this key."""
    return rule(key).free


def might_change(key: str) -> bool:
    """The same by the rules of 0.1.0."""
    return rule(key).free and not rule(key).fixed_before


def reason(key: str) -> str:
    """Why a key may change, or not, in words that follow its name."""
    return rule(key).why


def listed() -> list[str]:
    """The list, a line per rule: what it is about, and why."""
    ordered = sorted(RULES, key=lambda found: not found.free)
    return [f"{'may change' if found.free else 'fixed'}: {found.words}: {found.why}" for found in ordered]


def _pattern(name: str) -> str:
    parts = {"**": ".+", "*": r"[^.]+"}
    return r"\.".join(parts.get(part, re.escape(part)) for part in name.split("."))


# what earlier releases stored for keys that were not given, and what says the same as today's default
FORMER_DEFAULTS: dict[str, Any] = {
    "model.alphabet": "dna",
    "mstep.lora.targets": ["to_q", "to_k", "to_v", "to_out.0"],
}

# Ray unpacks what a job brings along into a folder of this name, another one for every content
_UNPACKED = re.compile(r"/.*/working_dir_files/[^/]+/(.*)", re.DOTALL)


def former_default(key: str, value: Any) -> bool:
    """Whether this is what an earlier release had as the (dotted) key's default."""
    return key in FORMER_DEFAULTS and value == FORMER_DEFAULTS[key]


def unpacked(value: Any) -> Any:
    """A path in a job's copy of its working directory is known by its place in there; anything else is as it is."""
    inside = _UNPACKED.fullmatch(value) if isinstance(value, str) else None
    return inside[1] if inside else value
