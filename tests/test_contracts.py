"""What every kernel, diffusion, reward and search strategy promises: a new one is added to the lists here."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from dav_ray.diffusion.base import Diffusion, Kernel
from dav_ray.diffusion.gaussian import GaussianKernel
from dav_ray.diffusion.stable_diffusion import Parts, StableDiffusion
from dav_ray.noise import KeyedNoise
from dav_ray.rewards.base import Scorer, local_scorer
from dav_ray.rewards.colour import TargetColour
from dav_ray.rewards.registry import BUILTIN, resolve
from dav_ray.search.base import Search
from dav_ray.search.best_of_n import BestOfN
from dav_ray.search.dav import Dav
from dav_ray.search.none import NoSearch
from dav_ray.types import Trajectories, Transitions
from tests.toy import Bowl, Toy

NUM = 4


def noise(num: int = NUM, start: int = 0, seed: int = 3) -> KeyedNoise:
    return KeyedNoise(seed, 1, range(start, start + num))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# ---- kernels ----

KERNELS: dict[str, Callable[[], Kernel]] = {
    "gaussian, one variance per state": lambda: GaussianKernel(
        noise().at(0).normal((2, 3)), torch.tensor([0.1, 0.5, 1.0, 2.0]).reshape(NUM, 1, 1)
    ),
    "gaussian, one variance per dimension": lambda: GaussianKernel(
        noise().at(0).normal((2, 3)), 0.1 + noise().at(1).uniform((2, 3)).float()
    ),
}


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return KERNELS[request.param]()


def test_kernel_samples_one_row_per_state(kernel: Kernel) -> None:
    x = kernel.sample(5, noise().at(2))

    assert not kernel.deterministic
    assert x.shape == (NUM, 5, 2, 3)
    assert torch.equal(x, kernel.sample(5, noise().at(2)))
    assert not torch.equal(x, kernel.sample(5, noise(seed=4).at(2)))
    assert kernel.log_prob(x).shape == (NUM, 5) and kernel.log_prob(x).dtype == torch.float64


def test_kernel_states_are_independent(kernel: Kernel) -> None:
    x, rows = kernel.sample(5, noise().at(2)), torch.tensor([2])
    alone = kernel.take(rows)

    assert torch.equal(alone.sample(5, noise(1, 2).at(2)), x[2:3])
    assert torch.equal(alone.log_prob(x[2:3]), kernel.log_prob(x)[2:3])
    assert torch.equal(alone.nll(x[2:3, 0]), kernel.nll(x[:, 0])[2:3])


def test_kernel_tilt(kernel: Kernel) -> None:
    """Tilting by nothing changes nothing; else log-densities move by <g, x> up to a constant per state."""
    x, g = kernel.sample(5, noise().at(2)), noise().at(3).normal((2, 3))
    moved = kernel.tilt(g).log_prob(x) - kernel.log_prob(x) - (g[:, None] * x).flatten(2).sum(-1)

    assert torch.equal(kernel.tilt(torch.zeros(NUM, 2, 3)).log_prob(x), kernel.log_prob(x))
    close(moved, moved[:, :1].expand(NUM, 5))


def test_kernel_divergence_and_likelihood(kernel: Kernel) -> None:
    """KL(p || p) = 0, KL(p || q) is E_p[log p - log q], nll is minus the log-density."""
    other, many = kernel.tilt(0.3 * noise().at(3).normal((2, 3))), 20_000
    x = kernel.sample(many, noise().at(2))
    ratio = kernel.log_prob(x) - other.log_prob(x)

    assert kernel.kl(kernel).tolist() == [0.0] * NUM
    assert ((kernel.kl(other) - ratio.mean(1)).abs() < 4 * ratio.std(1) / many**0.5).all()
    close(kernel.nll(x[:, 0]), -kernel.log_prob(x)[:, 0].float())


def test_kernel_blend(kernel: Kernel) -> None:
    """Equal weights say nothing about the candidates: the outcome is then that of no search."""
    x = kernel.sample(5, noise().at(2))
    blend = kernel.blend(x, torch.full((NUM, 5), 0.2, dtype=torch.float64))

    assert blend.shape == (NUM, 2, 3)
    assert (kernel.nll(blend) <= kernel.nll(x[:, 0])).all()


def test_kernel_pickles(kernel: Kernel) -> None:
    x = kernel.sample(5, noise().at(2))

    assert torch.equal(pickle.loads(pickle.dumps(kernel)).log_prob(x), kernel.log_prob(x))


# ---- diffusions ----


@pytest.fixture(scope="module")
def diffusions(tiny_folder: str) -> dict[str, tuple[Diffusion, list[str]]]:
    """A model whose policy has moved away from the reference, and prompts that it understands."""
    stable = StableDiffusion(Parts.load(tiny_folder), steps=3, guidance_scale=3.0)
    stable.add_adapters(2, 2.0, ("to_q", "to_v"), seed=0)
    with torch.no_grad():
        for parameter in stable.trainable().parameters():
            if parameter.requires_grad:
                parameter += 0.1
    return {
        "toy": (Toy(3).shifted(0.8), ["0.3", "-0.5", "1.0", "0.3"]),
        "stable": (stable, ["one", "two", "", "one"]),
    }


@pytest.fixture(params=["toy", "stable"])
def model(request: pytest.FixtureRequest, diffusions: dict[str, Any]) -> tuple[Any, list[str]]:
    return diffusions[request.param]


def test_diffusion_states_are_independent(model: tuple[Any, list[str]]) -> None:
    """Batch, mixed time steps and chunking change no prediction."""
    diffusion, prompts = model
    x = diffusion.prior(prompts, noise().at(3))
    t = torch.tensor([3, 1, 2, 3])
    with torch.no_grad():
        whole = diffusion.predict(x, t, prompts)
        for i in range(NUM):
            alone = diffusion.predict(x[i : i + 1], int(t[i]), prompts[i : i + 1])
            close(
                alone.kernel.sample(2, noise(1).at(0)), whole.kernel.take(torch.tensor([i])).sample(2, noise(1).at(0))
            )
            close(alone.x0_hat, whole.take(torch.tensor([i])).x0_hat)
    close(diffusion.decode(x)[1:2], diffusion.decode(x[1:2]))
    assert torch.equal(diffusion.prior(prompts[2:3], noise(1, 2).at(3)), x[2:3])


def test_diffusion_counts_what_it_evaluates(model: tuple[Any, list[str]]) -> None:
    diffusion, prompts = model
    x, before = diffusion.prior(prompts, noise().at(3)), diffusion.cost
    with torch.no_grad():
        diffusion.predict(x, 2, prompts)
        diffusion.predict(x, 2, prompts, reference=True)
    diffusion.predict(x, 2, prompts)
    diffusion.decode(x)
    spent = diffusion.cost - before

    assert (spent.network, spent.backward, spent.reference, spent.reward) == (2 * NUM, NUM, NUM, 0)


def test_diffusion_step_loss_is_that_of_its_kernel(model: tuple[Any, list[str]]) -> None:
    diffusion, prompts = model
    x = diffusion.prior(prompts, noise().at(3))
    with torch.no_grad():
        kernel = diffusion.predict(x, 2, prompts).kernel
        pretrained = diffusion.predict(x, 2, prompts, reference=True).kernel
        x_prev = kernel.sample(1, noise().at(1))[:, 0]
        loss = diffusion.step_loss(Transitions(x, x_prev, torch.full((NUM,), 2), prompts), reference=True)

    close(loss.nll, -kernel.log_prob(x_prev[:, None])[:, 0].float())
    close(loss.kl, kernel.kl(pretrained))
    assert (loss.kl > 0).all()


def test_diffusion_is_differentiable_in_state_and_policy(model: tuple[Any, list[str]]) -> None:
    diffusion, prompts = model
    x = diffusion.prior(prompts, noise().at(3)).requires_grad_()
    prediction = diffusion.predict(x, 2, prompts)
    parameters = [p for p in diffusion.trainable().parameters() if p.requires_grad]
    (to_state,) = torch.autograd.grad(prediction.x0_hat.sum(), x, retain_graph=True)
    to_policy = torch.autograd.grad(prediction.kernel.nll(x.detach()).sum(), parameters, allow_unused=True)

    assert (to_state != 0).flatten(1).any(1).all()
    assert any(g is not None and (g != 0).any() for g in to_policy)
    assert not prediction.detach().x0_hat.requires_grad


def test_diffusion_names_its_steps_without_variance(model: tuple[Any, list[str]]) -> None:
    diffusion, prompts = model
    x = diffusion.prior(prompts, noise().at(3))
    for t in range(1, diffusion.steps + 1):
        with torch.no_grad():
            assert diffusion.predict(x, t, prompts).kernel.deterministic == diffusion.deterministic(t)


# ---- rewards ----


@pytest.mark.parametrize("kind", BUILTIN)
def test_reward(kind: str) -> None:
    """Fixed values, each of its own sample alone; unchanged by pickling; gradients where they are promised."""
    reward = resolve(kind)()
    samples = noise(6).at(0).uniform((3, 32, 32)).float()
    samples[3:] = samples[3:, :, :1, :1]
    prompts = ["one", "two", "three", "one", "two", "three"]
    values = reward(samples, prompts)

    assert values.shape == (6,) and values.isfinite().all()
    assert torch.equal(reward(samples, prompts), values)
    assert torch.equal(pickle.loads(pickle.dumps(reward))(samples, prompts), values)
    torch.testing.assert_close(torch.cat([reward(samples[i : i + 1], prompts[i : i + 1]) for i in range(6)]), values)
    leaf = samples.clone().requires_grad_()
    scored = reward(leaf, prompts)
    assert scored.requires_grad == reward.differentiable
    if reward.differentiable:
        (grad,) = torch.autograd.grad(scored[2], leaf)
        assert (grad[2] != 0).any() and (grad[[0, 1, 3, 4, 5]] == 0).all()


def test_rewards_tell_pictures_apart() -> None:
    """The pictures above must be such that a constant could not pass."""
    noisy, plain = noise(1).at(0).uniform((3, 32, 32)).float(), torch.full((1, 3, 32, 32), 0.9)
    for kind in set(BUILTIN) - {"digit_legibility"}:
        reward = resolve(kind)()
        assert reward(noisy, ["one"]).item() != reward(plain, ["one"]).item()


# ---- strategies ----

STRATEGIES: dict[str, Search] = {
    "dav": Dav(3, 0.5, 0.9, gradient=False, beta=0.0),
    "dav, gradient, geometric anchor": Dav(3, 0.5, 0.9, gradient=True, beta=0.3, blend=True),
    "best_of_n": BestOfN(3),
    "none": NoSearch(0.5, 0.0),
}


@pytest.fixture(params=STRATEGIES)
def search(request: pytest.FixtureRequest) -> Search:
    return STRATEGIES[request.param]


class Moved:
    """A reward plus a constant."""

    differentiable = True

    def __init__(self, reward: Any, constant: float) -> None:
        self.reward, self.constant = reward, constant

    def __call__(self, samples: Tensor, conditions: Any) -> Tensor:
        return self.reward(samples, conditions) + self.constant


def judge(diffusion: Any, constant: float = 0.0) -> Scorer:
    return local_scorer([("judge", 1.0, Moved(Bowl() if isinstance(diffusion, Toy) else TargetColour(), constant))])


def parts(found: Trajectories) -> dict[str, Tensor]:
    return {f.name: v for f in fields(found) if isinstance(v := getattr(found, f.name), Tensor)}


def test_search_returns_what_it_says(search: Search, model: tuple[Any, list[str]]) -> None:
    diffusion, prompts = model
    before = diffusion.cost
    found = search(diffusion, judge(diffusion), prompts, noise())

    assert found.states.shape[:2] == (diffusion.steps + 1, NUM)
    assert found.targets is None or found.targets.shape == found.states[1:].shape
    assert found.reward.dtype == found.ess.dtype == torch.float64
    assert ((found.ess >= 1 - 1e-9) & (found.ess <= 3 + 1e-9)).all()
    assert found.cost.reward > 0 and diffusion.cost.network - before.network == found.cost.network
    close(found.sample, diffusion.decode(found.states[-1]))
    close(found.reward, judge(diffusion).score(found.sample, prompts))
    assert not any(tensor.requires_grad for tensor in parts(found).values())


def test_search_is_a_function_of_its_noise(search: Search, model: tuple[Any, list[str]]) -> None:
    diffusion, prompts = model
    again = pickle.loads(pickle.dumps(search))
    found, same, other = (
        run(diffusion, judge(diffusion), prompts, noise(seed=seed))
        for run, seed in ((search, 3), (again, 3), (search, 4))
    )
    assert same.cost == found.cost
    assert parts(same).keys() == parts(found).keys()
    assert all(torch.equal(parts(same)[name], tensor) for name, tensor in parts(found).items())
    assert not torch.equal(other.states, found.states)


def test_search_does_not_depend_on_the_chunk(search: Search, model: tuple[Any, list[str]]) -> None:
    diffusion, prompts = model
    whole = search(diffusion, judge(diffusion), prompts, noise())
    halves = [search(diffusion, judge(diffusion), prompts[a : a + 2], noise(2, a)) for a in (0, 2)]

    assert halves[0].cost + halves[1].cost == whole.cost
    for name, tensor in parts(whole).items():
        close(torch.cat([parts(half)[name] for half in halves], dim=int(name in ("states", "targets"))), tensor)


@pytest.mark.parametrize("constant", [2.0, -64.0])
def test_search_does_not_see_a_constant_reward(search: Search, model: tuple[Any, list[str]], constant: float) -> None:
    """Added to every reward it changes no choice, whatever its sign; weights move by its share."""
    diffusion, prompts = model
    plain = search(diffusion, judge(diffusion), prompts, noise())
    moved = search(diffusion, judge(diffusion, constant), prompts, noise())

    close(moved.states, plain.states)
    close(moved.reward, plain.reward + constant)
    if plain.log_weight is not None and moved.log_weight is not None:
        torch.testing.assert_close(moved.log_weight, plain.log_weight + constant / 0.5, rtol=1e-4, atol=2e-3)
