"""Prompts with weights and columns: every way to give them, how they are stored, and the line of each mistake."""

from __future__ import annotations

import functools
import json
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dav_ray.config.checks.preflight import check
from dav_ray.config.partition import round_prompts
from dav_ray.config.recipe.differences import differing_keys
from dav_ray.config.recipe.load import from_yaml, load
from dav_ray.config.sections.prompts import Prompts
from dav_ray.errors import UserError

ROWS = [
    {"prompt": "three cats", "count": 3, "target": "cat", "box": [0.5, {"deep": None}]},
    {"prompt": "a dog: ${x} # é 🐕 \\u0024{", "weight": 2.5, "count": 1, "target": "a\nb\u2028c", "box": []},
]
VALUES = "allowed: texts, finite numbers, true, false, null, lists and objects"
COLUMNS = {row["prompt"]: {name: row[name] for name in ("count", "target", "box")} for row in ROWS}


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text("model: {path: org/name}\nprompts: [cat]\nreward: {kind: brightness}\n")
    return str(path)


def jsonl(folder: Path, rows: list[Any], name: str = "p.jsonl") -> str:
    path = folder / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return f"prompts={path}"


def mistake(recipe: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(recipe, overrides)
    (line,) = caught.value.lines
    return line


def kept(recipe: str, override: str) -> Prompts:
    """The prompts, which `config.yaml` gives back."""
    loaded = load(recipe, [override])
    again = from_yaml(loaded.yaml, "run/config.yaml")
    assert again.config == loaded.config and again.yaml == loaded.yaml
    assert again.config.identity() == loaded.config.identity()
    assert differing_keys(loaded.yaml, again.yaml) == []
    assert pickle.loads(pickle.dumps(loaded.config)) == loaded.config
    return loaded.config.prompts


def test_jsonl_is_stored_whole_and_given_back(recipe: str, tmp_path: Path) -> None:
    found = kept(recipe, jsonl(tmp_path, ROWS))
    assert found == ("three cats", ROWS[1]["prompt"])
    assert found.weights == (1.0, 2.5) and found.columns == COLUMNS
    assert all(type(text) is str for text in found)
    tree = {"model": {"path": "org/name"}, "prompts": ROWS, "reward": {"kind": "brightness"}}
    Path(recipe).write_text(yaml.safe_dump(tree).replace("${x}", "\\\\${x}"))
    assert load(recipe).config.prompts == found  # the same as a list in the recipe


def test_texts_alone_are_stored_and_known_as_ever(recipe: str, tmp_path: Path) -> None:
    plain = load(recipe, ["prompts=[cat, dog]"])
    assert "prompts:\n- cat\n- dog\n" in plain.yaml
    rows = [{"prompt": "cat", "weight": 3}, {"prompt": "dog", "weight": 3}]  # all alike
    assert load(recipe, [jsonl(tmp_path, rows)]).config.identity() == plain.config.identity()
    assert load(recipe, [jsonl(tmp_path, [*rows[:1], {"prompt": "dog"}])]).config.identity() != plain.config.identity()
    columns = [{"prompt": "cat", "n": 1}, {"prompt": "dog", "n": 2}]
    other = load(recipe, [jsonl(tmp_path, columns)])
    assert other.config.identity() != plain.config.identity()
    (line,) = differing_keys(plain.yaml, other.yaml)
    assert line.startswith('prompts: was ["cat", "dog"], now {"prompt": "cat", "n": 1}')


def test_many_prompts_can_be_read_back(recipe: str, tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("\n".join(f"cat {i}" for i in range(12_000)))
    loaded = load(recipe, [f"prompts={tmp_path}/many.txt"])
    assert from_yaml(loaded.yaml, "run/config.yaml").config.prompts == loaded.config.prompts


def arrow(folder: Path, table: pa.Table, name: str = "data-00000-of-00001.arrow") -> None:
    """As `Dataset.save_to_disk` writes it."""
    folder.mkdir()
    with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}], "_split": "train"}))
    (folder / "dataset_info.json").write_text("{}")


def test_tables(recipe: str, tmp_path: Path) -> None:
    table = pa.table(
        {
            "prompt": ["cat", "dog", "owl"],
            "count": [1, None, 3],
            "score": [0.5, float("nan"), 2.0],
            "tags": [["a"], [], ["b", "c"]],
            "picture": [b"\x00", b"\x01", b"\x02"],  # left out
            "weight": [1.0, 2.0, 1.0],
        }
    )
    pq.write_table(table, tmp_path / "one.parquet")
    found = kept(recipe, f"prompts={tmp_path}/one.parquet")
    assert found == ("cat", "dog", "owl") and found.weights == (1, 2, 1)
    assert found.columns["dog"] == {"count": None, "score": None, "tags": []}
    parts = tmp_path / "parts"
    parts.mkdir()
    for i, name in enumerate(("b.parquet", "a.parquet")):
        pq.write_table(table.slice(i, 1), parts / name)
    assert kept(recipe, f"prompts={parts}") == ("dog", "cat")  # in the order of the names
    arrow(tmp_path / "saved", table.set_column(0, "prompt", table["prompt"].dictionary_encode()))
    assert kept(recipe, f"prompts={tmp_path}/saved") == found


def test_a_data_set_of_datasets(recipe: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"prompt": ["cat", "dog"], "count": [1, 2]})
    made.save_to_disk(str(tmp_path / "saved"))
    assert kept(recipe, f"prompts={tmp_path}/saved").columns == {"cat": {"count": 1}, "dog": {"count": 2}}


def test_a_template_is_the_product_of_its_lists(recipe: str) -> None:
    given = "prompts={template: '{count} {animal}s, {{sic}}, {count}', animal: [cat, dog], count: [2, 3]}"
    found = kept(recipe, given)
    assert found == ("2 cats, {sic}, 2", "2 dogs, {sic}, 2", "3 cats, {sic}, 3", "3 dogs, {sic}, 3")
    assert found.columns["3 cats, {sic}, 3"] == {"count": 3, "animal": "cat"}
    assert load(recipe, [given, "prompts.animal=[owl]"]).config.prompts == ("2 owls, {sic}, 2", "3 owls, {sic}, 3")


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([{"text": "a", "n": 1}], "line 1: has no prompt; it has text, n"),
        ([{"prompt": "a"}, {"prompt": 3}], "line 2: prompt = 3: is no text; allowed: a text"),
        ([{"prompt": "a", "weight": 0}], "line 1: weight = 0: allowed: a number > 0"),
        ([{"prompt": "a", "weight": "2"}], "line 1: weight = 2: allowed: a number > 0"),
        ([{"prompt": "a", "weight": float("inf")}], "line 1: weight = Infinity: allowed: a number > 0"),
        (["a"], 'line 1: is no object; allowed: {"prompt": TEXT, ...} on each line'),
        (
            [{"prompt": "a", "n": 1}, {"prompt": "b"}, {"prompt": "a", "n": 2}],
            "line 3: a has other columns than in line 1; allowed: prompts that differ, or the same columns",
        ),
        ([{"prompt": "a\ud800"}], "line 1: holds a text that can't be written (half of a surrogate pair)"),
        (
            [{"prompt": "a", "n": [float("nan")]}],
            f"line 1: n = [NaN]: {VALUES}",
        ),
        ([], "the file is empty; allowed: one prompt per line"),
        (
            [{"prompt": "a", "n": functools.reduce(lambda inner, _: [inner], range(40), 1)}],
            f"line 1: n = {'[' * 40}1{']' * 16}...: {VALUES}",
        ),
    ],
)
def test_a_mistake_in_jsonl_names_its_line(rows: list[Any], line: str, recipe: str, tmp_path: Path) -> None:
    assert mistake(recipe, jsonl(tmp_path, rows)) == f"prompts = {tmp_path}/p.jsonl: {line}"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("{animal: [cat]}", "prompts.template: missing; allowed: a text with {NAME} in it, and a list for each name"),
        (
            "{template: 'a {animal}', colour: [red]}",
            "prompts.template = a {animal}: {animal} has no list; allowed: prompts.animal: [...]",
        ),
        (
            "{template: 'a {animal}', animal: [cat], colour: [red]}",
            "prompts.colour: the template has no {colour}; it has animal",
        ),
        ("{template: 'a {a}', a: cat}", "prompts.a = cat: allowed: a list of texts or numbers, at least one"),
        ("{template: 'a {a}', a: []}", "prompts.a = []: allowed: a list of texts or numbers, at least one"),
        (
            "{template: 'a {a.b}', a: [1]}",
            "prompts.template = a {a.b}: {a.b} is no name; allowed: {NAME}, and {{ for a brace",
        ),
        ("{template: 'a {', a: [1]}", "allowed: {NAME}, and {{ for a brace"),
        ("{template: plain}", "prompts.template = plain: names no list; allowed: a text with {NAME} in it"),
        ("{template: '{weight}', weight: [1]}", "prompts.weight: is a column of its own; allowed: another name"),
        (
            "{template: '{a}{b}{c}', a: &l [" + ",".join("0" * 50) + "], b: *l, c: *l}",
            "prompts.template: 125,000 prompts; allowed: at most 50,000",
        ),
        ("hf://org/data", "prompts = hf://org/data: data sets of the hub are not downloaded; allowed: "),
        ("[{prompt: a}, {text: b}]", "prompts[1]: has no prompt; it has text"),
        ("[{prompt: a}, 3]", "prompts[1]: 3 is no prompt; allowed: a text, or an object with prompt"),
        ("[{prompt: a, n: .nan}]", "prompts[0]: n = NaN: allowed: texts, finite numbers, "),
    ],
)
def test_other_mistakes(given: str, line: str, recipe: str) -> None:
    assert line in mistake(recipe, f"prompts={given}")


