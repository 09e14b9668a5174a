"""Rounds of the M-step: one process against the closed form, two ranks against one process."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.diffusion.sampling import ancestral
from dav_ray.mstep.fit import Fitter, pad
from dav_ray.mstep.objective import Rows
from dav_ray.mstep.options import MStep
from dav_ray.search.dav import Dav
from dav_ray.testing.base import scorer
from dav_ray.testing.enumerable import INDEX, MASK, Scores, letters, model
from dav_ray.testing.gaussian import LinearGaussian

T, D = 4, 2
CONFIG: dict[str, Any] = {"learning_rate": 0.01, "max_grad_norm": 1e9, "kl": 0.3, "batch_size": 1000}


def rows(num: int, seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(num, generator=generator, dtype=torch.float64) + 0.5
    return Rows(
        torch.randn((num, T + 1, D), generator=generator),
        None,
        tuple(f"{0.1 * i:.1f}" for i in range(num)),
        weights / weights.mean(),
        torch.ones(num, dtype=torch.bool),
    )


def part(data: Rows, rows: slice) -> Rows:
    return Rows(data.states[rows], None, data.conditions[rows], data.weights[rows], data.real[rows])


def fitted(
    groups: list[Rows], *, toy: LinearGaussian | None = None, seed: int = 7, **options: Any
) -> tuple[Tensor, dict[str, float]]:
    toy = toy or LinearGaussian(T, D).shifted(0.5)
    metrics = Fitter(toy, MStep(**{**CONFIG, **options}), seed).fit(1, groups)
    return toy.shift.detach().clone(), metrics


def test_metrics_are_nats_per_trajectory() -> None:
    toy, data = LinearGaussian(T, D).shifted(0.5), rows(5)
    nll = kl = 0.0
    for t in range(1, T + 1):
        with torch.no_grad():
            loss = toy.step_loss(data.transitions(torch.arange(5), torch.full((5,), t)), reference=True)
        nll += float((data.weights * loss.nll.double()).mean())
        kl += float((data.weights * loss.kl.double()).mean())
    _, metrics = fitted([data])

    assert metrics["mstep/nll"] == pytest.approx(nll, rel=1e-5)
    assert metrics["mstep/kl"] == pytest.approx(kl, rel=1e-5)
    assert metrics["mstep/rows"] == 5
    assert metrics["mstep/optimizer_steps"] == 1


def test_the_first_step_follows_the_objectives_gradient() -> None:
    """AdamW's first step has the size of the learning rate, whatever the gradient's: its norm is checked apart."""
    toy, data = LinearGaussian(T, D).shifted(0.5), rows(5)
    objective = torch.zeros(())
    for t in range(1, T + 1):
        loss = toy.step_loss(data.transitions(torch.arange(5), torch.full((5,), t)), reference=True)
        objective = objective + (data.weights * (loss.nll + 0.3 * loss.kl)).mean()
    (grad,) = torch.autograd.grad(objective, toy.shift)
    after, metrics = fitted([data])

    assert metrics["mstep/grad_norm"] == pytest.approx(float(grad.norm()), rel=1e-5)
    torch.testing.assert_close(after, (toy.shift - 0.01 * grad.sign()).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kl", [0.0, 1.0, 4.0])
def test_the_fit_converges_to_the_closed_form(kl: float) -> None:
    """argmin of mean_i |x_i - mu_i - shift|^2 + kl |shift|^2: the mean residual over 1 + kl, so kl pulls to zero."""
    toy, data = LinearGaussian(T, D), rows(6)
    data = replace(data, weights=torch.ones(6, dtype=torch.float64), conditions=("0.3",) * 6)
    expected = torch.zeros(T + 1, D)
    for t in range(1, T + 1):
        batch = data.transitions(torch.arange(6), torch.full((6,), t))
        with torch.no_grad():
            mean = toy.predict(batch.x_t, t, batch.conditions, reference=True).kernel.mean
        expected[t] = (batch.x_prev - mean).mean(0) / (1 + kl)
    after, _ = fitted([data], toy=toy, kl=kl, epochs=400, learning_rate=0.02)

    torch.testing.assert_close(after, expected, rtol=0, atol=0.01)
    assert expected.abs().max() > 0.05


def test_micro_batches_change_nothing() -> None:
    whole, metrics = fitted([rows(5)], batch_size=8)
    cut, cut_metrics = fitted([rows(5)], batch_size=8, micro_batch=3)

    torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-6)
    assert cut_metrics["mstep/grad_norm"] == pytest.approx(metrics["mstep/grad_norm"], rel=1e-5)
    assert cut_metrics["mstep/optimizer_steps"] == metrics["mstep/optimizer_steps"] == 3


def test_padding_changes_nothing() -> None:
    data = rows(5)
    padding = Rows(
        data.states[:2] + 9, None, ("3.0", "3.0"), torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.bool)
    )
    plain, metrics = fitted([data], epochs=2)
    padded, padded_metrics = fitted([data + padding], epochs=2)

    torch.testing.assert_close(padded, plain, rtol=1e-5, atol=1e-6)
    for name in ("mstep/nll", "mstep/kl", "mstep/grad_norm", "mstep/optimizer_steps"):
        assert padded_metrics[name] == pytest.approx(metrics[name], rel=1e-5)


def test_a_batch_of_padding_alone_is_no_step() -> None:
    data = rows(1)
    padding = replace(data, weights=torch.zeros(1, dtype=torch.float64), real=torch.zeros(1, dtype=torch.bool))
    toy = LinearGaussian(T, D).shifted(0.5)
    after, metrics = fitted([padding], batch_size=1, weight_decay=0.1)

    assert metrics["mstep/optimizer_steps"] == 0
    assert torch.equal(after, toy.shift)


def test_the_first_epoch_goes_group_by_group_and_later_ones_over_all_rows() -> None:
    data = rows(5)
    groups = [part(data, slice(0, 3)), part(data, slice(3, 5))]
    toy, one = LinearGaussian(T, D).shifted(0.5), Fitter(LinearGaussian(T, D).shifted(0.5), MStep(**CONFIG), 7)
    seen: list[int] = []
    step_loss = toy.step_loss
    toy.step_loss = lambda batch, reference: (seen.append(len(batch)), step_loss(batch, reference=reference))[1]  # type: ignore[method-assign]
    _, metrics = fitted(groups, toy=toy, epochs=3)

    assert seen == [3 * T, 2 * T, 5 * T, 5 * T]
    assert metrics["mstep/rows"] == 5
    assert metrics["mstep/optimizer_steps"] == 4
    assert one.fit(1, [])["mstep/rows"] == 0


def test_a_round_of_one_epoch_copies_no_row_of_an_earlier_group(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    cat = torch.cat

    def counting(tensors: Any, *args: Any, **kwargs: Any) -> Tensor:
        copied.append(sum(len(tensor) for tensor in tensors if tensor.shape[1:] == (T + 1, D)))
        return cat(tensors, *args, **kwargs)

    monkeypatch.setattr(torch, "cat", counting)
    groups = [rows(3, seed=i) for i in range(10)]
    fitted(groups)
    assert sum(copied) == 0
    fitted(groups, epochs=3)
    assert sum(copied) == 30  # once each, for the epochs over the whole round


class Reads(TorchDispatchMode):
    """Counts numbers that are read out of tensors: on a GPU each of them waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_sums_are_read_once_per_round_whatever_the_micro_batches() -> None:
    counts = []
    for micro_batch in (100, 1):
        with Reads() as reads:
            fitted([rows(5)], batch_size=10, micro_batch=micro_batch)
        counts.append(reads.count)
    assert counts[0] == counts[1] > 0


