"""The table that ends a run, for images and for sequences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dav_ray.report.table import render_rounds
from dav_ray.run_dir.storage.uri import open_storage


def cells(run: Path, *rows: dict[str, Any]) -> list[list[str]]:
    """The header and the rows of the table."""
    (run / "metrics.jsonl").write_text("".join(json.dumps({"role": "evaluate", **row}) + "\n" for row in rows))
    lines = render_rounds(open_storage(str(run))).replace("┃", "│").splitlines()
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]


def test_images(tmp_path: Path) -> None:
    first = {"evaluate/reward_mean": 1.0, "evaluate/reward_std": 0.5, "median/reward": 1.0, "heldout/x": 0.25}
    last = {**first, "evaluate/reward_mean": 2.0, "diversity/features": 3.0, "diversity/within_prompt": 1.0}
    first |= {"diversity/features": 4.0, "diversity/within_prompt": 2.0}

    assert cells(tmp_path, {"round": 0, **first}, {"round": 1, **last}) == [
        ["round", "reward", "rise in sd", "x", "diversity", "within prompt", "searched reward"],
        ["0", "1", "+0.00", "0.25", "100%", "100%", ""],
        ["1", "2", "+2.00", "0.25", "75%", "50%", ""],
    ]


def test_sequences_and_a_round_without_a_feasible_one(tmp_path: Path) -> None:
    common = {"heldout/elbo": -250.0, "diversity/edit_distance": 100.0, "diversity/unique": 0.5}
    first = {"round": 0, "evaluate/reward_mean": 1.0, "evaluate/reward_std": 0.5, **common}
    first["heldout/kmer_correlation"] = 0.9
    last = {"round": 1, "evaluate/feasible": 0.0, **common, "diversity/edit_distance": 40.0}

    assert cells(tmp_path, first, last) == [
        ["round", "reward", "rise in sd", "feasible", "elbo", "k-mers r", "edit distance", "unique", "searched reward"],
        ["0", "1", "+0.00", "100%", "-250", "0.9", "100%", "50%", ""],
        ["1", "", "", "0%", "-250", "", "40%", "50%", ""],
    ]


def test_rounds_of_different_sizes(tmp_path: Path) -> None:
    """One with fewer samples has no pair within a prompt; a measure of later has no past."""
    first = {"evaluate/reward_mean": 1.0, "evaluate/reward_std": 0.5, "diversity/within_prompt": 2.0}
    last = {"evaluate/reward_mean": 2.0, "heldout/new": 0.25}

    assert cells(tmp_path, {"round": 0, **first}, {"round": 1, **last}) == [
        ["round", "reward", "rise in sd", "new", "within prompt", "searched reward"],
        ["0", "1", "+0.00", "", "100%", ""],
        ["1", "2", "+2.00", "0.25", "", ""],
    ]


def test_the_search_and_its_alpha(tmp_path: Path) -> None:
    first = {"round": 0, "evaluate/reward_mean": 1.0, "evaluate/reward_std": 0.5}
    search = {"round": 1, "role": "search", "reward/mean": 2.5, "search/ess": 3.251, "search/alpha": 0.05}
    last = {"round": 1, "evaluate/reward_mean": 2.0}

    assert cells(tmp_path, first, search, last)[0] == ["round", "reward", "rise in sd", "searched reward"]
    assert cells(tmp_path, first, {**search, "search/ess_most": 4.0}, last) == [
        ["round", "reward", "rise in sd", "searched reward", "ess of 4"],
        ["0", "1", "+0.00", "", ""],
        ["1", "2", "+2.00", "2.5", "3.251"],
    ]
    said = render_rounds(open_storage(str(tmp_path))).splitlines()
    assert said[-1] == "search.alpha 0.05: 0.1 sd of the pretrained reward"
    assert cells(tmp_path, first, {**search, "search/ess_most": 1.0}, last)[0][-1] == "searched reward"
