"""What can be known to be wrong with rewards before Ray starts, and which code of the user's own a run will import."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dav_ray.config.sections.reward import Reward
from dav_ray.redact import PATH, show
from dav_ray.registry import RULE, Unregistered, is_file, load_file, split
from dav_ray.rewards.registry import CODE, FACTORS, FILE, REWARDS, fact
from dav_ray.rewards.samples.columns import columns_of
from dav_ray.rewards.samples.pixels import wants_of

INTERPRETER_TIMEOUT_S = 60.0
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
MEASURES = ("kl", "elbo", "kmer_correlation", "reward")  # metrics of these names are not rewards'
TAKEN = ("infeasible", "mean", "std")  # reward/<name> of the weighted sum
NUMBERS = {2: "two", 3: "three"}
DEEPEST = 8  # products within products


def reward_mistakes(key: str, reward: Reward, gradient: bool, address: str) -> Iterator[str]:
    """key: of this reward in the recipe. address: interpreters are looked for on this machine if it is `local`."""
    yield from _class_mistakes(key, reward, gradient)
    yield from _python_mistakes(key, reward, address)
    yield from _file_mistakes(key, reward)
    yield from _golden_mistakes(key, reward)
    yield from _name_mistakes(key, reward)


def factors(key: str, reward: Reward) -> Iterator[tuple[str, Any]]:
    """(key, entry) of the rewards that one is made of, as a `product` is; what is no list has none."""
    argument = fact(reward.kind, FACTORS)
    held = reward.args.get(argument) if argument else None
    if isinstance(held, list):
        yield from ((f"{key}.args.{argument}[{i}]", entry) for i, entry in enumerate(held))


def as_reward(entry: Any) -> Reward | None:
    """A factor's {kind, args}; None for anything else."""
    if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str) or set(entry) - {"kind", "args"}:
        return None
    args = entry.get("args") or {}
    return Reward(kind=entry["kind"], args=args) if isinstance(args, dict) else None


A_REWARD = "a class whose instances are called with (samples, conditions), or a function of them"