def test_one_kernel_updates_all_adapters_on_a_gpu_alone() -> None:
    """On the CPU, bits stay what they were; a state goes from one kind of device to the other."""
    here, there = (
        Fitter(LinearGaussian(T, D).shifted(0.5), MStep(**CONFIG), 7, device=device) for device in ("cpu", "cuda")
    )
    assert (here.optimizer.defaults["fused"], there.optimizer.defaults["fused"]) == (None, True)
    here.fit(1, [rows(5)])
    groups = there.optimizer.state_dict()["param_groups"]
    there.optimizer.load_state_dict({**here.optimizer.state_dict(), "param_groups": groups})
    state = next(iter(there.optimizer.state.values()))
    assert float(state["step"]) == 1 and float(state["exp_avg"].norm()) > 0


def test_the_same_seed_gives_the_same_bits() -> None:
    options = {"batch_size": 6, "micro_batch": 4, "epochs": 2}
    first, metrics = fitted([rows(5)], **options)
    again, again_metrics = fitted([rows(5)], **options)
    other, _ = fitted([rows(5)], seed=8, **options)

    assert torch.equal(first, again)
    times = {"time/mstep_s": 0.0, "util/train": 0.0}
    assert {**metrics, **times} == {**again_metrics, **times}
    assert not torch.equal(first, other)


def test_rounds_go_through_the_data_in_another_order() -> None:
    shifts = []
    for number in (1, 2):
        toy = LinearGaussian(T, D).shifted(0.5)
        Fitter(toy, MStep(**{**CONFIG, "batch_size": 6}), 7).fit(number, [rows(5)])
        shifts.append(toy.shift.detach())
    assert not torch.equal(shifts[0], shifts[1])


def test_steps_without_variance_are_not_learned() -> None:
    toy = LinearGaussian(T, D, last_alpha=1.0).shifted(0.5)
    before = toy.shift.detach().clone()
    after, _ = fitted([rows(5)], toy=toy, epochs=3, batch_size=6)

    assert torch.equal(after[:2], before[:2])
    assert (after[2:] != before[2:]).all()


def test_rows_of_weight_zero_teach_nothing() -> None:
    data = rows(5)
    after, metrics = fitted([replace(data, weights=torch.zeros(5, dtype=torch.float64))], epochs=2)

    assert torch.equal(after, LinearGaussian(T, D).shifted(0.5).shift)
    assert metrics["mstep/grad_norm"] == 0
    assert metrics["mstep/rows"] == 5


def test_gradients_are_clipped_to_the_norm() -> None:
    """AdamW hides the size of its first gradient but remembers it."""
    toy = LinearGaussian(T, D).shifted(0.5)
    fitter = Fitter(toy, MStep(**{**CONFIG, "max_grad_norm": 0.5}), 7)
    metrics = fitter.fit(1, [rows(5)])
    momentum = fitter.optimizer.state[toy.shift]["exp_avg"]

    assert metrics["mstep/grad_norm"] > 1
    assert float(momentum.norm()) == pytest.approx(0.1 * 0.5, rel=1e-4)


def test_a_group_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="fewer trajectories than there are ranks"):
        pad(part(rows(2), slice(0, 0)))


