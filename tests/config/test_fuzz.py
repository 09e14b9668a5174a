"""Parsers under hypothesis, and every file that is read under seeded damage: an error in one line, or a right result.

Damaged files are read in a process of their own (`tests.support.fuzz`): a reader that crashes its interpreter is seen
too.
"""

from __future__ import annotations

import json
import os
import re
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dav_ray.config.checks.preflight import check_address
from dav_ray.config.keys.describe import fields, nearest_key
from dav_ray.config.recipe.load import from_yaml, load
from dav_ray.config.recipe.typed_yaml import assign, parse
from dav_ray.diffusion.masked.alphabet import Alphabet, read_sequences
from dav_ray.diffusion.masked.condition import Condition
from dav_ray.errors import UserError
from dav_ray.redact import printable
from dav_ray.run_dir.manifest import Manifest
from dav_ray.run_dir.storage.interface import checked_path
from dav_ray.run_dir.storage.local import LocalStorage
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.strict import parse_json
from tests.support.deadlines import hung
from tests.support.places import ROOT

RECIPE = "model: {path: org/name}\nprompts: [cat]\nreward: {kind: brightness}\n"
quick = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
loading = settings(quick, max_examples=20)  # of what loads a whole recipe, twice; thousands of these are slow tests
KEYS = st.sampled_from(sorted(fields()))
YAML = st.text(st.sampled_from("abc01.-_:[]{}'\"!&*#%@|>?,$\\ \n\t${}nulltrue~é\x00"), max_size=60)
VALUES = st.one_of(YAML, st.text(max_size=30), st.integers().map(str), st.floats().map(str), st.just("${oc.env:HOME}"))
DNA = Alphabet.of("dna")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples: making them takes longer than reading."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def mine(folder: Path) -> str:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE)
    return str(path)


@loading
@given(key=st.one_of(KEYS, YAML), value=VALUES, index=st.sampled_from(["", "[0]", "[9]", ".0", ".x"]))
@example(key="search.alpha", value="${" * 3000, index="")
@example(key="prompts", value="['???']", index="")
def test_overrides(mine: str, key: str, value: str, index: str) -> None:
    """What is taken can be stored and read again, as the same configuration."""
    try:
        loaded = load(mine, [f"{key}{index}={value}"])
    except UserError as error:
        assert error.lines and all(printable(line) for line in error.lines)
        return
    again = from_yaml(loaded.yaml, "run/config.yaml")
    assert again.config == loaded.config and again.yaml == loaded.yaml


@quick
@given(text=YAML, deep=st.integers(0, 3000))
def test_yaml(text: str, deep: int) -> None:
    for typed in (text, f"a: {text}", f"a:\n {text}\nb: {text}", "[" * deep + text):
        try:
            assert isinstance(parse(typed, "here"), dict)
        except UserError as error:
            assert error.lines[0].startswith("here")


@loading
@given(prompts=st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20), min_size=1))
@example(
    prompts=["\\${x}", "\\\\${x}", "${oc.env:HOME}", "a\\", "???", "null", "1e3", "~", "- a", "#", "\\#", "'", '"', " "]
)
def test_prompts_of_a_file_come_back_as_they_were(folder: Path, prompts: list[str]) -> None:
    (folder / "mine.yaml").write_text("model: {path: org/name}\nprompts: p.txt\nreward: {kind: brightness}\n")
    (folder / "p.txt").write_text("\n".join(prompts), encoding="utf-8")
    lines = (folder / "p.txt").read_text(encoding="utf-8-sig").splitlines()
    kept = [line for line in map(str.strip, lines) if line and not line.startswith("#")]
    try:
        loaded = load(str(folder / "mine.yaml"))
    except UserError as error:
        assert not kept, error
        return
    assert from_yaml(loaded.yaml, "run/config.yaml").config.prompts == loaded.config.prompts
    assert list(loaded.config.prompts) == [re.sub(r"^\\#", "#", line) for line in kept]


@quick
@given(tree=st.dictionaries(st.text("ab", max_size=2), st.lists(st.integers(), max_size=2)), words=st.lists(st.text()))
def test_assign_changes_what_it_names_or_nothing(tree: dict[str, Any], words: list[str]) -> None:
    for word in words:
        before = json.dumps(tree, default=str)
        try:
            assign(tree, word)
        except ValueError:
            assert "=" not in word or json.dumps(tree, default=str) is not None
        assert "=" in word or json.dumps(tree, default=str) == before


@quick
@given(text=st.one_of(st.text(max_size=40), st.text("class=fixd0123:ACGT,. ", max_size=40)))
def test_conditions(text: str) -> None:
    try:
        found = Condition.parse(text, DNA, 12, 3)
    except ValueError as error:
        assert str(error)
        return
    assert found.label is None or 0 <= found.label < 3
    assert all(0 <= position < 12 and 0 <= token < 4 for position, token in found.fixed)
    assert len({position for position, _ in found.fixed}) == len(found.fixed)


@quick
@given(
    kind=st.sampled_from([".fa", ".csv", ".parquet"]),
    text=st.one_of(st.binary(max_size=80), st.text('>ACGT\n, \rsequence"x').map(str.encode)),
)
def test_sequence_files(folder: Path, kind: str, text: bytes) -> None:
    file = folder / f"a{kind}"
    file.write_bytes(text)
    try:
        tokens = read_sequences(file, DNA)
    except UserError as error:
        assert all(line.startswith(str(file)) for line in error.lines)
        return
    assert tokens.ndim == 2 and tokens.shape[1] > 0 and tokens.max() < 4


@quick
@given(letters=st.text(max_size=300), text=st.text(max_size=30))
def test_alphabets(letters: str, text: str) -> None:
    try:
        alphabet = Alphabet.of(letters)
    except ValueError:
        return
    own = "".join(letter for letter in text if letter in alphabet.letters)
    assert alphabet.decode(alphabet.encode(own)[None])[0] == own if own else True


@quick
@given(key=st.text(max_size=40))
def test_unknown_keys_get_a_hint(key: str) -> None:
    assert nearest_key(key)


@quick
@given(address=st.one_of(st.text(max_size=30), st.text(string.printable + "²٣", max_size=30)))
def test_addresses(address: str) -> None:
    try:
        check_address(address, connect=False)
    except UserError:
        return
    assert address in ("auto", "local") or 0 < int(address.rpartition(":")[2]) < 2**16


@quick
@given(rest=st.text(max_size=40), scheme=st.sampled_from(["", "file://", "s3://", "gs://", "http://", "file:///"]))
def test_places(rest: str, scheme: str) -> None:
    try:
        storage = open_storage(scheme + rest)
    except UserError as error:
        assert error.lines
        return
    assert not isinstance(storage, LocalStorage) or os.path.isabs(storage.uri)
    assert isinstance(storage, LocalStorage) or "@" not in storage.uri.split("/")[2]


@quick
@given(path=st.text("./ab\\\x00~", max_size=20))
def test_no_path_leaves_the_run_directory(path: str) -> None:
    try:
        inside = checked_path(path)
    except ValueError:
        return
    assert os.path.normpath(f"/run/{inside}").startswith("/run")


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
)
SHARD = {"path": "buffer/round=0002/a.parquet", "sha256": "0", "chunk": 0, "rows": 1, "policy_version": 0}
MANIFEST = {
    **{"epoch": 1, "round": 2, "phase": "search", "policy_version": 1, "closed": 1, "shards": [SHARD], "ahead": []},
    **{"versions": {"ray": "2"}, "config_sha256": "0" * 64},
}


@quick
@given(
    name=st.sampled_from([*MANIFEST, "new"]), value=JSON, inner=st.sampled_from([None, *SHARD]), cut=st.integers(0, 400)
)
def test_manifests(name: str, value: Any, inner: str | None, cut: int) -> None:
    fields = {**MANIFEST, name: [{**SHARD, inner: value}] if inner and name in ("shards", "ahead") else value}
    for data in (json.dumps(fields).encode(), json.dumps(fields).encode()[:cut]):
        try:
            found = Manifest.from_json(data)
        except ValueError as error:
            assert str(error)
            continue
        assert Manifest.from_json(found.to_json()) == found
        assert found.round >= 1 and all(shard.path.startswith("buffer/") for shard in found.shards)


@quick
@given(data=st.binary(max_size=60))
@example(data=b"[" * 100_000)
@example(data=b'{"a": ' * 100_000)
def test_json(data: bytes) -> None:
    try:
        parse_json(data)
    except ValueError as error:
        assert str(error)


@pytest.mark.slow  # the same with more examples
@pytest.mark.parametrize("test", [test_overrides, test_prompts_of_a_file_come_back_as_they_were])
def test_many_more_recipes(test: Any, mine: str, folder: Path) -> None:
    more = settings(quick, max_examples=1000)(test)
    more(mine) if test is test_overrides else more(folder)


def damaged(folder: Path, cases: int, seed: int) -> dict[str, Any]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.support.fuzz", str(folder), str(cases), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=hung(3000))
    assert done.returncode == 0, (done.returncode, done.stdout[-500:], done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def check_counts(found: dict[str, Any], cases: int) -> None:
    assert found["wrong"] == [] and len(found["readers"]) >= 12
    for name, (refused, right) in found["readers"].items():
        assert refused + right == cases, name
        assert refused > 0, f"no damage to {name} was noticed"
    assert found["readers"]["shard"][1] == 0  # its checksum tells


def test_damaged_files(tmp_path: Path) -> None:
    check_counts(damaged(tmp_path, 10, 0), 10)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_thousands_of_damaged_files(tmp_path: Path) -> None:
    check_counts(damaged(tmp_path, 400, 1), 400)
