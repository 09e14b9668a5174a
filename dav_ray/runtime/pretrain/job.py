"""`dav-ray pretrain`: a masked diffusion model of sequences of one length, trained on Ray.

The folder receives the model (`model.path` of a recipe), metrics.jsonl and report.json with the held-out bits per token
and perplexity. The same command again goes on where it was interrupted. Batches do not depend on the number of workers;
the weights do, in their last digits, so that a training keeps the number it began with. The sequences reach the workers
through Ray Data.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from dav_ray.errors import RunError, UserError
from dav_ray.run_dir.storage.local import LocalStorage
from dav_ray.runtime.cluster.placement import with_cwd
from dav_ray.runtime.interrupt import check, interruptible
from dav_ray.runtime.pretrain.options import SETTINGS, Options, held_out_rows, prepare

ROOT = Path(__file__).resolve().parents[3]
POLL_S = 0.5
DATASET = "sequences"
MAX_FAILURES = 3  # of workers that died: all of them start again from the last checkpoint


def train(options: Options) -> None:
    """UserError before anything heavy is imported; RunError where the training failed: what was saved stays."""
    rows, settings = prepare(options)
    folder = Path(options.out).expanduser().absolute()
    storage = LocalStorage(str(folder))
    if storage.exists("report.json") and (report := json.loads(storage.read("report.json")))["step"] >= options.steps:
        print(f"{folder}: this training is finished\n{describe(report)}")
        return
    storage.write(SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())
    job = {
        "settings": settings,
        "held_out": held_out_rows(options, len(rows[0])),
        "folder": str(folder),
        **{name: getattr(options, name) for name in ("steps", "every", "half", "threads")},
    }
    with interruptible(), connected(options), interruptible():  # Ray's start takes the signals over: take them back
        follow(options, folder, job, rows)
    print(f"{folder}: finished\n{describe(json.loads(storage.read('report.json')))}")


@contextlib.contextmanager
def connected(options: Options) -> Iterator[None]:
    """A connection to Ray: an embedded one for `local`, ended afterwards. UserError if the workers do not fit in."""
    import ray

    from dav_ray.runtime.cluster.connect import start

    wanted: dict[str, Any] = {
        "address": options.address,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    if options.address == "local":
        wanted |= {
            "num_cpus": max(os.cpu_count() or 1, ceil(options.workers * options.cpus_per_worker) + 1),
            "dashboard_host": "127.0.0.1",
            "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join([with_cwd(), str(ROOT)])}},
        }
    start(options.address, wanted, {})
    try:
        check_room(options, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        yield
    finally:
        ray.shutdown()


def check_room(options: Options, nodes: list[dict[str, float]]) -> None:
    """UserError if an embedded Ray can't hold the workers; a cluster may still grow, so that there it is a remark."""
    demand = {name: amount for name, amount in _demand(options).items() if amount}
    room = sum(min(int(node.get(name, 0) / amount) for name, amount in demand.items()) for node in nodes)
    if room >= options.workers:
        return
    needs = " and ".join(f"{amount:g} {name}" for name, amount in demand.items())
    text = f"--workers {options.workers}: there is room for {room} of {needs} each"
    if options.address == "local":
        raise UserError(f"{text}; allowed: what this machine has")
    print(f"{text}; waiting for more nodes", flush=True)


def follow(options: Options, folder: Path, job: dict[str, Any], rows: tuple[Any, Any]) -> None:
    """Run the training in a thread and print its measurements as they are written."""
    from dav_ray.runtime.pretrain.loop import read_curve

    shown = max((line["step"] for line in read_curve(folder)), default=0)
    num = f"{options.workers} worker{'s' * (options.workers > 1)}"
    print(f"{folder}: up to step {options.steps} with {num}; a line every {options.every} steps")
    print("starting Ray Train: usually 20 s")
    failures: list[str] = []
    thread = threading.Thread(target=_fit, args=(options, job, rows, failures), name="ray-train", daemon=True)
    thread.start()
    running = True
    while running:
        thread.join(POLL_S)
        check()
        running = thread.is_alive()
        for line in read_curve(folder):  # after the last look at the thread: nothing is missed
            if line["step"] > shown:
                shown = line["step"]
                print(describe(line), flush=True)
    if failures:
        raise RunError("train", failures[0])


