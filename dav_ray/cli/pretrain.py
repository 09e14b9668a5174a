"""The command `dav-ray pretrain`."""

from __future__ import annotations

from typing import Annotated

import typer

from dav_ray.cli.failures import exit_codes
from dav_ray.cli.options import Address


def pretrain(
    data: Annotated[str, typer.Argument(metavar="DATA", help="CSV, Parquet or FASTA file of sequences.")],
    out: Annotated[str, typer.Option(metavar="FOLDER", help="Folder of the model, on a disk that all nodes share.")],
    alphabet: Annotated[
        str, typer.Option(help="dna, rna, protein, or the letters in the order of the tokens.")
    ] = "dna",
    column: Annotated[str, typer.Option(help="Column of the sequences.")] = "sequence",
    class_column: Annotated[
        str | None, typer.Option(help="Column of class numbers from 0, for a class-conditional model.")
    ] = None,
    hidden: Annotated[int, typer.Option(help="Channels.")] = 128,
    stacks: Annotated[int, typer.Option(help="Layers of each of the five dilations.")] = 4,
    kernel: Annotated[int, typer.Option(help="Width of the convolutions.")] = 9,
    time_conditioning: Annotated[
        bool, typer.Option("--time-conditioning", help="Tell the network how much noise there is.")
    ] = False,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 10_000,
    batch: Annotated[int, typer.Option(help="Sequences per step, over all workers.")] = 512,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW, after the warm-up.")] = 3e-4,
    warmup: Annotated[int, typer.Option(help="Steps over which the learning rate rises.")] = 500,
    ema: Annotated[float, typer.Option(help="Decay of the averaged weights, which are what is written.")] = 0.999,
    holdout: Annotated[float, typer.Option(help="Share of the rows that are measured with, never trained on.")] = 0.05,
    every: Annotated[int, typer.Option(help="Steps between measurements, and checkpoints.")] = 500,
    seed: Annotated[int, typer.Option(help="Of weights, data order and noise.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that train together.")] = 1,
    cpus_per_worker: Annotated[float, typer.Option(help="CPUs of each.")] = 1.0,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs of each.")] = 0.0,
    threads: Annotated[int, typer.Option(help="Torch threads of each.")] = 1,
    half: Annotated[bool, typer.Option("--half", help="Write the model in float16.")] = False,
    address: Address = "local",
) -> None:
    """Pretrain a masked diffusion model on sequences of one length. The same command again goes on where it stopped."""
    given = dict(locals())
    with exit_codes():
        from dav_ray.runtime.pretrain.job import train
        from dav_ray.runtime.pretrain.options import Options

        train(Options(**given))
