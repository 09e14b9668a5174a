"""Every command in a page is one that its program takes: checked word by word, nothing is started."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.exceptions import TyperException

from dav_ray.cli.app import app
from dav_ray.config.keys.describe import fields, without_index
from dav_ray.config.keys.table import table
from dav_ray.config.recipe.load import load, shipped
from tests.support.markdown import Block, all_blocks, inline_code, name, pages, text
from tests.support.places import JOBS, ROOT

DRAWING = re.compile("[─│▶▼└┌]")
# programs that are not this repository's: their commands are read by people
OTHERS = ("aws", "docker", "eval", "export", "gcloud", "helm", "kubectl", "ray", "ruff", "pyright", "lint-imports")
CHECKED = ("dav-ray", "python", "pip", "pytest")
ENDS = ("&&", "||", ";", "|", "&")
RECIPES = ("run", "doctor", "try-reward")
SAME = {"jobs/align.py": "run", "jobs/pretrain_masked.py": "pretrain"}  # programs that take what a command takes
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def lines(block: str) -> list[str]:
    """The commands of a block, each on one line."""
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


def commands(line: str) -> list[list[str]]:
    """A line's simple commands, without comments and redirections. ValueError for quotes that are not closed."""
    whole = re.sub(r"\$\(.*\)", "SUBSTITUTED", line)
    lexer = shlex.shlex(whole, posix=True, punctuation_chars=True)
    lexer.wordchars += "$:@%,+^{}[]"
    found: list[list[str]] = [[]]
    words = iter(list(lexer))
    for word in words:
        if word in ENDS:
            found.append([])
        elif re.fullmatch(r"\d?[<>]+&?", word):
            next(words, None)
        else:
            found[-1].append(word)
    return [words for words in found if words]


def mistakes(words: Sequence[str]) -> list[str]:
    """What is wrong with one command."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if not words:
        return []
    program, rest = words[0], list(words[1:])
    if program == "dav-ray":
        return dav_ray_mistakes(rest)
    if program == "python":
        return python_mistakes(rest)
    if program == "pip":
        return pip_mistakes(rest)
    if program == "pytest":
        markers = [line.partition(":")[0] for line in PROJECT["tool"]["pytest"]["ini_options"]["markers"]]
        named = set(re.findall(r"\w+", rest[1])) - {"and", "not"} if rest[:1] == ["-m"] else set[str]()
        return [f"no marker {name}" for name in sorted(named.difference(markers))]
    if "/" in program:
        fits = os.access(ROOT / program, os.X_OK)
        return [] if fits else [f"{program} is no program of this repository"]
    if program == "ray" and "--" in rest:
        return mistakes(rest[rest.index("--") + 1 :])
    return [] if program in OTHERS else [f"unknown program {program}"]


def dav_ray_mistakes(words: list[str]) -> list[str]:
    group: Any = typer.main.get_command(app)
    if not words:
        return []
    if words[0].startswith("-"):
        known = [option for parameter in group.params for option in parameter.opts] + ["--help"]
        return [] if words[0] in known else [f"no option {words[0]}"]
    if words[0] not in group.commands:
        return [f"no command {words[0]}"]
    try:
        context = group.commands[words[0]].make_context(words[0], words[1:])
    except TyperException as error:
        return [error.format_message()]
    return settings_mistakes(words[0], context.params)


def settings_mistakes(command: str, given: dict[str, object]) -> list[str]:
    """Keys and recipes that there are not."""
    if command == "config":
        return [] if given["key"] is None or table(str(given["key"])) else ["no such key"]
    if command == "init":
        origin = given["origin"]
        return [] if origin is None or origin in shipped() else [f"no recipe {origin}"]
    if command not in RECIPES:
        return []
    recipe, overrides = given.get("recipe") or given.get("target"), given.get("overrides") or []
    assert isinstance(overrides, list)
    if recipe in shipped():
        load(str(recipe), overrides)
        return []
    keys = [(word, without_index(word.partition("=")[0])) for word in overrides]
    return [f"no key {word}" for word, key in keys if key not in fields() and ".args." not in key]


def python_mistakes(words: list[str]) -> list[str]:
    if words[0] == "-m":
        return [] if importlib.util.find_spec(words[1]) else [f"no module {words[1]}"]
    script = ROOT / words[0]
    main = script / "__main__.py" if script.is_dir() else script
    if not main.is_file():
        return [f"no script {words[0]}"]
    if words[0] in SAME:
        return dav_ray_mistakes([SAME[words[0]], *words[1:]])
    # a study's options are its folder's and those of all studies; names of 0.1.0 hand on to a folder
    sources = [*script.rglob("*.py"), JOBS / "tables.py"] if script.is_dir() else JOBS.rglob("*.py")
    source = "".join(path.read_text(encoding="utf-8") for path in sources)
    options = [word.partition("=")[0] for word in words[1:] if word.startswith("--")]
    return [f"{words[0]} has no {option}" for option in options if f'"{option}"' not in source]


def pip_mistakes(words: list[str]) -> list[str]:
    found = []
    for extra in re.findall(r"(?:\.|dav_ray)\[(\w+)\]", " ".join(words)):
        found += [] if extra in PROJECT["project"]["optional-dependencies"] else [f"no extra {extra}"]
    return found


SHELL = [block for block in all_blocks("", "sh", "bash", "console") if not DRAWING.search(block.text)]


@pytest.mark.parametrize("block", SHELL, ids=[block.where for block in SHELL])
def test_commands_of_a_block(block: Block) -> None:
    wrong = [f"{line}: {why}" for line in lines(block.text) for words in commands(line) for why in mistakes(words)]
    assert not wrong


@pytest.mark.parametrize("page", pages(), ids=name)
def test_commands_in_the_text(page: Path) -> None:
    wrong = []
    for code in inline_code(text(page)):
        if code.split(" ")[0] in CHECKED and " " in code and "--" != code.split(" ")[1]:
            wrong += [f"{code}: {why}" for words in commands(code) for why in mistakes(named(words))]
    assert not wrong


def named(words: list[str]) -> list[str]:
    """A command as a sentence names it, maybe without its arguments: with all that its program asks for."""
    given = [word for word in words if not word.startswith("[")]
    if given[0] != "dav-ray" or len(given) > 2:
        return given
    return given + {"sample": ["R", "--num", "1", "--out", "O"], "pretrain": ["D", "--out", "O"]}.get(
        given[1], ["digits"] if given[1] in ("run", "report", "evaluate") else []
    )


def test_mistakes_are_found() -> None:
    assert mistakes(["dav-ray", "rum", "digits"]) == ["no command rum"]
    assert mistakes(["dav-ray", "run", "digits", "--dryrun"])
    assert mistakes(["dav-ray", "sample", "runs/digits"])  # two options are missing
    assert mistakes(["dav-ray", "run", "my.yaml", "search.alhpa=1"]) == ["no key search.alhpa=1"]
    assert mistakes(["python", "jobs/no_such_study.py"]) and mistakes(["python", "-m", "dav_ray.no_such_module"])
    assert mistakes(["pip", "install", "-e", ".[nothing]"]) == ["no extra nothing"]
    assert mistakes(["pytest", "-m", "fast"]) == mistakes(["pytest", "-m", "fast and not slow"]) == ["no marker fast"]
    assert mistakes(["cluster/no_such.sh", "up"]) and mistakes(["frobnicate"])
    assert mistakes(["ray", "job", "submit", "--", "dav-ray", "rum"]) == ["no command rum"]
    assert commands("a b && c >out # d") == [["a", "b"], ["c"]] and shutil.which("python")