def _fit(options: Options, job: dict[str, Any], rows: tuple[Any, Any], failures: list[str]) -> None:
    from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    for name in ("ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    demand = {name: amount for name, amount in _demand(options).items() if amount}
    try:
        with tempfile.TemporaryDirectory(prefix="dav_ray-", ignore_cleanup_errors=True) as scratch:
            TorchTrainer(
                train_loop,
                train_loop_config=job,
                datasets={DATASET: to_dataset(*rows)},
                dataset_config=DataConfig(datasets_to_split=[]),  # every worker picks its rows of every batch itself
                torch_config=TorchConfig(backend="nccl" if options.gpus_per_worker >= 1 else "gloo"),
                scaling_config=ScalingConfig(
                    num_workers=options.workers,
                    use_gpu=options.gpus_per_worker > 0,
                    resources_per_worker=demand,
                ),
                run_config=RunConfig(storage_path=scratch, failure_config=FailureConfig(max_failures=MAX_FAILURES)),
            ).fit()
    except Exception as error:  # a thread's exception would be lost
        failures.append(f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}")


def to_dataset(tokens: np.ndarray, labels: np.ndarray | None) -> Any:
    """A Ray dataset with a row per sequence: its place in the data, its tokens and its class."""
    import pyarrow as pa
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    columns: dict[str, pa.Array] = {
        "place": pa.array(np.arange(len(tokens))),
        "tokens": pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), tokens.shape[1]),
    }
    if labels is not None:
        columns["label"] = pa.array(labels)
    return ray.data.from_arrow(pa.table(columns))


def from_dataset(shard: Any) -> Any:
    """The `Rows` of a dataset in the data's order, in whatever order its blocks arrive."""
    import pyarrow as pa

    from dav_ray.diffusion.masked.pretrain import Rows

    table = pa.concat_tables(shard.iter_batches(batch_size=None, batch_format="pyarrow")).sort_by("place")
    table = table.combine_chunks()
    tokens = table["tokens"].chunk(0).flatten().to_numpy().reshape(len(table), -1)
    return Rows(tokens, table["label"].to_numpy() if "label" in table.column_names else None)


def train_loop(job: dict[str, Any]) -> None:
    """What every worker runs; after a restart it goes on from the folder's checkpoint."""
    from dataclasses import fields

    import torch
    from ray.train import get_context, get_dataset_shard
    from ray.train.torch import get_device, prepare_model

    from dav_ray.diffusion.masked.pretrain import Pretrainer, Settings, split
    from dav_ray.runtime.pretrain.loop import pretrain

    torch.set_num_threads(job["threads"])
    known = {field.name for field in fields(Settings)}
    settings = Settings(**{name: value for name, value in job["settings"].items() if name in known})
    rows, context = from_dataset(get_dataset_shard(DATASET)), get_context()
    train, held_out = split(len(rows.tokens), job["held_out"], settings.seed)
    world = context.get_world_size()
    trainer = Pretrainer(
        settings,
        rows,
        train,
        rank=context.get_world_rank(),
        world=world,
        device=get_device(),
        wrap=(lambda module: prepare_model(module, move_to_device=False)) if world > 1 else None,
    )
    folder = Path(job["folder"])
    pretrain(trainer, held_out, steps=job["steps"], every=job["every"], folder=folder, half=job["half"])


def describe(measured: dict[str, Any]) -> str:
    """A point of the curve, or the report, as one line."""
    bits, error = measured["held_out_bits_per_token"], measured["standard_error"]
    text = f"step {measured['step']}: held-out {bits:.4f} bits per token (standard error {error:.4f})"
    text += f", perplexity {measured['held_out_perplexity']:.4f}"
    if "train_bits_per_token" in measured:
        text += f"; train {measured['train_bits_per_token']:.4f}; {measured['seconds_per_step']:.3f} s per step"
    return text


def _demand(options: Options) -> dict[str, float]:
    return {"CPU": options.cpus_per_worker, "GPU": options.gpus_per_worker}
