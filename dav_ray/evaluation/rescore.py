"""Samples that ended a run, shown to its rewards again."""

from __future__ import annotations

import io
import json

import numpy as np

from dav_ray.errors import UserError
from dav_ray.rewards.base import evaluate
from dav_ray.run_dir.quarantine import FOLDER
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.run_dir.tracebacks import own_part


def asked_again(place: str) -> list[tuple[str, bool]]:
    """The same, each with whether it is a number; before an answer that is none the user's own traceback."""
    from dav_ray.config.recipe.load import from_yaml
    from dav_ray.registry import on_path
    from dav_ray.rewards.registry import build

    run_dir, _, name = place.rpartition(f"/{FOLDER}/")
    storage = open_storage(run_dir)
    try:
        record = json.loads(storage.read(f"{FOLDER}/{name}"))
        held = np.load(io.BytesIO(storage.read(record["samples"])), allow_pickle=False)
        config = from_yaml(storage.read("config.yaml").decode(), f"{run_dir}/config.yaml").config
    except (OSError, ValueError, KeyError) as error:
        words = f"holds no samples ({type(error).__name__}: {error})"
        raise UserError(f"{place}: {words}; allowed: RUN_DIR/{FOLDER}/NAME.json of a reward's failure") from error
    on_path(config.modules)
    samples, conditions = held["samples"], [str(text) for text in held["condition"]]
    lines: list[tuple[str, bool]] = []
    for reward in config.reward:
        built = build(reward.kind, dict(reward.args), "cpu", config.prompts.columns)
        scored = evaluate(built, samples, conditions, False)
        said = [scored.error] * len(samples) if scored.values is None else scored.values.tolist()
        lines += [(line, True) for line in own_part(scored.trace)]
        lines += [
            (f"{reward.label}: sample {row}, {condition!r}: {value}", isinstance(value, float) and value < float("inf"))
            for row, condition, value in zip(held["row"], conditions, said, strict=True)
        ]
    return lines
