"""The random streams that are started, by their keys."""

from __future__ import annotations

import pytest

from dav_ray.diffusion import noise


def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The keys of all streams from now on, as they are started."""
    keys: list[tuple[int, ...]] = []
    generator = noise.generator
    monkeypatch.setattr(noise, "generator", lambda *key: (keys.append(key), generator(*key))[1])
    return keys
