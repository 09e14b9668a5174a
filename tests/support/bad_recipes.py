"""Wrong recipes and overrides, and the line that each of them gets."""

from __future__ import annotations

from pathlib import Path

from tests.support.bad_input import DIGITS, LONG, Case, override

YAML: dict[str, tuple[str | bytes, str]] = {
    "tab": ("model:\n\tpath: x\n", ":2: not valid YAML: a tab; allowed: blanks"),
    "open": ("model: {path: x\nseed: 1\n", ":2: not valid YAML: did not find expected ',' or '}'"),
    "twice": ("seed: 1\nseed: 2\n", ":2: not valid YAML: found duplicate key seed"),
    "laughs": (
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
        "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\n",
        ":1: not valid YAML: YAML aliases expand the document",
    ),
    "itself": ("a: &a [*a]\n", ":1: not valid YAML: YAML recursive aliases are not supported"),
    "brackets": ("a: " + "[" * 100_000, ": nested too deeply; allowed: at most 32 levels"),
    "braces": ("{a: " * 100_000, ": nested too deeply; allowed: at most 32 levels"),
    "dashes": ("- " * 300_000, ": nested too deeply; allowed: at most 32 levels"),
    "questions": ("? " * 300_000, ": nested too deeply; allowed: at most 32 levels"),
    "digits": (f"seed: {DIGITS}\n", ": holds a value that can't be read: Exceeds the limit (4300 digits)"),
    "nothing": (b"seed: \x00\n", ": not valid YAML: unacceptable character #x0000"),
    "bell": ("seed: 1\x07\n", ": not valid YAML: unacceptable character #x0007"),
    "number": ("3\n", ": must hold `key: value` pairs, this is a value"),
    "truth": ("true\n", ": must hold `key: value` pairs, this is a value"),
    "list": ("- 1\n", ": must hold `key: value` pairs, this is a list"),
    "binary": (bytes(range(256)), ": can't be read as text: invalid start byte"),
    "utf16": ("seed: 1\n".encode("utf-16"), ": can't be read as text: invalid start byte"),
    "documents": ("seed: 1\n---\nseed: 1\n", ":2: not valid YAML: but found another document"),
    "python": (
        "seed: !!python/object/apply:os.mkdir [harm]\n",
        ":1: not valid YAML: could not determine a constructor",
    ),
    "null-key": ("null: 2\n", ": a key is no text"),
    "list-key": ("? [a]\n: 1\n", ":1: not valid YAML: found unhashable key"),
    "reference": ("seed: ${b\n", ": the reference can't be resolved ("),
    "directive": ("%YAML 9.9\n---\nseed: 1\n", ":1: not valid YAML: found incompatible YAML document"),
    "at": ("@x: 1\n", ":1: not valid YAML: found character that cannot start any token"),
}
GOOD = "model: {path: org/name}\nprompts: [cat]\nreward: {kind: brightness}\n"
KEYS = {  # added to a recipe that is right
    "unknown": ("sed: 1\n", "sed: unknown key; did you mean seed?"),
    "number-key": ("1: 2\n", "1: unknown key; known here: seed, "),
    "empty-key": ("'': 1\n", '"": unknown key; known here: seed, '),
    "dotted": ("search.alpha: 1\n", "search.alpha: a key with a dot in it; allowed: search: {alpha: ...}"),
    "circle": ("seed: ${rounds}\nrounds: ${seed}\n", "seed = ${rounds}: the reference can't be resolved (Recursive"),
    "own-circle": ("seed: ${seed}\n", "seed = ${seed}: the reference can't be resolved (Recursive"),
    "no-resolver": ("seed: ${nope:1}\n", "seed = ${nope:1}: the reference can't be resolved (Unsupported"),
    "no-variable": (
        "seed: ${oc.env:DAV_NOPE}\n",
        "seed = ${oc.env:DAV_NOPE}: the environment variable DAV_NOPE is not",
    ),
    "no-name": ("seed: '${oc.env:}'\n", "seed = ${oc.env:}: the reference can't be resolved ("),
    "no-value": ("seed: ???\n", "seed = ???: a value is needed"),
    "not-a-number": ("search: {alpha: .nan}\n", "search.alpha = NaN: out of range; allowed: a number > 0"),
    "infinite": ("search: {alpha: .inf}\n", "search.alpha = Infinity: out of range; allowed: a number > 0"),
    "octal": ("seed: 0o17\n", "seed = 0o17: wrong type; allowed: a whole number >= 0"),
    "date": ("seed: 2020-01-01\n", "seed = 2020-01-01: wrong type; allowed: a whole number"),
    "bytes": ("seed: !!binary aGVsbG8=\n", "seed = \"b'hello'\": wrong type; allowed: a whole number"),
    "secret": ("seed: ${oc.env:DAV_SECRET}\n", "seed = ${oc.env:DAV_SECRET}: wrong type; allowed: a whole number"),
}