def import_own(target: str, what: str = A_REWARD) -> Any:
    """The class or function behind a user's `module.path:Name` or `file.py:Name`. ValueError: why there is none, and
    `what` is allowed."""
    module_name, name = split(target)
    if not (is_file(target) or all(part.isidentifier() for part in module_name.split("."))) or not name.isidentifier():
        raise ValueError(f"allowed: {RULE}")
    if is_file(target):
        _check_file(module_name)
    if os.getcwd() not in sys.path:  # the command, unlike `python -m`, does not put the user's folder there
        sys.path.append(os.getcwd())
    try:
        module = load_file(module_name) if is_file(target) else importlib.import_module(module_name)
        public = [public for public in vars(module) if not public.startswith("_")]
        found = getattr(module, name) if hasattr(module, name) else None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's module may raise anything, SystemExit too, and each is theirs to see
        raise ValueError(
            f"can't import {module_name} ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from None
    if found is None:
        close = difflib.get_close_matches(name, public, n=1)
        hint = f"did you mean {close[0]}?" if close else f"allowed: {RULE}"
        raise ValueError(f"{module_name} has no {name}; {hint}")
    if not callable(found):
        raise ValueError(f"{name} is no class and no function; allowed: {what}")
    return found


def _check_file(place: str) -> None:
    from dav_ray.config.checks.submitted import inside_submitted_job

    if not os.path.isfile(place):
        raise ValueError(f"no such file; allowed: {RULE}")
    if inside_submitted_job() and Path(os.getcwd()) in Path(place).parents:
        raise ValueError(
            "lies in a job's working directory, which is a temporary copy; allowed: module.path:Name, which is found "
            "there, or an absolute path that all nodes share"
        )


def _class_mistakes(key: str, reward: Reward, gradient: bool, depth: int = 0) -> Iterator[str]:
    if ":" in reward.kind and reward.python is not None:
        return  # what it imports may be there alone
    try:
        target = REWARDS.target(reward.kind)
        shipped = reward.kind in REWARDS.builtin
        signature, differentiable = _facts_of_source(target) if shipped else _facts(import_own(target))
    except (ValueError, Unregistered) as error:
        yield f"{key}.kind = {show(reward.kind, PATH)}: {error}"
        return
    if signature:
        yield from _argument_mistakes(f"{key}.args", reward, signature)
    if gradient and not differentiable:
        rule = "allowed: false, or a reward with `differentiable = True`"
        yield f"search.gradient = true: {reward.label} has no gradient; {rule}"
    argument = fact(reward.kind, CODE)
    if argument and isinstance(module := reward.args.get(argument), str):
        yield from _module_mistakes(f"{key}.args.{argument}", module)
    for name, entry in factors(key, reward):
        factor = as_reward(entry)
        if factor is None:
            yield f"{name} = {show(entry)}: is no reward; allowed: {{kind, args}}"
        elif depth == DEEPEST:
            yield f"{name}: products within products; allowed: at most {DEEPEST}"
        else:
            yield from _class_mistakes(name, _in_its_place(factor, reward), gradient, depth + 1)


def _in_its_place(factor: Reward, whole: Reward) -> Reward:
    """A factor lives where the product does."""
    return factor.model_copy(update={"python": whole.python})


def _module_mistakes(key: str, model: str) -> Iterator[str]:
    try:
        import_own(model)
    except ValueError as error:
        yield f"{key} = {show(model, PATH)}: {str(error).replace('(samples, conditions)', 'tensors')}"


def _python_mistakes(key: str, reward: Reward, address: str) -> Iterator[str]:
    if reward.python is None:
        return
    python = os.path.expanduser(reward.python)
    rule = "allowed: the absolute path of an interpreter with the same Python and ray"
    if key.startswith("evaluate"):
        yield f"{key}.python = {reward.python}: held-out measures run inside the search workers; allowed: none"
    elif reward.where == "search":
        yield f"{key}.python = {show(reward.python, PATH)}: it runs in the search workers ({key}.where); allowed: none"
    elif not os.path.isabs(python):
        yield f"{key}.python = {show(reward.python, PATH)}: is relative; {rule}"
    elif address == "local" and (mistake := _interpreter_mistake(python)):
        yield f"{key}.python = {show(reward.python, PATH)}: {mistake}; {rule}"


def _interpreter_mistake(python: str) -> str | None:
    """What keeps a program of this machine from being a worker of the Ray that is installed here."""
    ask = "import sys, importlib.metadata as m; print('Python %d.%d, ray' % sys.version_info[:2], m.version('ray'))"
    here = f"Python {sys.version_info[0]}.{sys.version_info[1]}, ray {importlib.metadata.version('ray')}"
    try:
        done = subprocess.run(
            [python, "-c", ask], capture_output=True, text=True, errors="replace", timeout=INTERPRETER_TIMEOUT_S
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return f"can't be run ({error})"
    if done.returncode != 0:
        return f"has no ray ({(done.stderr.strip().splitlines() or ['no message'])[-1]})"
    there = done.stdout.strip()
    return None if there == here else f"has {show(there)}; here is {here}"


def _file_mistakes(key: str, reward: Reward, depth: int = 0) -> Iterator[str]:
    """Files that a built-in reward is to read, where the driver can see none; what one is, as the recipe says."""
    for name, entry in factors(key, reward):
        if (factor := as_reward(entry)) and depth < DEEPEST:
            yield from _file_mistakes(name, _in_its_place(factor, reward), depth + 1)
    argument = fact(reward.kind, FILE)
    value = reward.args.get(argument) if argument else None
    if reward.python is not None or not isinstance(value, str) or value.startswith("shipped:"):
        return
    file, what = Path(os.path.expanduser(value)), reward.origin or "a checkpoint"
    if not os.path.isfile(file):
        yield f"{key}.args.{argument} = {show(value, PATH)}: no such file; allowed: {what}"
    elif file.suffix != ".safetensors" and not zipfile.is_zipfile(file):
        yield f"{key}.args.{argument} = {show(value, PATH)}: is no checkpoint that torch.save wrote; allowed: {what}"


def _golden_mistakes(key: str, reward: Reward) -> Iterator[str]:
    if reward.golden is None:
        return
    if key.startswith("evaluate"):
        yield f"{key}.golden: held-out measures run inside the search workers; allowed: null"
        return
    from dav_ray.rewards.golden import decode

    rule, start = "allowed: golden/NAME.npz of a run", f"{key}.golden = {show(reward.golden, PATH)}: "
    file = Path(os.path.expanduser(reward.golden))
    try:
        decode(file.read_bytes() if os.path.isfile(file) or not os.path.exists(file) else b"")
    except OSError as error:
        yield f"{start}can't be read ({error.strerror}); {rule}"
    except ValueError as error:
        yield f"{start}holds no golden scores ({error}); {rule}"


def _name_mistakes(key: str, reward: Reward) -> Iterator[str]:
    if (
        reward.where == "search"
        and reward.role is not None
        and (reward.role.python or reward.role.pip or reward.role.container)
    ):
        yield f"{key}.role: an environment of its own, and {key}.where = search; allowed: one of them"
    if key.startswith("evaluate") and reward.role is not None:
        yield f"{key}.role: held-out measures run inside the search workers; allowed: null"
    if key.startswith("reward[") and reward.label in TAKEN:
        yield f"{key}.name = {reward.label}: is the name of a metric; allowed: another name"
    if key.startswith("evaluate") and reward.label in MEASURES:
        yield f"{key}.name = {reward.label}: is the name of a measure; allowed: another name"


def _facts(found: Any) -> tuple[inspect.Signature | None, bool]:
    """Signature of what takes the arguments (a class's constructor; a function after its two first), and whether there
    are gradients. Raises ValueError if its objects can't be called, or it can't with samples and conditions, or wants
    what there is not."""
    differentiable = bool(getattr(found, "differentiable", False))
    wants_of(found)
    columns_of(found)
    if not inspect.isclass(found):
        return _without_batch(found, 3 if columns_of(found) else 2), differentiable
    if "__call__" not in dir(found):  # callable() would say that classes are
        raise ValueError(f"{found.__name__} has no __call__; allowed: a class with __call__(self, samples, conditions)")
    try:
        return inspect.signature(found), differentiable
    except (TypeError, ValueError):  # a class written in C may have no signature
        return None, differentiable


def _without_batch(function: Any, num: int) -> inspect.Signature | None:
    """The signature of a function without samples, conditions and, as the third, columns; None where there is none to
    be seen."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # one written in C
        return None
    for _ in range(num):
        positional = bool(parameters) and parameters[0].kind in _POSITIONAL
        if not positional and not (parameters and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL):
            name = getattr(function, "__name__", "it")
            what = "(samples, conditions, columns)" if num == 3 else "(samples, conditions)"
            raise ValueError(f"{name} can't be called with {what}; allowed: a function of these {NUMBERS[num]}")
        parameters = parameters[1:] if positional else parameters
    by_name = [inspect.Parameter.KEYWORD_ONLY if p.kind in _POSITIONAL else p.kind for p in parameters]
    return inspect.Signature([p.replace(kind=kind) for p, kind in zip(parameters, by_name, strict=True)])


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
