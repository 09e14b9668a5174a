"""What can be known to be wrong before anything heavy is imported: model folder, rewards, run directory."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dav_ray.config import Config, Reward
from dav_ray.errors import UserError
from dav_ray.keys import show
from dav_ray.masked_model import check_weights
from dav_ray.model_folder import model_mistakes, model_path
from dav_ray.recipe import Recipe, differing_keys

CONNECT_TIMEOUT_S = 1.0
INTERPRETER_TIMEOUT_S = 60.0
FEATURES = ("auto", "pixels", "digits")
MEASURES = ("kl", "elbo", "kmer_correlation", "reward")  # metrics of these names are not rewards'


def check(config: Config, address: str = "auto") -> None:
    """Raises UserError with every mistake that the disk and the rewards' own code can tell.

    address: interpreters are looked for on this machine if it is `local`.
    """
    mistakes = [*model_mistakes(config), *_features_mistakes(config)]
    for key, rewards, gradient in (
        ("reward", config.reward, config.search.gradient),
        ("evaluate.heldout", config.evaluate.heldout, False),
    ):
        for i, reward in enumerate(rewards):
            name = key if len(rewards) == 1 else f"{key}[{i}]"
            mistakes += [*_reward_mistakes(name, reward, gradient), *_python_mistakes(name, reward, address)]
            mistakes += [*_file_mistakes(name, reward), *_golden_mistakes(name, reward), *_name_mistakes(name, reward)]
    if mistakes:
        raise UserError(mistakes)
    if config.model.kind == "masked":
        check_weights(config, model_path(config.model.path))


def check_address(address: str, connect: bool = True) -> None:
    """Raises UserError for an address that is none, is a Ray Client's, or (connect) where nothing answers.

    Ray itself waits minutes for a cluster that is not there.
    """
    if address.startswith("ray://"):  # Ray Data can't read through it
        raise UserError(
            f"--address {address}: a run can't go through Ray Client; allowed: auto, local or HOST:PORT, "
            "or submit it: ray job submit --working-dir . -- python jobs/align.py RECIPE.yaml"
        )
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16 or "/" in host:
        raise UserError(f"--address {address}: is no address; allowed: auto, local or HOST:PORT")
    if connect:
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise UserError(
                f"--address {address}: no Ray cluster answers ({error}); allowed: auto, local or HOST:PORT"
            ) from None


def check_run_dir(run_dir: str, recipe: Recipe) -> None:
    """Raises UserError if a run of this recipe can't live in, or be continued from, this directory."""
    if not _is_uri(run_dir):
        _check_local(run_dir)
    stored = read_run_file(run_dir, "config.yaml")
    if stored is not None and (lines := differing_keys(stored, recipe.yaml)):
        raise UserError(
            [
                f"--run-dir {run_dir}: holds a run of other settings; allowed: the same, or a new directory",
                *(f"{run_dir}/config.yaml: {line}" for line in lines),
            ]
        )


def read_run_file(run_dir: str, name: str) -> str | None:
    """A text file of a run directory, None if there is none. Raises UserError for a URI that can't be one."""
    from dav_ray.storage import open_storage

    storage = open_storage(run_dir)
    return storage.read(name).decode() if storage.exists(name) else None


