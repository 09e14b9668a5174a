"""`dav-ray sample`: samples of a run's last policy as files, with what each of them is."""

from __future__ import annotations

from dav_ray.samples.base import sample_kind


def sample_run(run_dir: str, num: int, out: str, seed: int | None, address: str) -> None:
    """Writes `num` samples: images as PNGs and samples.csv into the folder `out`, sequences as FASTA or CSV.

    Sample i of a pipeline is what `StableDiffusionPipeline` draws with `torch.Generator().manual_seed(seed + i)`.
    UserError, before anything is started, if `out` is no place for samples of this run.
    """
    from dav_ray.fresh import fresh_samples, stored_run

    stored = stored_run(run_dir)
    kind = sample_kind(stored.config)
    place = kind.place(out)
    _, table = fresh_samples(stored, num, seed, address)
    print(kind.write(table, place))
