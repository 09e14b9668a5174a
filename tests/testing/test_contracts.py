"""What every kernel, diffusion, reward and search strategy promises: a new one is added to the lists here."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from dav_ray.config.model_path import ASSETS
from dav_ray.diffusion.base import Diffusion, Kernel
from dav_ray.diffusion.gaussian import GaussianKernel
from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.diffusion.masked.config_file import read_config
from dav_ray.diffusion.masked.dilated_cnn import DilatedCNN
from dav_ray.diffusion.masked.kernel import MaskedKernel, substitute
from dav_ray.diffusion.masked.model import MaskedDiffusion
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.diffusion.pipelines.latents import LatentModel
from dav_ray.diffusion.pipelines.stable_diffusion import Parts, StableDiffusion
from dav_ray.diffusion.pipelines.stable_diffusion_3 import StableDiffusion3
from dav_ray.rewards.base import Scorer, local_scorer
from dav_ray.rewards.colour import TargetColour
from dav_ray.rewards.digits import DigitLegibility
from dav_ray.rewards.registry import REWARDS, resolve
from dav_ray.rewards.sequence import GcContent
from dav_ray.search.base import Search
from dav_ray.search.best_of_n import BestOfN
from dav_ray.search.dav import Dav
from dav_ray.search.kinds import SEARCHES
from dav_ray.search.plain import NoSearch
from dav_ray.search.refine import Refine
from dav_ray.search.smc import Smc
from dav_ray.search.svdd import Svdd
from dav_ray.search.weighting.choices import HERE
from dav_ray.testing.flow import LinearFlow, even
from dav_ray.testing.gaussian import Bowl, LinearGaussian, Shifted
from dav_ray.types import Trajectories, Transitions
from tests.rewards.test_enformer import TINY, EnformerModel, filled, saved
from tests.support.pipelines import stable_diffusion_3
from tests.support.streams import started

NUM = 4
MASK = 3  # of the masked kernel below, whose events are 6 of 3 letters


def noise(num: int = NUM, start: int = 0, seed: int = 3) -> KeyedNoise:
    return KeyedNoise(seed, 1, range(start, start + num))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# ---- kernels ----


def masked_kernel(seed: int) -> MaskedKernel:
    """Three states of four have masks left."""
    x = (4 * noise().at(0).uniform((6,))).long()
    x[0], x[3] = MASK, x[3] % MASK
    return MaskedKernel(x, substitute(noise().at(seed).normal((6, 4)), x), 0.2 + 0.6 * noise().at(2).uniform(()))


def gaussian_kernel(std: Tensor, seed: int) -> GaussianKernel:
    return GaussianKernel(noise().at(seed).normal((2, 3)), std)


# seed -> a kernel: another one is another model's, at the same states and step
KERNELS: dict[str, Callable[[int], Kernel]] = {
    "gaussian, one variance per state": lambda seed: gaussian_kernel(
        torch.tensor([0.1, 0.5, 1.0, 2.0]).reshape(NUM, 1, 1), seed
    ),
    "gaussian, one variance per dimension": lambda seed: gaussian_kernel(
        0.1 + noise().at(1).uniform((2, 3)).float(), seed
    ),
    "masked": masked_kernel,
}


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> tuple[Kernel, Kernel]:
    """Of two models, at the same states and step."""
    build = KERNELS[request.param]
    return build(10), build(11)


@pytest.fixture
def kernel(kernels: tuple[Kernel, Kernel]) -> Kernel:
    return kernels[0]


def event(kernel: Any) -> tuple[int, ...]:
    return kernel.x.shape[1:] if isinstance(kernel, MaskedKernel) else kernel.mean.shape[1:]


def slopes(kernel: Any) -> tuple[int, ...]:
    """The shape of a gradient: of a relaxed state where states are tokens."""
    return kernel.log_p.shape[1:] if isinstance(kernel, MaskedKernel) else event(kernel)


def inner(g: Tensor, x: Tensor) -> Tensor:
    """<g, x> [B, M], tokens being one-hot."""
    relaxed = x if x.is_floating_point() else one_hot(x, g.shape[-1])
    return (g[:, None] * relaxed).flatten(2).sum(-1)


def test_kernel_samples_one_row_per_state(kernel: Kernel) -> None:
    x = kernel.sample(5, noise().at(2))

    assert not kernel.deterministic
    assert x.shape == (NUM, 5, *event(kernel))
    assert torch.equal(x, kernel.sample(5, noise().at(2)))
    assert not torch.equal(x, kernel.sample(5, noise(seed=4).at(2)))
    assert kernel.log_prob(x).shape == (NUM, 5) and kernel.log_prob(x).dtype == torch.float64
    assert kernel.log_prob(x).isfinite().all()


def test_kernel_states_are_independent(kernel: Kernel) -> None:
    x, rows = kernel.sample(5, noise().at(2)), torch.tensor([2])
    alone = kernel.take(rows)

    assert torch.equal(alone.sample(5, noise(1, 2).at(2)), x[2:3])
    assert torch.equal(alone.log_prob(x[2:3]), kernel.log_prob(x)[2:3])
    assert torch.equal(alone.nll(x[2:3, 0]), kernel.nll(x[:, 0])[2:3])


def test_kernel_joins_what_was_taken_apart(kernel: Kernel) -> None:
    x = kernel.sample(5, noise().at(2))
    joined = kernel.take(torch.tensor([0, 1])).join(kernel.take(torch.tensor([2, 3])))

    assert torch.equal(joined.sample(5, noise().at(2)), x)
    assert torch.equal(joined.log_prob(x), kernel.log_prob(x))


def test_kernel_tilt(kernel: Kernel) -> None:
    """Tilting by nothing changes nothing; else log-densities move by <g, x> up to a constant per state."""
    x, g = kernel.sample(5, noise().at(2)), noise().at(3).normal(slopes(kernel))
    moved = kernel.tilt(g).log_prob(x) - kernel.log_prob(x) - inner(g, x)

    close(kernel.tilt(torch.zeros_like(g)).log_prob(x), kernel.log_prob(x))
    assert torch.equal(kernel.tilt(torch.zeros_like(g)).sample(5, noise().at(2)), x)
    close(moved, moved[:, :1].expand(NUM, 5))


def test_kernel_divergence_and_likelihood(kernels: tuple[Kernel, Kernel]) -> None:
    """KL(p || p) = 0, KL(p || q) is E_p[log p - log q]; nll is minus the log-density, up to what no model decides."""
    (kernel, other), many = kernels, 20_000
    x = kernel.sample(many, noise().at(2))
    ratio = kernel.log_prob(x) - other.log_prob(x)

    assert kernel.kl(kernel).tolist() == [0.0] * NUM
    assert ((kernel.kl(other) - ratio.mean(1)).abs() <= 4 * ratio.std(1) / many**0.5).all()
    assert int((kernel.kl(other) > 0).sum()) >= 3
    close(other.nll(x[:, 0]) - kernel.nll(x[:, 0]), ratio[:, 0].float())


def test_kernel_blend(kernels: tuple[Kernel, Kernel]) -> None:
    """What a blend says of one model against another is the weighted mean of what the candidates say, less what their
    plain mean says, plus what it says on average: the KL. So equal weights say what is said without a search."""
    kernel, other = kernels
    x = kernel.sample(5, noise().at(2))
    ratio = kernel.log_prob(x) - other.log_prob(x)
    weights = torch.softmax(noise().at(4).normal((5,)).double(), -1)
    for w in (weights, torch.full_like(weights, 0.2)):
        blend = kernel.blend(x, w)
        assert blend.shape[: 1 + len(event(kernel))] == (NUM, *event(kernel))
        close(other.nll(blend) - kernel.nll(blend), ((w - 0.2) * ratio).sum(1).float() + kernel.kl(other))


def test_kernel_pickles(kernel: Kernel) -> None:
    x = kernel.sample(5, noise().at(2))

    assert torch.equal(pickle.loads(pickle.dumps(kernel)).log_prob(x), kernel.log_prob(x))


# ---- diffusions ----


@pytest.fixture(scope="module")
def diffusions(tiny_folder: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Diffusion, list[str]]]:
    """A model whose policy has moved away from the reference, and prompts that it understands."""
    stable = StableDiffusion(Parts.load(tiny_folder), steps=3, guidance_scale=3.0)
    stable.add_adapters(2, 2.0, ("to_q", "to_v"), seed=0)
    pipe = stable_diffusion_3.tiny(tmp_path_factory.mktemp("tokenizers"))
    velocity = StableDiffusion3(pipe, steps=3, noise="cps", eta=0.7, guidance_scale=3.0, height=16, width=16)
    velocity.add_adapters(2, 2.0, ("to_q", "to_v"), seed=0)
    torch.manual_seed(0)
    backbone = DilatedCNN(5, hidden=8, stacks=1, kernel=3, classes=2)
    masked = MaskedDiffusion(backbone, alphabet=Alphabet.of("dna"), length=12, classes=2, steps=3, guidance_scale=3.0)
    masked.add_adapters(2, 2.0, ("convs", "final_conv"), seed=0)
    with torch.no_grad():
        for model in (stable, velocity, masked):
            for parameter in model.trainable().parameters():
                if parameter.requires_grad:
                    parameter += 0.1
    return {
        "toy": (LinearGaussian(3).shifted(0.8), ["0.3", "-0.5", "1.0", "0.3"]),
        "toy flow": (LinearFlow(even(3), "cps", 0.7).shifted(0.8), ["0.3", "-0.5", "1.0", "0.3"]),
        "stable": (stable, ["one", "two", "", "one"]),
        "velocity": (velocity, ["one", "two", "", "one"]),
        "masked": (masked, ["class=0", "class=1 fixed=0:AC,7:T", "", "class=0"]),
    }


@pytest.fixture(params=["toy", "toy flow", "stable", pytest.param("velocity", marks=pytest.mark.thorough), "masked"])
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
    close(diffusion.decode(x, prompts)[1:2], diffusion.decode(x[1:2], prompts[1:2]))
    assert torch.equal(diffusion.prior(prompts[2:3], noise(1, 2).at(3)), x[2:3])


def test_diffusion_counts_what_it_evaluates(model: tuple[Any, list[str]]) -> None:
    diffusion, prompts = model
    x, before = diffusion.prior(prompts, noise().at(3)), diffusion.cost
    with torch.no_grad():
        x0_hat = diffusion.predict(x, 2, prompts).x0_hat
        diffusion.predict(x, 2, prompts, reference=True)
    diffusion.predict(x, 2, prompts)
    diffusion.decode(x0_hat, prompts)
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
    ratio = kernel.log_prob(x_prev[:, None]) - pretrained.log_prob(x_prev[:, None])

    close(loss.nll, kernel.nll(x_prev))
    close(pretrained.nll(x_prev) - loss.nll, ratio[:, 0].float())
    close(loss.kl, kernel.kl(pretrained))
    assert (loss.kl > 0).all()


def test_diffusion_is_differentiable_in_state_and_policy(model: tuple[Any, list[str]]) -> None:
    diffusion, prompts = model
    x = diffusion.relax(diffusion.prior(prompts, noise().at(3))).requires_grad_()
    prediction = diffusion.predict(x, 2, prompts)
    parameters = [p for p in diffusion.trainable().parameters() if p.requires_grad]
    weights = noise().at(4).normal(prediction.x0_hat.shape[1:])
    (to_state,) = torch.autograd.grad((weights * prediction.x0_hat).sum(), x, retain_graph=True)
    x_prev = prediction.kernel.detach().sample(1, noise().at(1))[:, 0]
    to_policy = torch.autograd.grad(prediction.kernel.nll(x_prev).sum(), parameters, allow_unused=True)

    assert (to_state != 0).flatten(1).any(1).all()
    assert any(g is not None and (g != 0).any() for g in to_policy)
    assert not prediction.detach().x0_hat.requires_grad


def test_diffusion_names_its_steps_without_variance(model: tuple[Any, list[str]]) -> None:
    diffusion, prompts = model
    x = diffusion.prior(prompts, noise().at(3))
    for t in range(1, diffusion.steps + 1):
        with torch.no_grad():
            assert diffusion.predict(x, t, prompts).kernel.deterministic == diffusion.deterministic(t)


def test_diffusion_predicts_the_same_of_a_relaxed_state(model: tuple[Any, list[str]]) -> None:
    diffusion, prompts = model
    x = diffusion.prior(prompts, noise().at(3))
    with torch.no_grad():
        plain, relaxed = diffusion.predict(x, 2, prompts), diffusion.predict(diffusion.relax(x), 2, prompts)
    x_prev = plain.kernel.sample(3, noise().at(1))

    assert torch.equal(relaxed.kernel.sample(3, noise().at(1)), x_prev)
    close(relaxed.kernel.log_prob(x_prev), plain.kernel.log_prob(x_prev))
    close(diffusion.harden(relaxed.x0_hat), plain.x0_hat)


def test_a_timeless_diffusion_says_the_same_at_every_step(model: tuple[Any, list[str]]) -> None:
    diffusion, prompts = model
    x = diffusion.prior(prompts, noise().at(3))
    if diffusion.timeless:
        with torch.no_grad():
            late, moved = diffusion.predict(x, 1, prompts), diffusion.move(diffusion.predict(x, 3, prompts), 1)
        assert torch.equal(late.x0_hat, moved.x0_hat)
        assert torch.equal(late.kernel.sample(3, noise().at(1)), moved.kernel.sample(3, noise().at(1)))


def test_diffusion_state_comes_back(model: tuple[Any, list[str]]) -> None:
    """The policy's parameters by name are all that tells it from the reference."""
    diffusion, prompts = model
    if isinstance(diffusion, Shifted):
        pytest.skip("a toy of the search and the fit: it is never stored")
    x = diffusion.prior(prompts, noise().at(3))
    kept = {name: tensor.clone() for name, tensor in diffusion.policy_state().items()}
    with torch.no_grad():
        before = diffusion.predict(x, 2, prompts).kernel.sample(1, noise().at(1))
        diffusion.load_policy_state({name: torch.zeros_like(tensor) for name, tensor in kept.items()})
        zero, reference = (diffusion.predict(x, 2, prompts, reference=r).kernel for r in (False, True))
        x_prev = reference.sample(1, noise().at(1))
        close(zero.log_prob(x_prev), reference.log_prob(x_prev))
        diffusion.load_policy_state(kept)
        assert torch.equal(diffusion.predict(x, 2, prompts).kernel.sample(1, noise().at(1)), before)