def inside_submitted_job() -> bool:
    """Whether this process is a Ray job's entrypoint: only its supervisor sets this variable."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _is_uri(run_dir: str) -> bool:
    return "://" in run_dir


def _check_local(run_dir: str) -> None:
    path = Path(run_dir).expanduser()
    if inside_submitted_job() and not path.is_absolute():
        raise UserError(
            f"--run-dir {run_dir}: is relative, and a job's working directory is a temporary copy; "
            "allowed: an absolute path that all nodes share, or s3://bucket/prefix"
        )
    nearest = next(place for place in [path.absolute(), *path.absolute().parents] if place.exists())
    if not nearest.is_dir():
        raise UserError(f"--run-dir {run_dir}: {nearest} is a file; allowed: a folder, existing or new")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"--run-dir {run_dir}: {nearest} is not writable; allowed: a folder that you may write to")


def _reward_mistakes(key: str, reward: Reward, gradient: bool) -> Iterator[str]:
    from dav_ray.rewards.registry import BUILTIN

    if ":" in reward.kind and reward.python is not None:
        return  # what it imports may be there alone
    try:
        if ":" in reward.kind:
            signature, differentiable = _facts_of_class(import_class(reward.kind))
        elif reward.kind in BUILTIN:
            signature, differentiable = _facts_of_source(BUILTIN[reward.kind])
        else:
            raise ValueError(f"unknown reward; {_known(reward.kind, BUILTIN)}")
    except ValueError as error:
        yield f"{key}.kind = {reward.kind}: {error}"
        return
    if signature:
        yield from _argument_mistakes(f"{key}.args", reward, signature)
    if gradient and not differentiable:
        rule = "allowed: false, or a reward with `differentiable = True`"
        yield f"search.gradient = true: {reward.label} has no gradient; {rule}"


def _python_mistakes(key: str, reward: Reward, address: str) -> Iterator[str]:
    if reward.python is None:
        return
    python, rule = (
        Path(reward.python).expanduser(),
        "allowed: the absolute path of an interpreter with the same Python and ray",
    )
    if key.startswith("evaluate"):
        yield f"{key}.python = {reward.python}: held-out measures run inside the search workers; allowed: none"
    elif not python.is_absolute():
        yield f"{key}.python = {reward.python}: is relative; {rule}"
    elif address == "local" and (mistake := _interpreter_mistake(str(python))):
        yield f"{key}.python = {reward.python}: {mistake}; {rule}"


def _interpreter_mistake(python: str) -> str | None:
    """What keeps a program of this machine from being a worker of the Ray that is installed here."""
    ask = "import sys, importlib.metadata as m; print('Python %d.%d, ray' % sys.version_info[:2], m.version('ray'))"
    here = f"Python {sys.version_info[0]}.{sys.version_info[1]}, ray {importlib.metadata.version('ray')}"
    try:
        done = subprocess.run([python, "-c", ask], capture_output=True, text=True, timeout=INTERPRETER_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"can't be run ({error})"
    if done.returncode != 0:
        return f"has no ray ({(done.stderr.strip().splitlines() or ['no message'])[-1]})"
    there = done.stdout.strip()
    return None if there == here else f"has {there}; here is {here}"


def _file_mistakes(key: str, reward: Reward) -> Iterator[str]:
    """Files that a built-in reward is to read, where the driver can see none; what one is, as the recipe says."""
    from dav_ray.rewards.registry import FILES

    name = FILES.get(reward.kind)
    value = reward.args.get(name) if name else None
    if reward.python is not None or not isinstance(value, str) or value.startswith("shipped:"):
        return
    file, what = Path(value).expanduser(), reward.origin or "a checkpoint"
    if not file.is_file():
        yield f"{key}.args.{name} = {value}: no such file; allowed: {what}"
    elif file.suffix != ".safetensors" and not zipfile.is_zipfile(file):
        yield f"{key}.args.{name} = {value}: is no checkpoint that torch.save wrote; allowed: {what}"


def _golden_mistakes(key: str, reward: Reward) -> Iterator[str]:
    if reward.golden is None:
        return
    if key.startswith("evaluate"):
        yield f"{key}.golden: held-out measures run inside the search workers; allowed: null"
        return
    from dav_ray.rewards.golden import decode

    rule = "allowed: golden/NAME.npz of a run"
    try:
        decode(Path(reward.golden).expanduser().read_bytes())
    except OSError as error:
        yield f"{key}.golden = {reward.golden}: can't be read ({error.strerror}); {rule}"
    except ValueError as error:
        yield f"{key}.golden = {reward.golden}: holds no golden scores ({error}); {rule}"


def _name_mistakes(key: str, reward: Reward) -> Iterator[str]:
    if key.startswith("evaluate") and reward.role is not None:
        yield f"{key}.role: held-out measures run inside the search workers; allowed: null"
    if key.startswith("evaluate") and reward.label in MEASURES:
        yield f"{key}.name = {reward.label}: is the name of a measure; allowed: another name"


def _features_mistakes(config: Config) -> Iterator[str]:
    features = config.evaluate.features
    known = FEATURES[:1] if config.model.kind == "masked" else FEATURES
    if ":" in features:
        try:
            import_class(features)
        except ValueError as error:
            yield f"evaluate.features = {features}: {error}"
    elif features not in known:
        yield f"evaluate.features = {features}: unknown features; {_known(features, known)}"


def _known(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}allowed: {', '.join(sorted(known))}, or module.path:Name"


def import_class(target: str) -> type:
    """The class behind a user's `module.path:Name`. Raises ValueError saying why there is none."""
    module_name, _, name = target.partition(":")
    if not module_name or not name.isidentifier():
        raise ValueError("allowed: module.path:Name")
    if os.getcwd() not in sys.path:  # the command, unlike `python -m`, does not put the user's folder there
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything, and each is their mistake to see
        raise ValueError(
            f"can't import {module_name} ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from None
    if not hasattr(module, name):
        public = [public for public in vars(module) if not public.startswith("_")]
        close = difflib.get_close_matches(name, public, n=1)
        hint = f"did you mean {close[0]}?" if close else "allowed: module.path:Name"
        raise ValueError(f"{module_name} has no {name}; {hint}")
    found = getattr(module, name)
    if not inspect.isclass(found):
        raise ValueError(f"{name} is no class; allowed: a class whose instances are called with (samples, conditions)")
    return found


def _facts_of_class(found: type) -> tuple[inspect.Signature | None, bool]:
    """Constructor's signature, and whether there are gradients. Raises ValueError if it can't be called."""
    if "__call__" not in dir(found):  # callable() would say that classes are
        raise ValueError(f"{found.__name__} has no __call__; allowed: a class with __call__(self, samples, conditions)")
    try:
        return inspect.signature(found), bool(getattr(found, "differentiable", False))
    except ValueError:  # a class written in C may have no signature
        return None, bool(getattr(found, "differentiable", False))


def _facts_of_source(target: str) -> tuple[inspect.Signature, bool]:
    """The same for a built-in reward, read from its source: importing it may cost torch's seconds."""
    module, _, name = target.partition(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, f"{module} is registered and missing"
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name).body
    init = next((node for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None)
    differentiable = any(ast.unparse(node).replace(": bool", "") == "differentiable = True" for node in body)
    return inspect.Signature(_parameters(init.args) if init else []), differentiable


def _parameters(arguments: ast.arguments) -> list[inspect.Parameter]:
    positional = arguments.args[1:]  # without self
    required = len(positional) - len(arguments.defaults)
    return [
        *(_parameter(a.arg, inspect.Parameter.POSITIONAL_OR_KEYWORD, i >= required) for i, a in enumerate(positional)),
        *(
            _parameter(a.arg, inspect.Parameter.KEYWORD_ONLY, default is not None)
            for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        ),
    ]


def _parameter(name: str, kind: Any, optional: bool) -> inspect.Parameter:
    return inspect.Parameter(name, kind, default=None if optional else inspect.Parameter.empty)


def _argument_mistakes(key: str, reward: Reward, signature: inspect.Signature) -> Iterator[str]:
    open_ended = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [name for name, parameter in signature.parameters.items() if parameter.kind not in open_ended]
    try:
        signature.bind(**reward.args)
    except TypeError as error:
        rule = ", ".join(names) or "no arguments"
        yield f"{key} = {show(reward.args)}: {reward.label}: {error}; allowed: {rule}"
