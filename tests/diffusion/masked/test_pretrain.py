"""Pretraining against laws whose entropy is known, and against itself interrupted or shared out."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dav_ray.diffusion.masked.elbo import TIME_MIN
from dav_ray.diffusion.masked.model import MaskedDiffusion
from dav_ray.diffusion.masked.pretrain import (
    Pretrainer,
    Rows,
    Settings,
    batch_places,
    batch_times,
    held_out_bits,
    split,
)
from dav_ray.runtime.pretrain import loop

TINY = Settings("ACGT", length=8, hidden=8, stacks=1, kernel=3, batch=12, learning_rate=5e-3, warmup=3, ema=0.9)
STAY = np.full((4, 4), 0.1) + 0.6 * np.eye(4)  # a letter is followed by itself with probability 0.7


def markov(num: int, length: int, seed: int = 0) -> np.ndarray:
    """Tokens [num, length] of the chain with transitions STAY, its first letter uniform."""
    rng = np.random.default_rng(seed)
    tokens = np.empty((num, length), np.uint8)
    tokens[:, 0] = rng.integers(0, 4, num)
    for place in range(1, length):
        moved = rng.random(num) >= 0.7
        tokens[:, place] = (tokens[:, place - 1] + moved * rng.integers(1, 4, num)) % 4
    return tokens


def markov_bits(length: int) -> float:
    """Entropy of the chain in bits per letter."""
    return (2 - (length - 1) * float((STAY[0] * np.log2(STAY[0])).sum())) / length


def tiny(rows: Rows | None = None, settings: Settings = TINY, num: int = 60, **options: Any) -> Pretrainer:
    return Pretrainer(settings, rows or Rows(markov(num, TINY.length)), np.arange(10, num), **options)


def weights(trainer: Pretrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.trainable().state_dict().items()}


@pytest.mark.thorough
def test_held_out_bits_approach_the_entropy_of_a_markov_chain() -> None:
    length, settings = 16, Settings("ACGT", 16, hidden=32, stacks=1, kernel=5, batch=128, learning_rate=5e-3, ema=0.98)
    rows = Rows(markov(3000, length))
    train, held_out = split(3000, 300, settings.seed)
    trainer = Pretrainer(replace(settings, warmup=20), rows, train)
    before = trainer.measure(held_out)
    for _ in range(200):
        trainer.train_step()
    after = trainer.measure(held_out)

    assert before.bits == pytest.approx(2, abs=0.15)  # four letters, nothing learnt
    # the bound is never below the entropy, but for the noise of a finite sample
    assert after.bits == pytest.approx(markov_bits(length), abs=0.1)
    assert after.bits > markov_bits(length) - 3 * after.error
    assert after.perplexity == pytest.approx(2**after.bits) and after.rows == 300


def test_the_bound_of_uniform_letters_is_exact_for_a_model_that_says_so() -> None:
    trainer = tiny(Rows(np.random.default_rng(0).integers(0, 4, (400, 8)).astype(np.uint8)), num=400)
    torch.nn.init.zeros_(trainer.average.trainable().get_parameter("final_conv.2.weight"))
    torch.nn.init.zeros_(trainer.average.trainable().get_parameter("final_conv.2.bias"))

    found = trainer.measure(np.arange(400))

    assert found.bits == pytest.approx(2, abs=3 * found.error) and 0 < found.error < 0.05


@pytest.mark.thorough
def test_classes_are_learnt_and_a_withheld_class_is_their_mixture() -> None:
    """A row of class c has the letter c everywhere, so that only who knows c knows its first letter."""
    labels = np.arange(200) % 4
    rows = Rows(np.repeat(labels[:, None], 8, 1).astype(np.uint8), labels)
    trainer = tiny(rows, replace(TINY, classes=4, batch=120, learning_rate=1e-2, ema=0.97), num=200)
    for _ in range(150):
        trainer.train_step()
    known = held_out_bits(trainer.average, rows, np.arange(10), 0).mean()
    masked = torch.full((1, 8), 4)

    assert known < 0.05
    unknown = trainer.average.log_probs(masked, torch.tensor([4]))[0, :, :4].exp().mean(0)
    torch.testing.assert_close(unknown, torch.full((4,), 0.25), atol=0.15, rtol=0)


def test_times_of_a_batch_are_antithetic() -> None:
    times = batch_times(torch.tensor(0.9, dtype=torch.float64), 5)

    expected = TIME_MIN + (1 - TIME_MIN) * torch.tensor([0.9, 0.1, 0.3, 0.5, 0.7], dtype=torch.float64)
    torch.testing.assert_close(times, expected)


def test_every_epoch_is_a_permutation_of_its_own() -> None:
    places = np.concatenate([batch_places(3, step, batch=8, num=20) for step in range(5)])

    first, second = places[:20], places[20:]
    assert sorted(first) == sorted(second) == list(range(20))
    assert list(first) != list(second) and list(first) != list(batch_places(4, 0, 20, 20))


def test_the_split_takes_every_row_once() -> None:
    train, held_out = split(50, 7, seed=1)

    assert sorted([*train, *held_out]) == list(range(50)) and len(held_out) == 7
    assert list(train) == sorted(train) and list(held_out) != list(split(50, 7, seed=2)[1])


def test_the_average_is_the_weighted_sum_of_the_weights_so_far() -> None:
    trainer = tiny(settings=replace(TINY, ema=0.25))
    expected = weights(trainer)
    for step in range(1, 6):
        trainer.train_step()
        decay = min(0.25, (1 + step) / (10 + step))
        now = weights(trainer)
        expected = {name: decay * expected[name] + (1 - decay) * now[name] for name in expected}

    found = trainer.average.trainable().state_dict()
    assert set(found) == set(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], msg=name)


def test_the_rate_rises_linearly_and_then_stays() -> None:
    trainer, rates = tiny(), []
    for _ in range(5):
        trainer.train_step()
        rates.append(trainer._optimizer.param_groups[0]["lr"])

    assert rates == pytest.approx([5e-3 / 3, 10e-3 / 3, 5e-3, 5e-3, 5e-3])


def test_shares_of_two_processes_make_up_the_batch() -> None:
    rows = Rows(markov(60, 8))
    whole = tiny(rows).train_step()
    shares = [tiny(rows, rank=rank, world=2).train_step() for rank in range(2)]

    assert shares[0] != shares[1]
    torch.testing.assert_close(torch.stack(shares).mean(), whole)


def test_going_on_gives_the_weights_of_an_unbroken_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = np.arange(10)

    def run(folder: str, steps: int) -> Pretrainer:
        trainer = tiny(settings=replace(TINY, time_conditioning=True))
        loop.pretrain(trainer, held_out, steps=steps, every=4, folder=tmp_path / folder, half=False)
        return trainer

    whole = run("whole", 10)
    step = Pretrainer.train_step

    def stop_at_seven(trainer: Pretrainer) -> torch.Tensor:
        if trainer.step == 7:
            raise KeyboardInterrupt
        return step(trainer)

    monkeypatch.setattr(Pretrainer, "train_step", stop_at_seven)
    with pytest.raises(KeyboardInterrupt):
        run("parts", 10)
    assert not (tmp_path / "parts/report.json").exists()
    assert [line["step"] for line in loop.read_curve(tmp_path / "parts")] == [4]
    monkeypatch.setattr(Pretrainer, "train_step", step)
    resumed = run("parts", 10)
    run("longer", 8)
    longer = run("longer", 10)

    assert resumed.state() == longer.state() == whole.state()
    for name in ("model.safetensors", "config.json", "report.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    curves = [loop.read_curve(tmp_path / folder) for folder in ("parts", "whole")]
    for curve in curves:
        assert [line["step"] for line in curve] == [4, 8, 10]
        assert all(line.pop("seconds_per_step") > 0 for line in curve)
    assert curves[0] == curves[1]


def test_what_is_written_is_the_average_and_can_be_read(tmp_path: Path) -> None:
    trainer = tiny()
    for _ in range(3):
        trainer.train_step()
    trainer.write(tmp_path / "full")
    trainer.write(tmp_path / "half", half=True)

    x = torch.randint(0, 5, (6, 8), generator=torch.Generator().manual_seed(0))
    expected = trainer.average.log_probs(x)
    read = MaskedDiffusion.from_checkpoint(tmp_path / "full")
    assert read.length == 8 and torch.equal(read.log_probs(x), expected)
    torch.testing.assert_close(
        MaskedDiffusion.from_checkpoint(tmp_path / "half").log_probs(x), expected, atol=5e-3, rtol=0
    )
    assert not torch.equal(trainer.model.log_probs(x), expected)


def test_the_report_says_what_was_measured(tmp_path: Path) -> None:
    trainer = tiny()
    loop.pretrain(trainer, np.arange(10), steps=2, every=5, folder=tmp_path, half=False)

    report, bits = json.loads((tmp_path / "report.json").read_text()), trainer.measure(np.arange(10)).bits
    assert report["step"] == 2 and report["held_out_rows"] == 10 and report["workers"] == 1
    assert report["held_out_bits_per_token"] == bits and math.log2(report["held_out_perplexity"]) == pytest.approx(bits)
