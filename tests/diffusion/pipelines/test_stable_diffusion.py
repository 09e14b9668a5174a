"""StableDiffusion against the pipeline that it wraps, and its adapters against the base model."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dav_ray.config.build import strategy
from dav_ray.diffusion.noise import KeyedNoise, PipelineNoise
from dav_ray.diffusion.pipelines.stable_diffusion import Parts, StableDiffusion
from dav_ray.diffusion.sampling import ancestral
from dav_ray.errors import UserError
from dav_ray.search.options import Search
from dav_ray.testing.base import scorer
from dav_ray.types import Cost, Transitions

T = 7
PROMPTS = ["one", "a red two", "three"]
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
Build = Callable[..., StableDiffusion]


class Bright:
    differentiable = True

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        return samples.mean((1, 2, 3))


@pytest.fixture(scope="module")
def pipe(tiny_folder: str) -> Any:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def scheduler(folder: str, **options: Any) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_pretrained(folder, subfolder="scheduler", **options)


def wrapped(pipe: Any, scheduler: Any, guidance: float) -> StableDiffusion:
    parts = Parts(pipe.unet, pipe.vae, pipe.text_encoder, pipe.tokenizer, scheduler)
    return StableDiffusion(parts, steps=T, guidance_scale=guidance)


@pytest.fixture
def build(tiny_folder: str) -> Build:
    """A fresh model each: tests change its weights."""

    def make(**options: Any) -> StableDiffusion:
        return StableDiffusion(Parts.load(tiny_folder), **{"steps": T, "guidance_scale": 3.0, **options})

    return make


@pytest.fixture
def adapted(build: Build) -> StableDiffusion:
    diffusion = build()
    diffusion.add_adapters(4, 4.0, TARGETS, seed=0)
    return diffusion


def train(diffusion: StableDiffusion) -> None:
    """What an M-step does: other trainable weights."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in diffusion.trainable().parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def states(num: int = len(PROMPTS), seed: int = 0) -> Tensor:
    return KeyedNoise(seed, 1, range(num)).at(T).normal((4, 4, 4))


def transitions() -> Transitions:
    """Neighbouring states with the time steps mixed."""
    x = states(4)
    return Transitions(x, 0.9 * x + 0.1 * states(4, seed=1), torch.tensor([T, 2, 3, 1]), [*PROMPTS, "one"])


def mean(diffusion: StableDiffusion, *, reference: bool = False) -> Tensor:
    with torch.no_grad():
        return diffusion.predict(states(), 4, PROMPTS, reference=reference).kernel.mean


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prediction_type": "v_prediction"},
        {"set_alpha_to_one": True, "steps_offset": 0},
        {"timestep_spacing": "trailing"},
        {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        {"clip_sample": True},
        {"clip_sample": True, "clip_sample_range": 2.0, "prediction_type": "v_prediction", "set_alpha_to_one": True},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()) or "default",
)
def test_plain_sampling_is_the_pipelines(pipe: Any, tiny_folder: str, options: dict[str, Any], guidance: float) -> None:
    seeds = [3, 1, 4]
    pipe.register_modules(scheduler=scheduler(tiny_folder, **options))
    expected = pipe(
        PROMPTS,
        num_inference_steps=T,
        guidance_scale=guidance,
        eta=1.0,
        generator=[torch.Generator().manual_seed(s) for s in seeds],
        output_type="latent",
    ).images
    diffusion = wrapped(pipe, scheduler(tiny_folder, **options), guidance)
    x_0 = ancestral(diffusion, PROMPTS, PipelineNoise(seeds))[-1]

    assert x_0.std() > 0.1
    torch.testing.assert_close(x_0, expected, rtol=1e-3, atol=1e-3)
    assert diffusion.cost == Cost(network=T * len(PROMPTS))


