"""`dav-ray sample`: pictures of a run's last policy, with a table of what each of them is."""

from __future__ import annotations

from pathlib import Path


def sample_run(run_dir: str, num: int, out: str, seed: int | None, address: str) -> None:
    """Writes `num` PNGs and samples.csv (file, seed, condition, reward, held-out measures) into the folder `out`.

    Sample i is what `StableDiffusionPipeline` draws with `torch.Generator().manual_seed(seed + i)`.
    """
    from dav_ray.fresh import fresh_samples

    _, table = fresh_samples(run_dir, num, seed, address)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    files = [f"{number:05d}.png" for number in table.column("sample").to_pylist()]
    for file, image in zip(files, table.column("image").to_pylist(), strict=True):
        (folder / file).write_bytes(image)
    frame = table.drop_columns(["image", "features", "kl"]).to_pandas()
    frame.insert(0, "file", files)
    frame.to_csv(folder / "samples.csv", index=False)
    print(f"{len(files)} samples and samples.csv in {folder}")