def test_tables_that_are_none(recipe: str, tmp_path: Path) -> None:
    def refused(name: str) -> str:
        return mistake(recipe, f"prompts={tmp_path / name}").removeprefix(f"prompts = {tmp_path / name}: ")

    pq.write_table(pa.table({"text": ["a"], "n": [1]}), tmp_path / "other.parquet")
    assert refused("other.parquet") == "other.parquet has no column prompt; it has text, n"
    pq.write_table(pa.table({"prompt": [1, 2]}), tmp_path / "numbers.parquet")
    assert refused("numbers.parquet") == "numbers.parquet: the column prompt holds int64; allowed: texts"
    pq.write_table(pa.table({"prompt": ["a", None]}), tmp_path / "null.parquet")
    assert refused("null.parquet") == "row 2: prompt = null: is no text; allowed: a text"
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    assert refused("empty.parquet") == "the table is empty; allowed: one prompt per row"
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no PAR1")
    assert refused("broken.parquet").startswith("broken.parquet can't be read: ")
    (tmp_path / "folder").mkdir()
    assert refused("folder").startswith("the folder holds no Parquet files; allowed: ")
    arrow(tmp_path / "folder" / "train", pa.table({"prompt": ["a"]}))
    (tmp_path / "folder" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert refused("folder") == "holds several parts of a data set; allowed: one of train"


def test_a_mistake_is_told_before_anything_heavy_is_imported(recipe: str, tmp_path: Path) -> None:
    """pyarrow too is imported for a table alone."""
    code = (
        "import sys\nfrom dav_ray.config.recipe.load import load\n"
        f"print(load({recipe!r}, [{jsonl(tmp_path, ROWS)!r}]).config.prompts.weights)\n"
        "print(sorted({'torch', 'ray', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["(1.0, 2.5)", "[]"]


REWARDS = """
class Count:
    differentiable = False
    prompt_columns = ("count",)

    def __call__(self, samples, conditions, columns):
        return samples.flatten(1).mean(1) * 0 + samples.new_tensor(columns["count"])

def target(samples, conditions, columns):
    ...
target.prompt_columns = ["target", "count"]

def short(samples, conditions):
    ...
short.prompt_columns = ("count",)
"""


def test_columns_that_a_reward_wants_have_to_be_there(tiny_folder: str, recipe: str, tmp_path: Path) -> None:
    (tmp_path / "wanting.py").write_text(REWARDS)

    def lines(kind: str, rows: list[Any]) -> list[str]:
        settings = [f"model.path={tiny_folder}", f"reward={{kind: '{tmp_path}/wanting.py:{kind}'}}"]
        if kind == "product":
            settings[1] = f"reward={{kind: product, args: {{rewards: [{{kind: '{tmp_path}/wanting.py:Count'}}]}}}}"
        try:
            check(load(recipe, [*settings, "search.steps=4", jsonl(tmp_path, rows)]).config, tracked=False)
        except UserError as error:
            return [line.partition(": wants ")[2] or line for line in error.lines]
        return []

    full = [{"prompt": "a", "count": 1, "target": "x"}, {"prompt": "b", "count": None, "target": "y"}]
    assert lines("Count", full) == lines("target", full) == lines("product", full) == []
    assert lines("Count", [{"prompt": "a"}]) == lines("product", [{"prompt": "a"}])
    assert lines("Count", [{"prompt": "a"}]) == [
        "the column count of the prompts; they have texts alone; allowed: prompts with this column"
    ]
    assert lines("target", [{"prompt": "a", "count": 1}]) == [
        "the column target of the prompts; they have count; allowed: prompts with this column"
    ]
    assert lines("Count", [*full, {"prompt": "c", "n": 1}]) == [
        "the column count of the prompts; c has none; allowed: prompts that all have it"
    ]
    (line,) = lines("short", full)
    told = "short can't be called with (samples, conditions, columns); allowed: a function of these three"
    assert line.endswith(told)


def test_weighted_prompts_are_drawn_in_proportion_by_seed() -> None:
    prompts, weights = ["a", "b", "c"], (1.0, 2.0, 5.0)
    shares = [weight / 8 for weight in weights]

    def drawn(round: int, num: int, seed: int = 0, together: bool = False) -> list[str]:
        return round_prompts(prompts, round, num, together=together, weights=weights, seed=seed)

    total: Counter[str] = Counter()
    for round in range(1, 401):
        found = Counter(drawn(round, 7))
        assert all(abs(found[p] - 7 * share) < 1 for p, share in zip(prompts, shares, strict=True))
        total += found
    # the standard deviation of a count's rounding is at most 1/2, so that of the mean of 400 at most 1/40
    assert all(abs(total[p] / 400 - 7 * share) < 0.1 for p, share in zip(prompts, shares, strict=True))
    assert drawn(3, 40) == drawn(3, 40) != drawn(4, 40) != drawn(3, 40, seed=1)
    assert drawn(3, 40, together=True) == sorted(drawn(3, 40)) != drawn(3, 40)
    assert drawn(1, 7) == ["c", "c", "c", "b", "c", "a", "b"]  # kept: a run that goes on draws what it drew before