@torch.no_grad()
def test_decoding_is_the_pipelines(pipe: Any, build: Build) -> None:
    x_0 = 3 * states()
    latents = x_0 / pipe.vae.config.scaling_factor
    expected = pipe.image_processor.postprocess(pipe.vae.decode(latents).sample, output_type="pt")
    images = build().decode(x_0, [""] * len(x_0))

    assert images.shape == (3, 3, 16, 16)
    assert images.amin() >= 0 and images.amax() <= 1 and images.std() > 0.01
    torch.testing.assert_close(images, expected)


@torch.no_grad()
def test_a_decoder_that_needs_a_wider_range_has_it(tiny_folder: str) -> None:
    """As diffusers' pipelines for such decoders do; one whose files do not say so stays in half precision."""
    from diffusers import AutoencoderKL

    def decoder(dtype: torch.dtype, said: bool) -> Any:
        parts = Parts.load(tiny_folder)
        vae = AutoencoderKL.from_pretrained(f"{tiny_folder}/vae", force_upcast=said, torch_dtype=dtype)
        with torch.no_grad():
            vae.decoder.conv_in.weight *= 1e3  # sums beyond float16's largest number, 65504, that are normalised later
        model = StableDiffusion(replace(parts, vae=vae.eval()), steps=T)
        return vae.dtype, model.decode(torch.full((2, 4, 4, 4), 1e3), ["a", "b"])

    with torch.no_grad():
        exact = decoder(torch.float32, True)[1]
        dtype, images = decoder(torch.float16, True)
        assert dtype == torch.float32 and images.isfinite().all()
        torch.testing.assert_close(images, exact, atol=0.01, rtol=0)
        assert decoder(torch.bfloat16, True)[0] == torch.bfloat16
        dtype, images = decoder(torch.float16, False)
        assert dtype == torch.float16 and not images.isfinite().all()


