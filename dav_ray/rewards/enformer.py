"""Activity of a DNA sequence as an Enformer predicts it that gReLU fine-tuned, from gReLU's checkpoint alone.

The checkpoints of the DNA benchmark (DRAKES, arXiv 2410.13643): `reward_oracle_ft.ckpt`, output 0, is what is
optimised; `reward_oracle_eval.ckpt`, output 0, what judges it; of `binary_atac_cell_lines.ckpt` output 1 (HepG2)
with threshold 0.5 is the accuracy of chromatin accessibility. Needs neither gReLU nor its own environment.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dav_ray.rewards.enformer_model import EnformerModel
from dav_ray.rewards.oracle import Oracle, checkpoint, fit, state_dict, weights_file

KINDS = ("EnformerModel", "EnformerPretrainedModel")  # one architecture; the second takes Enformer's own sizes
NOT_OF_INFERENCE = ("model_type", "attn_dropout", "pos_dropout", "ff_dropout", "dtype", "device")
PREFIX = "model."  # what else a checkpoint holds are its loss and its metrics


class Enformer(Oracle):
    """One task's prediction, through the task's own activation as in gReLU: the value itself (trained with mse), a rate
    (poisson) or a probability (binary, multiclass). DNA in the order A, C, G, T."""

    differentiable = True

    def __init__(self, checkpoint: str, output: int | str = 0, threshold: float | None = None) -> None:
        """checkpoint: gReLU's file. output: the task's place or its name in the file.

        FileNotFoundError: no such file. ValueError: one of another model, or a task that it has not.
        """
        module, activation, names = _read(checkpoint)
        super().__init__(module, names, output, threshold, letters=4)
        self.activation = activation

    def predict(self, one_hot: Tensor) -> Tensor:
        return self.activation(self.module(one_hot))


def _read(path: str) -> tuple[EnformerModel, Callable[[Tensor], Tensor], list[str]]:
    """Model, activation and the tasks' names, none if the file does not tell them."""
    file = weights_file("checkpoint", path)
    found = checkpoint(file)
    hyper = found.get("hyper_parameters")
    params = hyper.get("model_params") if isinstance(hyper, dict) else None
    if not isinstance(hyper, dict) or not isinstance(params, dict) or params.get("model_type") not in KINDS:
        kind = params.get("model_type") if isinstance(params, dict) else None
        raise ValueError(f"{file}: model_type {kind}; allowed: a gReLU checkpoint of {' or '.join(KINDS)}")
    sizes = {name: value for name, value in params.items() if name not in NOT_OF_INFERENCE}
    if unknown := sorted(sizes.keys() - inspect.signature(EnformerModel).parameters.keys()):
        raise ValueError(f"{file}: model_params has {', '.join(unknown)}, which is not known here")
    module = EnformerModel(**sizes)
    fit(module, state_dict(found.get("state_dict"), file), str(file), PREFIX)
    names = _names(found.get("data_params") or hyper.get("data_params"))  # gReLU 1.0.2 kept them in the second place
    return module, _activation(hyper.get("train_params") or {}, str(file)), names


def _activation(train_params: dict[str, Any], file: str) -> Callable[[Tensor], Tensor]:
    """What turns the model's output into a prediction; gReLU's defaults are task binary, loss bce."""
    task, loss = str(train_params.get("task", "binary")).lower(), str(train_params.get("loss", "bce")).lower()
    if task == "binary":
        return torch.sigmoid
    if task == "multiclass":
        return _shares
    if task == "regression" and loss in ("poisson", "poisson_multinomial"):
        return torch.exp
    if task == "regression" and loss == "mse":
        return torch.nn.Identity()
    raise ValueError(f"{file}: was trained for task {task}, loss {loss}, which is not known here")


def _shares(x: Tensor) -> Tensor:
    return x.softmax(1)


def _names(data_params: Any) -> list[str]:
    tasks = data_params.get("tasks") if isinstance(data_params, dict) else None
    names = tasks.get("name") if isinstance(tasks, dict) else None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []
