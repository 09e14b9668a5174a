"""Masked discrete diffusion (MDLM, arXiv 2406.07524) as a `Diffusion`: any alphabet, infilling, classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dav_ray.diffusion.base import Prediction, Room
from dav_ray.diffusion.masked import files
from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.diffusion.masked.condition import Condition
from dav_ray.diffusion.masked.elbo import antithetic_times, nelbo
from dav_ray.diffusion.masked.kernel import (
    MaskedKernel,
    MaskedSchedule,
    completed,
    completed_relaxed,
    sigma_at,
    substitute,
)
from dav_ray.diffusion.noise import Draws, PipelineNoise
from dav_ray.diffusion.policy_network import PolicyNetwork


class MaskedDiffusion(PolicyNetwork):
    """States are tokens [B, L] int64, the mask being V.

    backbone(x, sigma, label) -> logits [B, L, V+1]. Without `time_conditioned` it is fed sigma = 0, in sampling and
    training alike, and what it says is a function of x alone.
    """

    fixed = files.FIXED

    def __init__(
        self,
        backbone: nn.Module,
        *,
        alphabet: Alphabet,
        length: int,
        classes: int = 0,
        time_conditioned: bool = False,
        steps: int = 128,
        guidance_scale: float = 1.0,
        micro_batch: int = 128,
        device: str | torch.device = "cpu",
        autocast: str = "float32",
    ) -> None:
        super().__init__(backbone.requires_grad_(False).eval().to(device), device=device, autocast=autocast)
        self.steps, self.alphabet, self.length, self.classes = steps, alphabet, length, classes
        self.timeless = not time_conditioned
        self.schedule = MaskedSchedule(steps)
        self._guidance, self.rooms = guidance_scale, (Room(micro_batch),)
        self._conditions: dict[str, Condition] = {}

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        weights: Literal["raw", "ema"] = "ema",
        *,
        alphabet: str | None = None,
        length: int | None = None,
        **options: Any,
    ) -> MaskedDiffusion:
        """A folder with `config.json` and `model.safetensors`, or a Lightning checkpoint of the DNA benchmark.

        weights: which of a checkpoint's; alphabet: default the folder's own, dna for a checkpoint; length: default the
        one it was trained for (200 where it does not say).
        Sizes are those of the tensors. UserError: one line per tensor or size that does not fit.
        """
        found = files.read(path, weights, Alphabet.of(alphabet) if alphabet else None, length)
        backbone = files.build_backbone(found)
        return cls(
            backbone,
            alphabet=found.alphabet,
            length=found.length,
            classes=found.classes,
            time_conditioned=found.time_conditioned,
            **options,
        )

    # -- the policy -----------------------------------------------------------------------------------------------

    @property
    def policy_file(self) -> str:
        return files.ADAPTERS if self.adapted else files.MODEL

    def write_policy(self, folder: Path) -> None:
        """The whole model, adapters merged, as `from_checkpoint` reads it; beside it the adapters by themselves."""
        settings = files.Settings(self.alphabet, self.length, self.classes, not self.timeless)
        files.write(folder, self._network, settings, adapted=self.adapted)

    # -- sampling -------------------------------------------------------------------------------------------------

    def log_probs(self, x: Tensor, classes: Tensor | None = None, time: Tensor | None = None) -> Tensor:
        """x [B, L] tokens -> log p(x_0 | x) [B, L, V+1]: mask column -1e6, unmasked positions one-hot.

        classes [B] int64 for a class-conditional model; time [B] in [0, 1] for a time-conditioned one. No guidance.
        """
        if not self.timeless and time is None:
            raise ValueError("this model is conditioned on the time; allowed: time [B] in [0, 1]")
        sigma = torch.zeros(len(x)) if self.timeless or time is None else sigma_at(time)
        x = x.to(self._device).long()
        if self.classes and classes is None:
            classes = torch.full((len(x),), self.classes, device=self._device)  # the index that stands for none
        label = None if classes is None else classes.to(self._device)
        logits = self._call(self._policy, x, sigma.float().to(self._device), label)
        return substitute(logits, x)

    def prior(self, conditions: Sequence[str], rng: Draws) -> Tensor:
        """All masked, but for the fixed positions."""
        x = torch.full((len(conditions), self.length), self.alphabet.mask)
        for row, condition in enumerate(conditions):
            for position, token in self._condition(condition).fixed:
                x[row, position] = token
        return x.to(self._device)

    def deterministic(self, t: int) -> bool:
        return False

    def renoise(self, x: Tensor, start: int, end: int, conditions: Sequence[str], rng: Draws) -> Tensor:
        """Fixed positions keep their letters."""
        fixed = self.prior(conditions, rng)
        return torch.where(
            fixed == self.alphabet.mask, self.schedule.renoise(x, self.alphabet.mask, start, end, rng), fixed
        )

    def relax(self, x_t: Tensor) -> Tensor:
        """[B, L] -> one-hot [B, L, V+1] float32, in which predictions are differentiable."""
        return nn.functional.one_hot(x_t.long(), self.alphabet.mask + 1).float()

    def harden(self, x0_hat: Tensor) -> Tensor:
        """[B, L, V] one-hot -> tokens [B, L]."""
        return x0_hat.argmax(-1)

    def predict(
        self, x_t: Tensor, t: int | Tensor, conditions: Sequence[str], *, reference: bool = False
    ) -> Prediction:
        """x_t [B, L] tokens, or their relaxation [B, L, V+1]. x0_hat: masks replaced by the most likely letters, [B, L]
        tokens; of a relaxed state [B, L, V] one-hot, with the gradient of the probabilities (straight-through)."""
        relaxed = x_t.ndim == 3
        x_t = x_t.to(self._device) if relaxed else x_t.to(self._device).long()
        x = x_t.argmax(-1) if relaxed else x_t
        steps = t if isinstance(t, Tensor) else torch.full((len(x),), t)
        log_p = self._evaluate(x_t, x, self.schedule.sigma[steps], conditions, reference)
        kernel = MaskedKernel(x, log_p, self.schedule.unmask[steps].to(self._device))
        return Prediction(kernel, completed_relaxed(x_t, log_p) if relaxed else completed(x, log_p))

    def move(self, prediction: Prediction, t: int) -> Prediction:
        """The same network output as the prediction of the same states at step t; for timeless models only."""
        kernel = prediction.kernel
        assert self.timeless and isinstance(kernel, MaskedKernel)
        unmask = self.schedule.unmask[t].expand(len(kernel.x)).to(self._device)
        return Prediction(MaskedKernel(kernel.x, kernel.log_p, unmask), prediction.x0_hat)

    @torch.no_grad()
    def _clean_up(self, x_0: Tensor, conditions: Sequence[str]) -> Tensor:
        """Masks that the last step left are replaced by the most likely letters; one evaluation where there are any."""
        left = (x_0 == self.alphabet.mask).any(1).nonzero().squeeze(1)
        if len(left):
            chosen = [conditions[int(i)] for i in left]
            x_0 = x_0.index_copy(0, left, self.predict(x_0[left], 0, chosen).x0_hat)
        return x_0

    def decode(self, x_0: Tensor, conditions: Sequence[str], t: int = 0) -> Tensor:
        """Tokens [B, L] int64 without masks; a relaxed x_0 [B, L, V] as it is."""
        return x_0 if x_0.ndim == 3 else self._clean_up(x_0.to(self._device).long(), conditions)

    def sample(self, num: int, *, seed: int = 0, conditions: Sequence[str] = ("",), batch: int = 256) -> list[str]:
        """`num` sequences by T ancestral steps; sample i has condition i (in turn) and the noise of seed + i."""
        from dav_ray.diffusion.sampling import ancestral

        if isinstance(conditions, str) or not conditions:
            raise ValueError(f"conditions = {conditions!r}; allowed: a list of at least one text")
        texts: list[str] = []
        for start in range(0, num, batch):
            numbers = range(start, min(start + batch, num))
            chosen = [conditions[i % len(conditions)] for i in numbers]
            x_0 = ancestral(self, chosen, PipelineNoise([seed + i for i in numbers]))[-1]
            texts += self.alphabet.decode(self.decode(x_0, chosen).cpu().numpy())
        return texts

    # -- likelihoods ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def elbo(self, tokens: Tensor, conditions: Sequence[str], rng: Draws, draws: int) -> Tensor:
        """Lower bound on log p(tokens | condition) under the pretrained model, estimated at `draws` stratified times:
        nats per sequence, [B] float64. tokens [B, L]; fixed positions are given, not scored."""
        tokens = tokens.to(self._device).long()
        times = antithetic_times(rng.uniform(()), draws)
        free = self.prior(conditions, rng) == self.alphabet.mask
        total = torch.zeros(len(tokens), dtype=torch.float64, device=self._device)
        for k in range(draws):
            u = rng.uniform((self.length,))

            def log_probs(x: Tensor, time: Tensor) -> Tensor:
                return self._evaluate(x, x, sigma_at(time), conditions, True)

            total -= nelbo(log_probs, tokens, times[:, k], u, self.alphabet.mask, ~free).double() / draws
        return total.cpu()

    # -- the network ----------------------------------------------------------------------------------------------

    def _evaluate(self, x_t: Tensor, x: Tensor, sigma: Tensor, conditions: Sequence[str], reference: bool) -> Tensor:
        """log p(x_0 | x) [B, L, V+1], counted, micro-batch by micro-batch. x_t: the tokens x [B, L], or relaxed."""
        return self._evaluated(
            len(x),
            self.rooms[0],
            lambda network, rows: self._guided(network, x_t[rows], x[rows], sigma[rows], conditions[rows]),
            reference=reference,
        )

    def _guided(self, network: Any, x_t: Tensor, x: Tensor, sigma: Tensor, conditions: Sequence[str]) -> Tensor:
        """log p(x_0 | x) [B, L, V+1] under guidance: log p is proportional to s log p(. | c) + (1 - s) log p(.)."""
        sigma = (torch.zeros_like(sigma) if self.timeless else sigma).float().to(self._device)
        if not self.classes:
            return substitute(self._call(network, x_t, sigma, None), x)
        parsed = [self._condition(c).label for c in conditions]
        label = torch.tensor([self.classes if c is None else c for c in parsed], device=self._device)
        logits = self._call(network, x_t, sigma, label)
        if self._guidance != 1 and any(c is not None for c in parsed):
            free = torch.log_softmax(self._call(network, x_t, sigma, torch.full_like(label, self.classes)), -1)
            guided = self._guidance * torch.log_softmax(logits, -1) + (1 - self._guidance) * free
            # rows without a class as they are, whatever their neighbours have
            logits = torch.where((label == self.classes).reshape(-1, 1, 1), logits, guided)
        return substitute(logits, x)

    def _call(self, network: Any, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        if self._autocast == torch.float32:
            return network(x, sigma, label)
        with self._precision():
            return network(x, sigma, label).float()

    def _condition(self, text: str) -> Condition:
        if text not in self._conditions:
            self._conditions[text] = Condition.parse(text, self.alphabet, self.length, self.classes)
        return self._conditions[text]