# ---- rewards ----

IMAGES = ("jpeg_compressibility", "jpeg_incompressibility", "brightness", "target_colour", "digit_legibility")
LENGTH = read_config(ASSETS / "dna")["length"]  # that of the shipped oracles
# of the rewards on sequences: the arguments without which they can't be built, or could not tell sequences apart
SEQUENCES: dict[str, dict[str, Any]] = {
    "torch_oracle": {"model": "dav_ray.rewards.oracle:ConvOracle", "weights": "shipped:dna/oracle_a.safetensors"},
    "enformer": {},  # its checkpoint is written by the fixture
    "gc_content": {},
    "gc_window": {"low": 0.5, "high": 1.0},
    "motif_score": {"motifs": ["MA0139.2", "Yy1"]},
    "product": {"rewards": [{"kind": "gc_content"}, {"kind": "motif_score", "args": {"motifs": ["Yy1"]}}]},
    "ehrlich": {"length": LENGTH, "motifs": 2, "motif_length": 4},
}
NEED_JASPAR = ("motif_score", "product")
PROMPTS = ["one", "two", "three", "one", "two", "three"]


def test_every_registered_reward_is_under_contract() -> None:
    assert {*IMAGES, *SEQUENCES} == set(REWARDS.builtin)


@pytest.fixture(params=REWARDS.builtin)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Tensor, Tensor | None]:
    """A reward, 6 samples, and these relaxed, where they are differentiated so."""
    kind = request.param
    if kind in IMAGES:
        samples = noise(6).at(0).uniform((3, 32, 32)).float()
        samples[3:] = samples[3:, :, :1, :1]
        return resolve(kind)(), samples, samples
    if kind in NEED_JASPAR:
        pytest.importorskip("pyjaspar")
    args = SEQUENCES[kind]
    if kind == "enformer":
        args = {"checkpoint": saved(tmp_path / "a.ckpt", filled(EnformerModel(**TINY)), {"task": "binary"})}
    reward = resolve(kind)(**args)
    tokens = (4 * noise(6).at(0).uniform((LENGTH,))).long()
    if kind == "ehrlich":  # few random sequences are feasible
        tokens[:4] = torch.cat([reward.optimum()[None], reward.initial(3, seed=0)])
    return reward, tokens, one_hot(tokens, 4).float() if reward.differentiable else None


