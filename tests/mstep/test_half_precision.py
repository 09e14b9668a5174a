"""The M-step in half precision: what it reports, which steps it takes, what it goes on from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dav_ray.diffusion.exact import against_reference
from dav_ray.diffusion.pipelines.stable_diffusion import Parts, StableDiffusion
from dav_ray.errors import RunError
from dav_ray.mstep.fit import Fitter
from dav_ray.mstep.objective import Rows
from dav_ray.mstep.options import MStep
from dav_ray.run_dir import policy
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.watch.kl_noise import KlNoise
from dav_ray.testing.gaussian import LinearGaussian
from tests.mstep.test_fit import CONFIG, T, fitted, rows

HALF: dict[str, Any] = {**CONFIG, "precision": "float16", "batch_size": 5}


def scaled(scale: float, toy: LinearGaussian | None = None, **options: Any) -> Fitter:
    """A fitter whose float16 loss is scaled so; with 3e38 its gradients, which are float32, are infinite."""
    fitter = Fitter(toy or LinearGaussian(T, 2).shifted(0.5), MStep(**{**HALF, **options}), 7)
    fitter.scaler.load_state_dict({**fitter.scaler.state_dict(), "scale": scale})
    return fitter


def test_steps_that_are_not_taken_do_not_count() -> None:
    fitter = scaled(3e38, epochs=5)
    metrics = fitter.fit(1, [rows(5)])
    (state,) = fitter.optimizer.state.values()
    skipped = metrics["mstep/skipped_steps"]
    assert 2 <= skipped <= 15
    assert metrics["mstep/optimizer_steps"] == float(state["step"]) == 20 - skipped
    assert 0 < metrics["mstep/grad_norm"] < 1e6
    assert fitter.scaler.get_scale() == pytest.approx(3e38 / 2**skipped)


def test_a_norm_of_no_step_is_no_metric() -> None:
    toy = LinearGaussian(T, 2).shifted(0.5)
    metrics = scaled(3e38, toy, batch_size=1000).fit(1, [rows(5)])
    assert metrics["mstep/skipped_steps"] == 1 and metrics["mstep/optimizer_steps"] == 0
    assert "mstep/grad_norm" not in metrics and metrics["mstep/nll"] > 0
    assert torch.equal(toy.shift, LinearGaussian(T, 2).shifted(0.5).shift)
    assert "mstep/skipped_steps" not in fitted([rows(5)])[1]


def test_what_no_scale_makes_finite_ends_the_run() -> None:
    toy = LinearGaussian(T, 2).shifted(0.5)
    with torch.no_grad():
        toy.shift.fill_(torch.nan)
    fitter = scaled(65536.0, toy, epochs=60)
    with pytest.raises(RunError, match="train: the gradient is not finite"):
        fitter.fit(1, [rows(5)])
    assert fitter.scaler.get_scale() < 1e-6


def test_the_scale_is_stored_with_the_policy(tmp_path: Path, tiny_folder: str) -> None:
    """Going on from there gives the bits of the run that was not interrupted."""
    storage = open_storage(str(tmp_path))

    def made() -> tuple[Any, Fitter]:
        diffusion = images(tiny_folder, autocast="float16")
        fitter = Fitter(diffusion, MStep(**{**HALF, "kl": 0.0}), 7)
        return diffusion, fitter

    diffusion, fitter = made()
    fitter.scaler.load_state_dict({**fitter.scaler.state_dict(), "scale": 2.0**40})
    metrics = fitter.fit(1, [states()])
    assert metrics["mstep/skipped_steps"] > 0
    policy.save(storage, 1, diffusion, fitter.optimizer, fitter.scaler)
    left = fitter.scaler.state_dict()
    other, again = made()
    policy.set_weights(other, policy.read_weights(storage, 1, other))
    policy.read_optimizer(storage, 1, again.optimizer, again.scaler)
    assert again.scaler.state_dict() == left and left["scale"] < 2.0**40
    fitter.fit(2, [states()])
    again.fit(2, [states()])
    assert all(torch.equal(a, b) for a, b in zip(policy_of(diffusion), policy_of(other), strict=True))


def test_without_a_scaler_nothing_is_stored_of_one(tmp_path: Path, tiny_folder: str) -> None:
    storage = open_storage(str(tmp_path))
    diffusion = images(tiny_folder)
    fitter = Fitter(diffusion, MStep(**CONFIG), 7)
    fitter.fit(1, [states()])
    policy.save(storage, 1, diffusion, fitter.optimizer, fitter.scaler)
    policy.save(storage, 2, diffusion, fitter.optimizer)
    whole, bare = (storage.read(f"policy/v{n:04d}/{policy.OPTIMIZER_FILE}") for n in (1, 2))
    assert whole == bare and b"scaler" not in bare
    scaled_one = scaled(2.0**10)
    with pytest.raises(RunError, match="of another optimizer"):
        policy.read_optimizer(storage, 1, scaled_one.optimizer, scaled_one.scaler)
    fresh = Fitter(images(tiny_folder), MStep(**{**CONFIG, "precision": "float16"}), 7)
    policy.read_optimizer(storage, 1, fresh.optimizer, fresh.scaler)  # an older run's
    assert fresh.scaler.get_scale() == 65536.0


@pytest.mark.parametrize(("most", "share"), [(0.5, 1.0), (1e9, 0.0)])
def test_clipping_is_reported(most: float, share: float) -> None:
    assert fitted([rows(5)], max_grad_norm=most, batch_size=5)[1]["mstep/clipped"] == share


def images(folder: str, dtype: str = "float32", autocast: str = "float32") -> Any:
    diffusion = StableDiffusion(Parts.load(folder, dtype=dtype), steps=2, guidance_scale=3.0, autocast=autocast)
    diffusion.add_adapters(2, 2.0, ("to_q", "to_v"), seed=0)
    return diffusion


def states() -> Rows:
    x = torch.randn((5, 3, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    return Rows(x, None, ("one",) * 5, torch.ones(5, dtype=torch.float64), torch.ones(5, dtype=torch.bool))


def policy_of(diffusion: Any) -> list[Tensor]:
    return [p.detach() for p in diffusion.trainable().parameters() if p.requires_grad]


def moved(diffusion: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy_of(diffusion):
            parameter += 1e-3 * torch.randn(parameter.shape, generator=generator)
    return diffusion


def in_full(diffusion: Any, data: Rows) -> float:
    """KL in float32, nats per trajectory."""
    total = 0.0
    for t in (1, 2):
        batch = data.transitions(torch.arange(5), torch.full((5,), t))
        policy, pretrained = against_reference(diffusion, batch.x_t, batch.t, batch.conditions)
        total += float(policy.kl(pretrained).mean())
    return total


@pytest.mark.parametrize(
    ("dtype", "autocast"), [("bfloat16", "float32"), ("float16", "float32"), ("float32", "bfloat16")]
)
def test_the_kl_that_is_reported_is_float32s(tiny_folder: str, dtype: str, autocast: str) -> None:
    options = {**CONFIG, "kl_measured": 10}
    diffusion = moved(images(tiny_folder, dtype, autocast))
    expected, true = in_full(diffusion, states()), in_full(moved(images(tiny_folder)), states())
    metrics = Fitter(diffusion, MStep(**options), 7).fit(1, [states()])
    assert metrics["mstep/kl"] == pytest.approx(expected, rel=1e-3)
    assert expected == pytest.approx(true, rel=0.1)
    assert metrics["mstep/kl_noise"] > metrics["mstep/kl"]
    whole = Fitter(moved(images(tiny_folder)), MStep(**options), 7).fit(1, [states()])
    assert whole["mstep/kl"] == pytest.approx(true, rel=1e-3) and "mstep/kl_noise" not in whole


@pytest.mark.parametrize(("dtype", "autocast"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_before_the_first_step_there_is_no_kl(tiny_folder: str, dtype: str, autocast: str) -> None:
    metrics = Fitter(images(tiny_folder, dtype, autocast), MStep(**CONFIG), 7).fit(1, [states()])
    assert metrics["mstep/kl"] == 0.0 and metrics["mstep/kl_noise"] == 0.0


def test_few_transitions_are_measured(tiny_folder: str) -> None:
    diffusion = moved(images(tiny_folder, "bfloat16"))
    Fitter(diffusion, MStep(**{**CONFIG, "kl_measured": 3}), 7).fit(1, [states()])
    assert diffusion.cost.reference == 10 + 3 and diffusion.cost.network == 10 + 3


def test_a_kl_that_drowns_is_said_once() -> None:
    lines, events = list[str](), list[tuple[str, dict[str, Any]]]()
    log: Any = SimpleNamespace(event=lambda name, **fields: events.append((name, fields)))
    told = KlNoise(log, SimpleNamespace(say=lines.append))  # type: ignore[arg-type]
    told.tell(1, {"mstep/kl": 2.0})
    told.tell(1, {"mstep/kl": 0.0, "mstep/kl_noise": 0.0})
    told.tell(2, {"mstep/kl": 2.0, "mstep/kl_noise": 1.0})
    assert not lines and not events
    for number in (3, 4):
        told.tell(number, {"mstep/kl": 0.02, "mstep/kl_noise": 15.0})
    assert events == [("kl_noise", {"round": 3, "noise": 15.0, "kl": 0.02})]
    assert len(lines) == 1 and "adds 15 nats of rounding to the KL of the objective, which is 0.02" in lines[0]
