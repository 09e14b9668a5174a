"""Nodes that come and go: what changed between two looks."""

from __future__ import annotations

from dav_ray.runtime.cluster.nodes import changes


def test_a_replaced_node_is_lost_and_another_joined() -> None:
    before, now = {"a": "10.0.0.1", "b": "10.0.0.2"}, {"a": "10.0.0.1", "c": "10.0.0.2"}
    assert changes(before, now) == ({"c": "10.0.0.2"}, {"b": "10.0.0.2"})
    assert changes(now, now) == ({}, {})