def test_decoding_holds_one_piece_beside_what_it_returns(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = build(decode_batch=2), torch.randn(7, 4, 4, 4)
    vae, alive, held = model._parts.vae, list[weakref.ref[Tensor]](), list[int]()
    plain = vae.decode

    def decode(latents: Tensor) -> Any:
        held.append(sum(ref() is not None for ref in alive))
        found = plain(latents)
        alive.append(weakref.ref(found.sample))
        return found

    with torch.no_grad():
        whole = model.decode(x, [""] * 7)
        monkeypatch.setattr(vae, "decode", decode)
        assert torch.equal(model.decode(x, [""] * 7), whole)
    assert held == [0, 0, 0, 0]


@pytest.mark.thorough
def test_memory_that_runs_out_in_the_decoder_leaves_the_network_its_batch(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that runs out in the gradient leaves both; what was found is the same, and counted once."""
    search = strategy(Search(candidates=4, steps=T, gradient=True), 0.01)
    found: list[Any] = []
    for narrow in (False, True):
        model, told = build(guidance_scale=1.0), list[tuple[str, int]]()
        for room in (*model.rooms, model.graphs):
            room.told = lambda room, _, told=told: told.append((room.name, room.limit))
        vae = model._parts.vae
        plain, most = vae.decode, (1, 6)

        def decode(latents: Tensor, plain: Any = plain, most: tuple[int, int] = most) -> Any:
            if len(latents) > (most[0] if torch.is_grad_enabled() else most[1]):
                raise torch.OutOfMemoryError("Tried to allocate")
            return plain(latents)

        if narrow:
            monkeypatch.setattr(vae, "decode", decode)
        found.append(search(model, scorer(Bright()), PROMPTS, KeyedNoise(0, 1, range(3))))
    assert told == [("gradient", 1), ("decoder", 6)]
    assert model.rooms[0].limit == 128 and found[0].cost == found[1].cost
    torch.testing.assert_close(found[0].states, found[1].states, atol=1e-4, rtol=1e-4)


def test_what_is_compiled_is_network_and_decoder(
    adapted: StableDiffusion, draft: Callable[..., str], tiny_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With adapters merged it is the merged network; decoders are in the channels-last format."""
    called: list[str] = []

    class Compiled(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *words: Any, **options: Any) -> Any:
            called.append(type(self.module).__name__)
            return self.module(*words, **options)

    monkeypatch.setattr(torch, "compile", Compiled)
    parts = Parts.load(tiny_folder, draft_vae=draft())
    model = StableDiffusion(parts, steps=T, guidance_scale=3.0, draft_above=0.5)
    model.add_adapters(4, 4.0, TARGETS, seed=0)
    model.merge()
    model.compile()
    x = torch.randn(3, 4, 4, 4)
    with torch.no_grad():
        found = model.predict(x, T, PROMPTS)
        assert called == ["UNet2DConditionModel"] and not any(
            "lora" in name for name, _ in model._policy.named_modules()
        )
        torch.testing.assert_close(found.x0_hat, adapted.predict(x, T, PROMPTS).x0_hat, atol=1e-4, rtol=1e-4)
        images = model.decode(x, PROMPTS)
        torch.testing.assert_close(images, adapted.decode(x, PROMPTS), atol=1e-5, rtol=1e-5)
        model.decode(x, PROMPTS, T)
    assert called == ["UNet2DConditionModel", "Decoder", "DecoderTiny"]
    assert parts.vae.decoder.module.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_batch_and_micro_batch_change_nothing(build: Build) -> None:
    whole, pieces = build(), build(micro_batch=2)
    x, t, prompts = states(5), torch.tensor([1, 7, 2, 7, 3]), [*PROMPTS, "one", "a red two"]
    expected = whole.predict(x, t, prompts)
    cut = pieces.predict(x, t, prompts)

    torch.testing.assert_close(cut.kernel.mean, expected.kernel.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cut.x0_hat, expected.x0_hat, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pieces.decode(x, prompts), whole.decode(x, prompts), rtol=1e-4, atol=1e-5)
    for i in range(5):
        alone = whole.predict(x[i : i + 1], int(t[i]), prompts[i : i + 1])
        torch.testing.assert_close(alone.kernel.mean[0], expected.kernel.mean[i], rtol=1e-4, atol=1e-5)
        assert torch.equal(alone.kernel.std[0], expected.kernel.std[i])
    assert whole.cost.network == 10 and pieces.cost.network == 5


def test_each_prompt_has_its_own_prediction(build: Build) -> None:
    diffusion, x = build(), states(1).repeat(2, 1, 1, 1)
    with torch.no_grad():
        means = diffusion.predict(x, 4, ["one", "three"]).kernel.mean

    assert (means[0] - means[1]).abs().max() > 1e-5


def test_adapters_start_as_the_base(build: Build, adapted: StableDiffusion) -> None:
    assert torch.equal(mean(adapted), mean(build()))


def test_the_same_seed_builds_the_same_adapters(build: Build) -> None:
    means = []
    for seed in (0, 0, 1):
        diffusion = build()
        state = torch.get_rng_state()
        diffusion.add_adapters(4, 4.0, TARGETS, seed)
        assert torch.equal(torch.get_rng_state(), state)
        with torch.no_grad():  # the second factor is zero at the start: with ones the first one shows
            for name, parameter in diffusion.trainable().named_parameters():
                if "lora_B" in name:
                    parameter.fill_(1.0)
        means.append(mean(diffusion))

    assert torch.equal(means[0], means[1])
    assert not torch.equal(means[0], means[2])


def test_the_reference_is_the_base_after_training(build: Build, adapted: StableDiffusion) -> None:
    base = mean(build())
    train(adapted)

    assert torch.equal(mean(adapted, reference=True), base)
    assert (mean(adapted) - base).abs().max() > 1e-4


def test_the_reference_of_full_weights_is_the_base_after_training(build: Build) -> None:
    diffusion = build()
    diffusion.train_all_weights()
    base = mean(build())
    assert torch.equal(mean(diffusion), base)
    train(diffusion)

    assert torch.equal(mean(diffusion, reference=True), base)
    assert (mean(diffusion) - base).abs().max() > 1e-3


def test_step_loss_is_that_of_each_step_alone(adapted: StableDiffusion) -> None:
    train(adapted)
    batch = transitions()
    with torch.no_grad():
        loss = adapted.step_loss(batch, reference=True)
        for i, t in enumerate(batch.t.tolist()):
            x, prompt = batch.x_t[i : i + 1], batch.conditions[i : i + 1]
            kernel = adapted.predict(x, t, prompt).kernel
            pretrained = adapted.predict(x, t, prompt, reference=True).kernel
            nll = -kernel.log_prob(batch.x_prev[i : i + 1, None])[0, 0]
            kl = (kernel.mean - pretrained.mean).double().square().sum() / (2 * kernel.std.double().item() ** 2)
            torch.testing.assert_close(loss.nll[i].double(), nll, rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(loss.kl[i].double(), kl, rtol=1e-3, atol=1e-6)

    assert (loss.kl > 0).all()


def test_kl_is_zero_at_the_start_and_left_out_without_reference(adapted: StableDiffusion) -> None:
    with torch.no_grad():
        assert adapted.step_loss(transitions(), reference=True).kl.tolist() == [0.0] * 4
        train(adapted)
        assert adapted.step_loss(transitions(), reference=False).kl.tolist() == [0.0] * 4


def test_gradients_flow_into_adapters_alone(adapted: StableDiffusion) -> None:
    train(adapted)
    loss = adapted.step_loss(transitions(), reference=True)
    (loss.nll + loss.kl).sum().backward()
    grads = {name: parameter.grad for name, parameter in adapted.trainable().named_parameters()}

    with_grad = {name for name, grad in grads.items() if grad is not None}
    assert with_grad == {name for name in grads if "lora_" in name}
    assert all(grads[name].abs().max() > 0 for name in with_grad)


def test_the_kl_pulls_towards_the_reference(adapted: StableDiffusion) -> None:
    """A small step against its gradient lowers it by what the gradient says."""
    train(adapted)
    before = adapted.step_loss(transitions(), reference=True).kl.sum()
    parameters = [p for p in adapted.trainable().parameters() if p.requires_grad]
    grads = torch.autograd.grad(before, parameters)
    step = 1e-4 / sum(g.square().sum() for g in grads).sqrt()
    with torch.no_grad():
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter -= step * grad
        after = adapted.step_loss(transitions(), reference=True).kl.sum()
    slope = 1e-4 * sum(g.square().sum() for g in grads).sqrt()

    torch.testing.assert_close(before - after, slope, rtol=0.1, atol=0)


def test_one_guided_prediction_of_one_state_counts_one(adapted: StableDiffusion) -> None:
    x = states()
    with torch.no_grad():
        adapted.predict(x, 3, PROMPTS)
        adapted.predict(x, 3, PROMPTS, reference=True)
    assert adapted.cost == Cost(network=3, reference=3)
    adapted.predict(x, 3, PROMPTS)
    adapted.predict(x, 3, PROMPTS, reference=True)
    assert adapted.cost == Cost(network=6, backward=3, reference=6)
    adapted.decode(x, PROMPTS)
    adapted.step_loss(transitions(), reference=True)
    assert adapted.cost == Cost(network=10, backward=7, reference=10)


@pytest.mark.parametrize("set_alpha_to_one", [True, False])
def test_the_last_step_is_deterministic_where_it_reaches_alpha_one(
    pipe: Any, tiny_folder: str, set_alpha_to_one: bool
) -> None:
    diffusion = wrapped(pipe, scheduler(tiny_folder, set_alpha_to_one=set_alpha_to_one), 3.0)
    with torch.no_grad():
        nll = diffusion.step_loss(transitions(), reference=False).nll

    assert diffusion.deterministic(1) == set_alpha_to_one
    assert not any(diffusion.deterministic(t) for t in range(2, T + 1))
    assert (nll[3] == 0) == set_alpha_to_one
    assert (nll[:3] != 0).all()


# ---- options of speed ----


@pytest.fixture
def draft(tmp_path: Path) -> Callable[..., str]:
    """An AutoencoderTiny for the tiny pipeline's latents and images."""

    def make(**options: Any) -> str:
        from diffusers import AutoencoderTiny

        torch.manual_seed(2)
        sizes = {"encoder_block_out_channels": (4,) * 3, "decoder_block_out_channels": (4,) * 3}
        blocks = {"num_encoder_blocks": (1,) * 3, "num_decoder_blocks": (1,) * 3}
        AutoencoderTiny(**{**sizes, **blocks, **options}).save_pretrained(tmp_path / "draft")
        return str(tmp_path / "draft")

    return make


@torch.no_grad()
def test_early_guesses_are_decoded_by_the_draft_vae(tiny_folder: str, draft: Callable[..., str]) -> None:
    parts = Parts.load(tiny_folder, draft_vae=draft())
    diffusion, x = StableDiffusion(parts, steps=T, draft_above=0.5), 3 * states()
    rough = (parts.draft_vae.decode(x).sample / 2 + 0.5).clamp(0, 1)
    images = {t: diffusion.decode(x, PROMPTS, t) for t in (0, 3, 4, T)}

    torch.testing.assert_close(images[4], rough)
    torch.testing.assert_close(images[T], rough)
    torch.testing.assert_close(images[3], images[0])
    assert (images[0] - rough).abs().max() > 0.01


@torch.no_grad()
def test_a_draft_vae_decodes_in_its_own_scale(tiny_folder: str, draft: Callable[..., str]) -> None:
    parts, x = Parts.load(tiny_folder, draft_vae=draft(scaling_factor=0.5)), 3 * states()
    parts.vae.register_to_config(scaling_factor=0.18215)
    rough = (parts.draft_vae.decode(x / 0.5).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(StableDiffusion(parts, steps=T, draft_above=0.5).decode(x, PROMPTS, T), rough)


def test_a_draft_vae_of_other_shapes_is_the_users_mistake(tiny_folder: str, draft: Callable[..., str]) -> None:
    with pytest.raises(UserError, match="has 8 latent channels, 3 colours, 4 times the size; allowed: 4 latent"):
        Parts.load(tiny_folder, draft_vae=draft(latent_channels=8))


def test_channels_last_is_the_same_model(build: Build) -> None:
    x, plain, last = 3 * states(), build(), build(channels_last=True)
    weights = [p for p in last.trainable().parameters() if p.ndim == 4]

    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    torch.testing.assert_close(mean(last), mean(plain), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(last.decode(x, PROMPTS), plain.decode(x, PROMPTS), rtol=1e-4, atol=1e-5)


def test_half_precision_is_close_and_its_laws_are_in_full(build: Build) -> None:
    half, plain = build(autocast="bfloat16"), build()
    with torch.no_grad():
        found = half.predict(states(), 4, PROMPTS).kernel

    assert 1e-6 < float((found.mean - mean(plain)).abs().max()) < 0.05
    assert found.mean.dtype == torch.float32
    assert found.log_prob(found.mean.unsqueeze(1)).dtype == torch.float64


def test_full_weights_are_one_file_whatever_their_size(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers cuts what is larger than a size into shards, and its default is not the policy's to choose."""
    diffusion = build()
    diffusion.train_all_weights()
    network = type(diffusion.trainable())
    save = network.save_pretrained

    def small(self: Any, folder: Any, max_shard_size: Any = "1KB", **options: Any) -> None:
        save(self, folder, max_shard_size=max_shard_size, **options)

    monkeypatch.setattr(network, "save_pretrained", small)
    diffusion.write_policy(tmp_path)
    assert (tmp_path / diffusion.policy_file).is_file()
    assert sorted(path.name for path in (tmp_path / "unet").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