def test_reward(case: tuple[Any, Tensor, Tensor | None]) -> None:
    """Values each of its own sample alone, not all the same; unchanged by pickling; gradients where promised."""
    reward, samples, relaxed = case
    values = reward(samples, PROMPTS)

    assert values.shape == (6,) and not values.isnan().any() and (values < torch.inf).all()
    assert values.max() > values.min() or isinstance(reward, DigitLegibility)  # there is no digit to read in any
    assert torch.equal(reward(samples, PROMPTS), values)
    assert torch.equal(pickle.loads(pickle.dumps(reward))(samples, PROMPTS), values)
    alone = torch.cat([reward(samples[i : i + 1], PROMPTS[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(alone, values)
    if relaxed is None:
        return
    leaf = relaxed.clone().requires_grad_()
    scored = reward(leaf, PROMPTS)
    torch.testing.assert_close(scored.detach(), values)
    assert scored.requires_grad == reward.differentiable
    if reward.differentiable:
        (grad,) = torch.autograd.grad(scored[2], leaf)
        assert (grad[2] != 0).any() and (grad[[0, 1, 3, 4, 5]] == 0).all()


# ---- strategies ----

STRATEGIES: dict[str, Search] = {
    "dav": Dav(3, 0.5, 0.9, gradient=False, beta=0.0),
    "dav, gradient, geometric anchor": Dav(3, 0.5, 0.9, gradient=True, beta=0.3, blend=True),
    "refine": Refine(Dav(3, 0.5, 0.9, gradient=False, beta=0.0), repeats=2, depth=0.5),
    "smc, gradient": Smc(Dav(2, 0.5, 0.9, gradient=True, beta=0.0), particles=2, tempering="adaptive(0.7)"),
    "svdd": Svdd(3, 0.5),
    "best_of_n": BestOfN(3),
    "none": NoSearch(0.5, 0.0),
}


def test_every_registered_search_is_under_contract() -> None:
    assert {type(search) for search in STRATEGIES.values()} == {SEARCHES.load(name) for name in SEARCHES.builtin}


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
    rewards: dict[type, Any] = {Shifted: Bowl(), LatentModel: TargetColour(), MaskedDiffusion: GcContent()}
    (reward,) = (reward for kind, reward in rewards.items() if isinstance(diffusion, kind))
    return local_scorer([("judge", 1.0, Moved(reward, constant))])


def parts(found: Trajectories) -> dict[str, Tensor]:
    return {f.name: v for f in fields(found) if isinstance(v := getattr(found, f.name), Tensor)}


def test_search_returns_what_it_says(search: Search, model: tuple[Any, list[str]]) -> None:
    diffusion, prompts = model
    before = diffusion.cost
    found = search(diffusion, judge(diffusion), prompts, noise())

    assert found.states.shape[:2] == (diffusion.steps + 1, NUM)
    if found.targets is not None:  # of tokens, a blend holds a count of every letter
        assert found.targets.shape[: found.states.ndim] == found.states[1:].shape
    assert found.reward.dtype == found.ess.dtype == torch.float64
    most = 4 if isinstance(search, Smc) else 3  # candidates; particles of two trajectories with one prompt
    assert ((found.ess >= 1 - 1e-9) & (found.ess <= most + 1e-9)).all()
    if found.step_ess is not None:
        torch.testing.assert_close(found.step_ess.mean(0), found.ess)
    assert found.cost.reward > 0 and diffusion.cost.network - before.network == found.cost.network
    close(found.sample, diffusion.decode(found.states[-1], prompts))
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


def test_search_starts_no_stream_twice(
    search: Search, model: tuple[Any, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is drawn and what is chosen are independent."""
    diffusion, prompts = model
    keys = started(monkeypatch)
    search(diffusion, judge(diffusion), prompts, noise())
    assert len(keys) == len(set(keys)) > 0


def test_search_does_not_depend_on_the_chunk(search: Search, model: tuple[Any, list[str]]) -> None:
    if isinstance(search, Smc):
        pytest.skip("a chunk's particles of a prompt are one population")
    diffusion, prompts = model
    whole = search(diffusion, judge(diffusion), prompts, noise())
    halves = [search(diffusion, judge(diffusion), prompts[a : a + 2], noise(2, a)) for a in (0, 2)]

    assert halves[0].cost + halves[1].cost == whole.cost
    for name, tensor in parts(whole).items():
        joined = torch.cat([parts(half)[name] for half in halves], dim=int(name in ("states", "targets", "step_ess")))
        seen = slice(HERE + 1 if name == "choices" else None)  # wider scales make rounding visible
        close(joined[..., seen], tensor[..., seen])


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