def recipe(start: str, name: str) -> Case:
    return Case(("run", f"recipes/{name}.yaml", "--dry-run"), start)


RECIPES = [recipe(f"recipes/{name}.yaml{start}", name) for name, (_, start) in YAML.items()] + [
    *(recipe(start, name) for name, (_, start) in KEYS.items()),
    Case(("run", "."), "recipe .: is a folder; allowed: a YAML file"),
    Case(("run", "nope"), "recipe nope: no such file; shipped recipes: digits, "),
    Case(("run", LONG), "recipe xxxxxxxxxxxxxxxxxxxx"),
    Case(("doctor", "nope.yaml"), "recipe nope.yaml: no such file; shipped recipes: digits, "),
    Case(("run", "/dev/null"), "recipe /dev/null: no such file; shipped recipes: "),
]
OVERRIDES = [
    override("seed = true: wrong type; allowed: a whole number", "seed=true"),
    override("seed=99999999999999999", f"seed={DIGITS}"),
    override("rounds = Infinity: out of range; allowed: a whole number", "rounds=1e400"),
    override("rounds = 10000000: out of range; allowed: a whole number >= 1 and <= 1000000", "rounds=10000000"),
    override("search.alpha = nan: out of range", "search.alpha=nan"),
    override("search.alpha = -inf: out of range", "search.alpha=-inf"),
    override("search.alpha = 0: out of range", "search.alpha=0"),
    override("search.alpha = 0.0: out of range", "search.alpha=1e-400"),
    override("search.gamma = 1.0001: out of range", "search.gamma=1.0001"),
    override("search.candidates = 0: out of range", "search.candidates=0"),
    override("search.candidates = 99999999999999999999: out of range", "search.candidates=99999999999999999999"),
    override("search.trajectories = 1000000000000000: out of range", "search.trajectories=1000000000000000"),
    override("search.steps = 1: out of range", "search.steps=1"),
    override("search.chunk = -3: out of range", "search.chunk=-3"),
    override("search.eta = nan: out of range", "search.eta=nan"),
    override("search.anchor = geometric(1e-9999): unknown anchor", "search.anchor=geometric(1e-9999)"),
    override("search.anchor = []: wrong type", "search.anchor=[]"),
    override("search.kind = DAV: unknown value", "search.kind=DAV"),
    override("search.score_every = 0: out of range; allowed: a whole number >= 1", "search.score_every=0"),
    override(
        "search.score_every = 2: search.kind = svdd has no use for it", "search.score_every=2", "search.kind=svdd"
    ),
    override("search.negligible needs to know how far rewards differ; allowed: 0", "search.negligible=0.1"),
    override(
        "search.anchor = pretrained: steps without a score follow the current model",
        *("search.score_every=2", "search.anchor=pretrained"),
    ),
    override("search.precision = int8: unknown value", "search.precision=int8"),
    override("model.draft_vae = nowhere: is no model's folder: nowhere/config.json is", "model.draft_vae=nowhere"),
    override("model.draft_above = 2: out of range", "model.draft_above=2"),
    override("search = null: wrong type; allowed: keys kind", "search=null"),
    override(
        "search={alpha: 1, alpha: 2}: the value is not valid YAML: found duplicate", "search={alpha: 1, alpha: 2}"
    ),
    override("search.alpha=[1: the value is not valid YAML: did not find", "search.alpha=[1"),
    override("search.alpha=!!python/name:os.system: the value is not valid", "search.alpha=!!python/name:os.system"),
    override("search.alpha=[[[[[[[", f"search.alpha={'[' * 100_000}"),
    override("search.alpha=\\x1b[31m: the value is not valid YAML", "search.alpha=\x1b[31m"),
    override("search.alpha=1 seed: 2: the value is not valid YAML", "search.alpha=1\nseed: 2"),
    override("a: unknown key; known here: seed", "a=b"),
    override("reward[1].kind=brightness: there is no entry 1, only 1", "reward[1].kind=brightness"),
    override("reward[-1]: unknown key", "reward[-1].kind=x"),
    override("prompts[99999999999999999999]=x: there is no entry", "prompts[99999999999999999999]=x"),
    override("prompts.x=1: prompts is a value, it has no keys", "prompts.x=1"),
    override('seed = {"x": 1}: wrong type', "seed.x=1"),
    override("a.a.a.a.a.a", ".".join("a" * 100) + "=1"),
    override("..=1: not an override", "..=1"),
    override('"": not an override', ""),
    override("é: unknown key", "é=1"),
    override("sear\\x00ch: unknown key", "sear\x00ch=1"),
    override("model.path = null: wrong type; allowed: text", "model.path="),
    override("model.path = 123: wrong type; allowed: text", "model.path=123"),
    override("model.path = xxxxxxxxxx", f"model.path={LONG}"),
    override("model.path = /dev/null: is no diffusers pipeline", "model.path=/dev/null"),
    override("model.path = ~nobody-here/x/y: no such folder", "model.path=~nobody-here/x/y"),
    override("model.path = shipped:digits/../digits: no such shipped model", "model.path=shipped:digits/../digits"),
    override("model.variant = ../x: not allowed; allowed: letters", "model.variant=../x"),
    override("model.dtype = int8: unknown value", "model.dtype=int8"),
    override("reward = brightness: wrong type; allowed: a reward", "reward=brightness"),
    override("reward[0] = null: wrong type", "reward=[null]"),
    override("reward.weight = true: wrong type", "reward.weight=true"),
    override("reward.weight = Infinity: out of range", "reward.weight=1e999"),
    override("reward.args = [1]: wrong type", "reward.args=[1]"),
    override('reward.args = {"1": 2}: brightness: got an unexpected', "reward.args={1: 2}"),
    override("reward.tolerance.cpu = nan: out of range", "reward.tolerance={cpu: nan}"),
    override("roles.search.replicas = 0: out of range", "roles.search.replicas=0"),
    override("roles.search.replicas = 10000000000: out of range", "roles.search.replicas=10000000000"),
    override("roles.search.cpus = 1e+300: out of range", "roles.search.cpus=1e300"),
    override("roles.search.cpus = 1e-05: out of range; allowed: 0, or from 0.0001", "roles.search.cpus=0.00001"),
    override("roles.search.gpus = 1.5: a search worker computes on one GPU; allowed: 0 to 1", "roles.search.gpus=1.5"),
    override("roles.search.gpus = 2: a search worker computes on one GPU; allowed: 0 to 1", "roles.search.gpus=2"),
    override("roles.train.gpus = 1.5: out of range; allowed: a part of 1", "roles.train.gpus=1.5"),
    override("roles.search.memory_gb = 1e+30: out of range", "roles.search.memory_gb=1e30"),
    override("roles.search.threads = 100000: out of range", "roles.search.threads=100000"),
    override("roles.search.labels.role = 1: wrong type", "roles.search.labels={role: 1}"),
    override("roles.search.labels = bad key!: is no name of a label", "roles.search.labels={'bad key!': x}"),
    override("roles.search.labels.role = bad value!!: is no value", "roles.search.labels={role: 'bad value!!'}"),
    override("roles.search.labels.role = in(a100: is no value of a label", "roles.search.labels={role: 'in(a100'}"),
    override("roles.search.resources.x = -1: out of range", "roles.search.resources={x: -1}"),
    override("roles.search.resources.CPU: is no custom resource", "roles.search.resources={CPU: 1}"),
    override("roles.search.pip = numpy: wrong type", "roles.search.pip=numpy"),
    override("roles.search.pip = numpy==: is no requirement", "roles.search.pip=['numpy==']"),
    override("roles.search.pip = not a package!: is no requirement", "roles.search.pip=['not a package!']"),
    override("roles.search.python = relative: is relative", "roles.search.python=relative"),
    override('roles.search.container = "": is empty', "roles.search.container=''"),
    override("reward[0].role.labels.a = b c: is no value", "reward.role={labels: {a: b c}}"),
    override("roles.train.replicas = 65: the trainer gets 32", "roles.train.replicas=65"),
    override("evaluate.seed = 999999999999999999999999: out of range", "evaluate.seed=999999999999999999999999"),
    override("evaluate.heldout = x: wrong type", "evaluate.heldout=x"),
    override("evaluate.heldout.kind = nope: unknown reward", "evaluate.heldout=[{kind: nope}]"),
    override('evaluate.features = "": unknown features', "evaluate.features=''"),
    override("track.kinds = wandb: wrong type", "track.kinds=wandb"),
    override("overlap = true: unknown value", "overlap=true"),
    override("mstep.lora.rank = 100000000: out of range", "mstep.lora.rank=100000000"),
    override("mstep.lora.alpha = 0: out of range", "mstep.lora.alpha=0"),
    override("mstep.lora.targets = []: not allowed; allowed: a list of at least one", "mstep.lora.targets=[]"),
    override("mstep.lora.targets = nothing: the unet has no such", "mstep.lora.targets=[nothing]", recipe="digits"),
    override(
        "mstep.lora.targets = img_mlp.net.2.proj: the transformer has no such layer; did you mean img_mlp.net.0",
        "mstep.lora.targets=[img_mlp.net.2.proj]",
        recipe="qwen_image",
    ),
    override(
        "mstep.lora.targets = to_query: the unet has no such layer; allowed: null (to_q,",
        "mstep.lora.targets=[to_query]",
        recipe="sdxl",
    ),
    override(
        "search.guidance_scale = 7: this model takes no guidance; allowed: 0 or 1, which are none",
        "search.guidance_scale=7",
        recipe="flux_schnell",
    ),
    override(
        "model.height = 520: the VAE can't hold it; allowed: a multiple of 16", "model.height=520", recipe="flux_dev"
    ),
    override("model.width = 516: the VAE can't hold it; allowed: a multiple of 8", "model.width=516", recipe="sd15"),
    override("model.width = 18: the VAE can't hold it; allowed: a multiple of", "model.width=18", recipe="digits"),
    override(
        "search.guidance_scale = 4: without model.negative_prompt there is no guidance; allowed: 0 or 1",
        "model.negative_prompt=null",
        recipe="qwen_image",
    ),
    override("search.eta = [0, 0]: a search needs a stochastic sampler", "search.eta=[0, 0]", recipe="sd35_medium"),
    override(
        "model.negative_prompt = blurred: is of no use without guidance",
        "model.negative_prompt=blurred",
        recipe="sdxl_turbo",
    ),
    override("model.revision = 1.5: ", "model={path: org/name, revision: 1.5}"),
    override('mstep.lora.targets = "": the unet has no such', "mstep.lora.targets=['']", recipe="digits"),
    override("search.steps = 1000: out of range; allowed: 2 to 999", "search.steps=1000", recipe="digits"),
]
SECRETS = [
    override("search.alpha = ${oc.env:DAV_SECRET}: wrong type", "search.alpha=${oc.env:DAV_SECRET}"),
    override("model.path = /pre${oc.env:DAV_SECRET}: no such folder", "model.path=/pre${oc.env:DAV_SECRET}"),
    override("prompts = ${oc.env:DAV_SECRET}: no such file", "prompts=${oc.env:DAV_SECRET}"),
    override("reward.golden = ${oc.env:DAV_SECRET}: can't be read", "reward.golden=${oc.env:DAV_SECRET}"),
    override("reward.python = ${oc.env:DAV_SECRET}: is relative", "reward.python=${oc.env:DAV_SECRET}"),
    override("search.anchor = ${oc.env:DAV_SECRET}: unknown anchor", "search.anchor=${oc.env:DAV_SECRET}"),
    override('reward.args = {"token": "${oc.env:DAV_SECRET}"}: bright', "reward.args.token=${oc.env:DAV_SECRET}"),
    override("reward[0].name = ${oc.env:DAV_SECRET}: of the environment", "reward.name=${oc.env:DAV_SECRET}"),
    override("prompts[0] = a ${oc.env:DAV_SECRET}: of the environment", "prompts=['a ${oc.env:DAV_SECRET}']"),
]
CASES = [*RECIPES, *OVERRIDES, *SECRETS]


def write() -> None:
    """The recipes, below the current folder."""
    Path("recipes").mkdir()
    texts = {name: text for name, (text, _) in YAML.items()} | {name: GOOD + text for name, (text, _) in KEYS.items()}
    for name, text in texts.items():
        Path(f"recipes/{name}.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    Path("mine.yaml").write_text(GOOD)