def test_tokens_are_fitted_to_their_frequencies() -> None:
    """At every state, each position's letters to the weighted shares of those that were unmasked there; what the
    states' types are does not matter."""
    many, steps = 40, 4
    diffusion = model()
    states = ancestral(diffusion, [""] * many, KeyedNoise(0, 1, range(many))).transpose(0, 1)
    weights = torch.rand(many, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    data = Rows(
        states.to(torch.uint8), None, ("",) * many, weights / weights.mean(), torch.ones(many, dtype=torch.bool)
    )
    options = {**CONFIG, "kl": 0.0, "learning_rate": 0.1, "epochs": 150, "micro_batch": 90}
    metrics = Fitter(diffusion, MStep(**options), 7).fit(1, [data])

    count = torch.zeros(256, 4, 3, dtype=torch.float64)
    for row, weight in zip(states.tolist(), weights.tolist(), strict=True):
        for before, after in itertools.pairwise(row):
            for place in range(4):
                if before[place] == MASK != after[place]:
                    count[INDEX[tuple(before)], place, after[place]] += weight
    share, found = count / count.sum(-1, keepdim=True), torch.tensor(letters(diffusion))
    all_masked = INDEX[(MASK,) * 4]
    torch.testing.assert_close(found[all_masked].double(), share[all_masked], rtol=0, atol=0.02)
    known = count.sum(-1) > 0
    assert (found.double()[known] - share[known]).abs().max() < 0.1
    assert metrics["mstep/rows"] == many and metrics["mstep/optimizer_steps"] == 150
    assert states.shape == (many, steps + 1, 4)


@pytest.mark.parametrize("soft", [False, True])
def test_tokens_and_their_expected_counts_are_targets(soft: bool) -> None:
    """Targets take the next states' place: completed tokens, or counts that candidates share."""
    found = Dav(3, 1.0, 1.0, False, 0.0, blend=soft, complete=not soft)(
        model(), scorer(Scores()), [""] * 5, KeyedNoise(0, 1, range(5))
    )
    assert found.targets is not None
    targets = found.targets.transpose(0, 1)
    data = Rows(
        found.states.transpose(0, 1).to(torch.uint8),
        targets if soft else targets.to(torch.uint8),
        ("",) * 5,
        torch.ones(5, dtype=torch.float64),
        torch.ones(5, dtype=torch.bool),
    )
    metrics = Fitter(model(), MStep(**{**CONFIG, "micro_batch": 7}), 7).fit(1, [data])
    log_p, nll = torch.tensor(letters(model())).double().log(), 0.0
    for step in range(4):
        for x, target in zip(found.states[step].tolist(), found.targets[step], strict=True):
            counts = target if soft else torch.nn.functional.one_hot(target, 4)[:, :3]
            masked = torch.tensor([token == MASK for token in x])
            nll -= float((log_p[INDEX[tuple(x)]] * counts)[masked].sum()) / 5

    assert metrics["mstep/nll"] == pytest.approx(nll, rel=1e-5)
    assert metrics["mstep/kl"] == 0 and metrics["mstep/grad_norm"] > 0


# ---- two ranks ----

GROUPS = [5, 3]  # odd: one rank holds a row more than the other, which pads
SPLITS = [(3, 2), (1, 2)]


def shares(rank: int) -> list[Rows]:
    whole = [rows(num, seed=i) for i, num in enumerate(GROUPS)]
    cut = [split[0] for split in SPLITS]
    return [part(w, slice(0, c) if rank == 0 else slice(c, None)) for w, c in zip(whole, cut, strict=True)]


def rank_main(rank: int, folder: str) -> None:
    """One of two processes, each with its share of the rows, wrapped as Ray Train wraps it."""
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", rendezvous, timedelta(seconds=60), 2, rank)
    toy = LinearGaussian(T, D).shifted(0.5)
    wrapper = toy.parallelise(torch.nn.parallel.DistributedDataParallel)
    fitter = Fitter(toy, MStep(**{**CONFIG, "epochs": 2, "micro_batch": 5}), 7, defer=wrapper.no_sync)
    metrics = fitter.fit(1, shares(rank))
    torch.save((toy.shift.detach(), metrics), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def stable_diffusion(folder: str) -> tuple[Any, Tensor, tuple[str, ...]]:
    """The tiny pipeline with adapters, and states of 5 trajectories."""
    from dav_ray.diffusion.pipelines.stable_diffusion import Parts, StableDiffusion

    diffusion = StableDiffusion(Parts.load(f"{folder}/pipeline"), steps=2, guidance_scale=3.0)
    diffusion.add_adapters(2, 2.0, ("to_q", "to_v"), seed=0)
    x = torch.randn((5, 3, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    return diffusion, x, ("one",) * 5


def masked_diffusion(folder: str) -> tuple[Any, Tensor, tuple[str, ...]]:
    """A dilated CNN with adapters, guided: two forward passes before each backward."""
    from dav_ray.diffusion.masked.alphabet import Alphabet
    from dav_ray.diffusion.masked.dilated_cnn import DilatedCNN
    from dav_ray.diffusion.masked.model import MaskedDiffusion

    torch.manual_seed(0)
    backbone = DilatedCNN(5, hidden=8, stacks=1, kernel=3, classes=2)
    options: dict[str, Any] = {"alphabet": Alphabet.of("dna"), "length": 12, "classes": 2, "steps": 2}
    diffusion = MaskedDiffusion(backbone, guidance_scale=3.0, micro_batch=2, **options)
    diffusion.add_adapters(2, 2.0, ("convs", "final_conv"), seed=0)
    conditions = ("class=0", "class=1", "", "fixed=0:A", "class=1")
    return diffusion, ancestral(diffusion, conditions, KeyedNoise(0, 1, range(5))).transpose(0, 1), conditions


def checkpointed(folder: str) -> tuple[Any, Tensor, tuple[str, ...]]:
    diffusion, x, conditions = stable_diffusion(folder)
    diffusion.checkpoint()
    return diffusion, x, conditions


MODELS = {"stable": stable_diffusion, "masked": masked_diffusion, "checkpointed": checkpointed}


def train_diffusion(folder: str, kind: str, rank: int | None) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Two optimizer steps on adapters; rank None: both shares in this process."""
    diffusion, x, conditions = MODELS[kind](folder)
    whole = Rows(x, None, conditions, torch.ones(5, dtype=torch.float64), torch.ones(5, dtype=torch.bool))
    cut = {None: slice(0, 5), 0: slice(0, 3), 1: slice(3, 5)}[rank]
    defer = {}
    if rank is not None:
        defer["defer"] = diffusion.parallelise(torch.nn.parallel.DistributedDataParallel).no_sync
    fitter = Fitter(diffusion, MStep(**{**CONFIG, "epochs": 2, "micro_batch": 4}), 7, **defer)
    metrics = fitter.fit(1, [part(whole, cut)])
    named = diffusion.trainable().named_parameters()
    return {name: p.detach().clone() for name, p in named if p.requires_grad}, metrics


def diffusion_rank_main(rank: int, folder: str, kind: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", timedelta(seconds=120), 2, rank)
    torch.save(train_diffusion(folder, kind, rank), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_two_ranks_train_adapters_as_one_process(tmp_path: Path, kind: str) -> None:
    """Switching adapters off for the reference between DDP's forward passes must not disturb its gradients."""
    from tests.support.tiny import save_tiny

    if kind != "masked":
        save_tiny(tmp_path)
    torch.multiprocessing.spawn(diffusion_rank_main, (str(tmp_path), kind), nprocs=2)
    (first, metrics), (second, _) = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    whole, expected = train_diffusion(str(tmp_path), kind, None)

    assert metrics["mstep/kl"] > 0
    for name in ("mstep/nll", "mstep/kl", "mstep/grad_norm"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-3)
    for name, parameter in whole.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], parameter, rtol=0, atol=1e-3)


@pytest.mark.thorough
def test_two_ranks_fit_as_one_process(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(rank_main, (str(tmp_path),), nprocs=2)
    (first, metrics), (second, other) = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    whole, expected = fitted([rows(num, seed=i) for i, num in enumerate(GROUPS)], epochs=2)

    assert torch.equal(first, second)
    torch.testing.assert_close(first, whole, rtol=1e-4, atol=1e-6)
    for name in ("mstep/nll", "mstep/kl", "mstep/grad_norm", "mstep/optimizer_steps", "mstep/rows"):
        assert metrics[name] == other[name]
        assert metrics[name] == pytest.approx(expected[name], rel=1e-5)
    assert metrics["mstep/rows"] == sum(GROUPS)
