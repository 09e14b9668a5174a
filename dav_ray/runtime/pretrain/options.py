"""The options of `dav-ray pretrain`, its data, and all that can be known to be wrong with them: no torch, no Ray."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dav_ray.config.checks.preflight import check_address
from dav_ray.config.checks.submitted import inside_submitted_job
from dav_ray.diffusion.masked.alphabet import ALPHABETS, FASTA, MOST_MISTAKES, Alphabet, entries, read_sequences
from dav_ray.errors import UserError
from dav_ray.run_dir.storage.local import LocalStorage

SETTINGS = "run.json"  # what a training that goes on must have in common with the one that began


@dataclass(frozen=True)
class Options:
    """What `dav-ray pretrain` was asked; the command says what each of them is."""

    data: str
    out: str
    alphabet: str
    column: str
    class_column: str | None
    hidden: int
    stacks: int
    kernel: int
    time_conditioning: bool
    steps: int
    batch: int
    learning_rate: float
    warmup: int
    ema: float
    holdout: float
    every: int
    seed: int
    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    threads: int
    half: bool
    address: str


def prepare(options: Options) -> tuple[tuple[np.ndarray, np.ndarray | None], dict[str, Any]]:
    """Tokens [N, L] uint8 and labels [N] int64, and what the weights depend on. UserError: a line per mistake."""
    mistakes = option_mistakes(options)
    tokens, labels = np.zeros((0, 0), np.uint8), None
    try:
        alphabet = Alphabet.of(options.alphabet)
        tokens = read_sequences(options.data, alphabet, options.column)
        labels = read_classes(options.data, options.class_column) if options.class_column else None
        mistakes += row_mistakes(options, len(tokens))
    except UserError as error:
        mistakes += error.lines
    except ValueError as error:
        mistakes.append(f"--alphabet {options.alphabet}: allowed: {', '.join(ALPHABETS)}, or {error}")
    if mistakes:
        raise UserError(mistakes)
    names = ("hidden", "stacks", "kernel", "time_conditioning", "batch", "learning_rate", "warmup", "ema", "seed")
    settings = {
        "alphabet": Alphabet.of(options.alphabet).letters,
        "length": tokens.shape[1],
        "classes": 0 if labels is None else int(labels.max()) + 1,
        **{name: getattr(options, name) for name in (*names, "holdout", "workers")},
        "rows": len(tokens),
        "data": hashlib.sha256(tokens.tobytes() + (b"" if labels is None else labels.tobytes())).hexdigest(),
    }
    check_same(Path(options.out).expanduser(), settings)
    return (tokens, labels), settings


def option_mistakes(options: Options) -> list[str]:
    o = options
    rules = [
        ("hidden", o.hidden >= 2 and o.hidden % 2 == 0, "an even number, 2 or more"),
        ("stacks", o.stacks >= 1, "1 or more"),
        ("kernel", o.kernel >= 1 and o.kernel % 2 == 1, "an odd number, 1 or more"),
        ("steps", o.steps >= 1, "1 or more"),
        ("batch", o.batch >= 1, "1 or more"),
        ("learning_rate", 0 < o.learning_rate <= 1, "above 0, at most 1"),
        ("warmup", o.warmup >= 0, "0 or more"),
        ("ema", 0 <= o.ema < 1, "0 or more, below 1"),
        ("holdout", 0 < o.holdout < 1, "above 0, below 1"),
        ("every", o.every >= 1, "1 or more"),
        ("seed", 0 <= o.seed < 2**32, "0 to 2^32 - 1"),
        ("workers", o.workers >= 1, "1 or more"),
        ("cpus_per_worker", 0 < o.cpus_per_worker < 1e6, "above 0"),
        ("gpus_per_worker", 0 <= o.gpus_per_worker < 1e6, "0 or more"),
        ("threads", o.threads >= 1, "1 or more"),
    ]
    mistakes = [
        f"--{name.replace('_', '-')} {getattr(o, name)}: allowed: {allowed}" for name, ok, allowed in rules if not ok
    ]
    if o.batch >= 1 and o.workers >= 1 and o.batch % o.workers:
        mistakes.append(f"--batch {o.batch}: can't be shared out over {o.workers} workers; allowed: a multiple")
    mistakes += out_mistakes(o.out)
    try:
        check_address(o.address)
    except UserError as error:
        mistakes += error.lines
    return mistakes


def out_mistakes(out: str) -> Iterator[str]:
    folder = Path(out).expanduser()
    if "://" in out:
        yield f"--out {out}: allowed: a folder on a disk that all nodes share"
    elif inside_submitted_job() and not folder.is_absolute():
        yield f"--out {out}: is relative, and a job's working directory is a temporary copy; allowed: an absolute path"
    else:
        nearest = next(place for place in [folder.absolute(), *folder.absolute().parents] if place.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            yield f"--out {out}: {nearest} is no folder that can be written to; allowed: a folder, existing or new"


def row_mistakes(options: Options, num: int) -> Iterator[str]:
    left = num - held_out_rows(options, num)
    if left < 1:
        yield f"{options.data}: holds {num} sequences, none left to train on; allowed: more, or a smaller --holdout"
    elif left < options.batch:
        yield f"--batch {options.batch}: there are {left} sequences to train on; allowed: 1 to {left}"


def held_out_rows(options: Options, num: int) -> int:
    return max(1, round(options.holdout * num))


def read_classes(path: str, column: str) -> np.ndarray:
    """[N] int64. UserError where a value is no class number, or a number below the largest never occurs."""
    file = Path(path).expanduser()
    if file.suffix.lower() in FASTA:
        raise UserError(f"--class-column {column}: a FASTA file has no columns; allowed: with CSV or Parquet")
    found, mistakes = [], []
    for line, text in entries(file, column):
        if text.isdecimal() and len(text) < 10:
            found.append(int(text))
        else:
            mistakes.append(f"{file}:{line}: {column} is {text!r}; allowed: a class number, from 0")
    if found and not mistakes and (absent := set(range(min(max(found), len(found)))) - set(found)):
        mistakes.append(f"{file}: {column} is {min(absent)} in no row; allowed: class numbers from 0 without a gap")
    if mistakes:
        raise UserError(mistakes[:MOST_MISTAKES])
    return np.array(found, np.int64)


def check_same(folder: Path, settings: dict[str, Any]) -> None:
    """UserError where the folder holds a training of other settings or data, or something else."""
    storage = LocalStorage(str(folder.absolute()))
    if not storage.exists(SETTINGS):
        if storage.exists("model.safetensors"):
            raise UserError(f"--out {folder}: holds a model of another making; allowed: a new folder")
        return
    stored = json.loads(storage.read(SETTINGS))
    mistakes = [
        f"{folder}/{SETTINGS}: {key} is {stored.get(key)}, not {value}; allowed: the same, or another --out"
        for key, value in settings.items()
        if stored.get(key) != value
    ]
    if mistakes:
        raise UserError(mistakes)
