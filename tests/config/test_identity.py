"""Recipes keep the identities that earlier releases stored: a run directory goes on under this one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dav_ray.config.recipe.load import from_yaml, load

STORED = Path(__file__).parent / "stored"
KEPT = json.loads((STORED / "identities.json").read_text())  # former: by the rules of 0.1.0


@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: " ".join([kept["recipe"], *kept["overrides"][:1]]))
def test_identities_are_those_of_before(kept: dict[str, Any]) -> None:
    """Whether a recipe is typed, or read back from a run directory."""
    found = load(kept["recipe"], kept["overrides"])
    for config in (found.config, from_yaml(found.yaml, "runs/a/config.yaml").config):
        assert (config.identity(), config.former_identity()) == (kept["identity"], kept["former"])


def test_what_is_stored_has_no_key_that_is_not_used() -> None:
    """An earlier release reads it."""
    search = load("digits").yaml.partition("\nsearch:\n")[2].partition("\nmstep:")[0]
    assert search.startswith("  kind: dav\n  candidates: ") and "args" not in search


def test_a_configuration_that_names_all_keys_of_all_kinds() -> None:
    """As 0.1.0 stored it."""
    text = (STORED / "config-0.1.0.yaml").read_text()
    found = from_yaml(text, "runs/a/config.yaml").config
    assert "warm_start: own" in text and (found.search.kind, found.search.particles) == ("smc", 2)
    assert found.former_identity() == "767b50aaea42c062c81eb41cb27af1d5fef50c0940db6b152d3e3c32607e93a4"
    assert found.identity() == "3f37211adf92f89799de56bcdabb57d37489e81734ba237aabb075582fb95acf"
