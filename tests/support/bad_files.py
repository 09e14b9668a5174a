"""Wrong files, folders, rewards, run directories and arguments, and the line that each of them gets."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

from tests.support.bad_input import LONG, Case, dna, override

MASKED = {"alphabet": "ACGT", "length": 12, "classes": 0, "time_conditioning": False}
MANIFEST: dict[str, Any] = {
    **{"epoch": 1, "round": 2, "phase": "search", "policy_version": 1, "closed": 1, "shards": []},
    **{"versions": {"ray": "2"}, "config_sha256": "0" * 64},
}
SHARD = {"path": "../../etc/passwd", "sha256": "0", "chunk": 0, "rows": 1, "policy_version": 0}


class Evil:
    """Unpickled, it makes a folder."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("harm",)


def header(entries: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(shape: list[int], end: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [0, end]}


LAYERS = header({f"mid.{name}.weight": tensor([0], 0) for name in ("to_q", "to_k", "to_v", "to_out.0")})
WEIGHTS = {
    "empty": b"",
    "short": b"\x08\x00",
    "length": header({}, length=2**63),
    "cut": header({"a": tensor([4], 16)}, b"1234"),
    "json": header(b"{"),
    "list": header([1]),
    "deep": header(b"[" * 100_000),
    "shape": header({"a": tensor([10**12], 4)}, b"1234"),
    "negative": header({"a": tensor([-1], 4)}, b"1234"),
    "text": header({"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}, b"1234"),
}
PIPELINES: dict[str, tuple[str, Any, str]] = {  # file, what is in it, line
    "no-index": ("model_index.json", None, "is no diffusers pipeline: no-index/model_index.json is missing"),
    "cut-index": ("model_index.json", b"{", "is no diffusers pipeline: cut-index/model_index.json is no JSON"),
    "list-index": ("model_index.json", [1], "is no diffusers pipeline: list-index/model_index.json is no JSON object"),
    "deep-index": (
        "model_index.json",
        b"[" * 100_000,
        "is no diffusers pipeline: deep-index/model_index.json is neste",
    ),
    "code": ("model_index.json", {"unet": ["evil", "UNet"]}, "its unet is evil.UNet; allowed: a class of diffusers"),
    "auto": (
        "model_index.json",
        {"text_encoder": ["transformers", "AutoModel"]},
        "its text_encoder is transformers.Au",
    ),
    "os": ("model_index.json", {"vae": ["os", "system"]}, "its vae is os.system; allowed: a class of diffusers or tra"),
    "no-unet": ("model_index.json", {"unet": [None, None]}, "StableDiffusionPipeline has no unet; allowed: a Stable"),
    "nine": ("unet/config.json", {"in_channels": 9}, "the unet takes 9 channels, the vae has 4; allowed"),
    "cut-unet": ("unet/config.json", b"\xff\xfe", "unet/config.json is no JSON"),
    "flow": ("scheduler/scheduler_config.json", {"_class_name": ["x"]}, "can't be searched: no stochastic DDIM step"),
    "steps": (
        "scheduler/scheduler_config.json",
        {"num_train_timesteps": "x"},
        "can't be searched: num_train_timesteps x",
    ),
    "pickle": ("unet/model.safetensors", None, "the folder unet has no safetensors weights"),
    **{f"unet-{name}": ("unet/model.safetensors", data, "unet/model.safetensors ") for name, data in WEIGHTS.items()},
}
FOLDERS: dict[str, tuple[Any, bytes | None, str]] = {  # config.json, weights, line
    "m-none": (None, b"", "is no masked model: config.json is missing"),
    "m-cut": (b"{", b"", "is no masked model: config.json is no JSON"),
    "m-list": ([1], b"", "is no masked model: config.json is no JSON object"),
    "m-deep": (b"[" * 100_000, b"", "is no masked model: config.json is nested too deeply"),
    "m-key": ({**MASKED, "length": "x"}, b"", "is no masked model: config.json has no length (int)"),
    "m-true": ({**MASKED, "classes": True}, b"", "is no masked model: config.json has no classes (int)"),
    "m-huge": (
        {**MASKED, "classes": 10**12},
        b"",
        "is no masked model: config.json says length 12, classes 1000000000",
    ),
    "m-zero": ({**MASKED, "length": 0}, b"", "is no masked model: config.json says length 0"),
    "m-back": ({**MASKED, "backbone": []}, b"", "is no masked model: config.json says backbone []"),
    "m-weights": (MASKED, None, "is no masked model: model.safetensors is missing"),
    **{f"m-{name}": (MASKED, data, "is no masked model: model.safetensors ") for name, data in WEIGHTS.items()},
}
MODELS = [
    *(
        override(f"model.path = models/{name}: {line}", f"model.path=./models/{name}")
        for name, (*_, line) in PIPELINES.items()
    ),
    *(
        dna(f"model.path = models/{name}: {line}", f"model.path=./models/{name}")
        for name, (*_, line) in FOLDERS.items()
    ),
    dna("model.path = text.ckpt: is no checkpoint that torch.save", "model.path=text.ckpt"),
    dna("model.path = legacy.ckpt: is no checkpoint that torch.save", "model.path=legacy.ckpt"),
    dna("evil.ckpt: can't be read as a checkpoint", "model.path=evil.ckpt", heavy=True),
    dna("slip.ckpt: can't be read as a checkpoint", "model.path=slip.ckpt", heavy=True),
    dna("list.ckpt: holds list, a dictionary is needed", "model.path=list.ckpt", heavy=True),
    dna("bare.ckpt: has no state_dict", "model.path=bare.ckpt", heavy=True),
    dna("models/m-none-of-it: has no linear.weight", "model.path=./models/m-none-of-it", heavy=True),
]
MASKED_CASES = [
    dna("model.alphabet = AA: 2 to 254 different letters", "model.alphabet=AA"),
    dna("model.alphabet = protein: the model's is ACGT", "model.alphabet=protein"),
    dna("model.length = 0: out of range", "model.length=0"),
    dna("model.length = 100000000000: out of range", "model.length=100000000000"),
    dna(
        "mstep.lora.targets = nothing: not in a masked model; allowed: null (convs, final_conv), or",
        "mstep.lora.targets=[nothing]",
    ),
    dna("prompts[0] = class=1: class=1: the model has no classes", "prompts=['class=1']"),
    dna("prompts[0] = fixed=0:A,0:T: fixed=0:T: position 0 is fixed", "prompts=['fixed=0:A,0:T']"),
    dna("prompts[0] = fixed=-1:A: fixed=-1:A: is no START:LETTERS", "prompts=['fixed=-1:A']"),
    dna("prompts[0] = fixed=٣:A: fixed=٣:A: is no START:LETTERS", "prompts=['fixed=٣:A']"),
    dna("prompts[0] = fixed=9999999999999999999999", f"prompts=['fixed={'9' * 5000}:A']"),
    dna("prompts[0] = fixed=149:AC: fixed=149:AC: ends at position 150", "prompts=['fixed=149:AC']"),
    dna("prompts[0] = fixed=0:AX: fixed=0:AX: letter 2: 'X'", "prompts=['fixed=0:AX']"),
    dna("prompts[1] = a cat: 'a' is no condition", "prompts=['', a cat]"),
    dna("evaluate.reference: nope.fa: no such file", "evaluate.reference=nope.fa"),
    dna("evaluate.reference: /dev/zero: no such file", "evaluate.reference=/dev/zero"),
    dna("evaluate.reference: data/empty.fa: holds no sequences", "evaluate.reference=data/empty.fa"),
    dna("evaluate.reference: data/headless.fa:1: a FASTA file starts with", "evaluate.reference=data/headless.fa"),
    dna("evaluate.reference: data/binary.fa: is no text", "evaluate.reference=data/binary.fa"),
    dna("evaluate.reference: data/letters.fa:3: letter 2: 'N'", "evaluate.reference=data/letters.fa"),
    dna("evaluate.reference: data/lengths.csv:3: 3 letters, the first", "evaluate.reference=data/lengths.csv"),
    dna("evaluate.reference: data/column.csv: has no column sequence", "evaluate.reference=data/column.csv"),
    dna("evaluate.reference: data/quote.csv: ", "evaluate.reference=data/quote.csv"),
    dna("evaluate.reference: data/text.parquet: can't be read as Parquet", "evaluate.reference=data/text.parquet"),
    dna("evaluate.reference: mine.yaml: unknown kind", "evaluate.reference=mine.yaml"),
]
DATA = {
    **{"empty.fa": "", "headless.fa": "ACGT\n", "binary.fa": b"\xff\xfe>", "letters.fa": ">a\nACGT\nANGT\n"},
    **{
        "lengths.csv": "sequence\nACGT\nACG\n",
        "column.csv": "a,b\n1,2\n",
        "quote.csv": f'sequence\n"{"A" * 200_000}\n',
    },
    **{"text.parquet": "no parquet", "empty.txt": "\n \n", "binary.txt": bytes(range(256)), "many.txt": "p\n" * 50_001},
}
PROMPTS = [
    override("prompts = data/empty.txt: the file is empty", "prompts=data/empty.txt"),
    override("prompts = data/binary.txt: can't be read as text", "prompts=data/binary.txt"),
    override("prompts = data/many.txt: 50,001 prompts; allowed: at most 50,000", "prompts=data/many.txt"),
    override("prompts = data/huge.txt: 100,000,000 bytes; allowed: at most", "prompts=data/huge.txt"),
    override("prompts = data: text.parquet can't be read: ", "prompts=data"),
    override("prompts = /dev/zero: no such file", "prompts=/dev/zero"),
    override("prompts = data/pipe.txt: no such file", "prompts=data/pipe.txt"),
    override("prompts = xxxxxxxx", f"prompts={LONG}"),
]
REWARDS_FILE = """
class Good:
    def __init__(self, scale=1.0): ...
    def __call__(self, samples, conditions): ...
class Silent: ...
def function(samples, conditions): ...
"""
MODULES = {
    "rewards_good": REWARDS_FILE,
    "rewards_exit": "import sys\nsys.exit(0)\n",
    "rewards_raise": "1 / 0\n",
    "rewards_lines": "raise ValueError('one\\ntwo\\x1b[31m')\n",
    "rewards_syntax": "def f(:\n",
    "rewards_null": "a = 1\x00\n",
    "rewards_getattr": "def __getattr__(name):\n    raise RuntimeError(name)\n",
}


def reward(kind: str, start: str, args: str = "{}") -> Case:
    return override(start, f"reward={{kind: '{kind}', args: {args}}}")


PRODUCT = "reward={{kind: product, args: {{rewards: {}}}}}"
REWARDS = [
    reward("brightnes", "reward.kind = brightnes: unknown reward; did you mean brightness?"),
    reward("nowhere:Good", "reward.kind = nowhere:Good: can't import nowhere (ModuleNotFoundError"),
    reward("rewards_exit:Good", "reward.kind = rewards_exit:Good: can't import rewards_exit (SystemExit: 0)"),
    reward("rewards_raise:Good", "reward.kind = rewards_raise:Good: can't import rewards_raise (ZeroDivisionError"),
    reward(
        "rewards_lines:Good", "reward.kind = rewards_lines:Good: can't import rewards_lines (ValueError: one two\\x1b"
    ),
    reward("rewards_syntax:Good", "reward.kind = rewards_syntax:Good: can't import rewards_syntax (SyntaxError"),
    reward("rewards_null:Good", "reward.kind = rewards_null:Good: can't import rewards_null (SyntaxError"),
    reward("rewards_getattr:Good", "reward.kind = rewards_getattr:Good: can't import rewards_getattr (RuntimeError"),
    reward("rewards_good:Goood", "reward.kind = rewards_good:Goood: rewards_good has no Goood; did you mean Good?"),
    reward("rewards_good:Silent", "reward.kind = rewards_good:Silent: Silent has no __call__"),
    reward("rewards_good:Good", 'reward.args = {"size": 1}: Good: got an unexpected keyword', "{size: 1}"),
    reward("..os:system", "reward.kind = ..os:system: allowed: module.path:Name"),
    reward("a b:C", "reward.kind = a b:C: allowed: module.path:Name"),
    reward("os:path.join", "reward.kind = os:path.join: allowed: module.path:Name"),
    reward(":x", "reward.kind = :x: allowed: module.path:Name"),
    reward("subprocess:Popen", "reward.kind = subprocess:Popen: Popen has no __call__", "{args: [mkdir, harm]}"),
    reward("enformer", "reward.args.checkpoint = nope.ckpt: no such file", "{checkpoint: nope.ckpt}"),
    reward("enformer", "reward.args.checkpoint = text.ckpt: is no checkpoint", "{checkpoint: text.ckpt}"),
    reward(
        "torch_oracle",
        "reward.args.model = nowhere:M: can't import nowhere",
        "{model: 'nowhere:M', weights: text.ckpt}",
    ),
    override(
        "reward.args.rewards[1].kind = nope: unknown reward", PRODUCT.format("[{kind: brightness}, {kind: nope}]")
    ),
    override("reward.args.rewards[0] = 3: is no reward; allowed: {kind, args}", PRODUCT.format("[3]")),
    override("reward.args.rewards[0].args = ", PRODUCT.format("[{kind: jpeg_compressibility, args: {qualty: 1}}]")),
    override(
        "reward.args.rewards[0].args.rewards[0].kind = nope: unknown",
        PRODUCT.format("[{kind: product, args: {rewards: [{kind: nope}]}}]"),
    ),
    override(
        "reward.args.rewards[0].args.checkpoint = nope.ckpt: no such file",
        PRODUCT.format("[{kind: enformer, args: {checkpoint: nope.ckpt}}]"),
    ),
    override(
        "search.gradient = true: jpeg_comp", PRODUCT.format("[{kind: jpeg_compressibility}]"), "search.gradient=true"
    ),
    *(
        override(f"reward.golden = golden/{name}: {line}", f"reward.golden=golden/{name}")
        for name, line in {
            **{"nope.npz": "can't be read (No such file", "text.npz": "holds no golden scores (BadZipFile"},
            **{"evil.npz": "holds no golden scores (Object arrays", "keys.npz": "holds no golden scores (KeyError"},
            **{"bomb.npz": "holds no golden scores (3,000,", "rows.npz": "holds no golden scores (2 samples, 1 cond"},
            **{"shape.npz": "holds no golden scores (", "crc.npz": "holds no golden scores (BadZipFile: Bad CRC"},
        }.items()
    ),
    override("evaluate.features = rewards_raise:F: can't import", "evaluate.features='rewards_raise:F'"),
]
ADDRESSES = [
    Case(("run", "mine.yaml", f"--address={address}", "--dry-run"), f"--address {shown}: {line}")
    for address, shown, line in (
        ("ray://h:1", "ray://h:1", "a run can't go through Ray Client"),
        ("h", "h", "is no address"),
        ("h:99999", "h:99999", "is no address"),
        ("h:²", "h:²", "is no address"),
        ("h:-1", "h:-1", "is no address"),
        ("http://h:8265", "http://h:8265", "is no address"),
        ("user:secret@h:1", "user:secret@h:1", "is no address"),
        ("", '""', "is no address"),
    )
] + [
    Case(("doctor", "--address", "127.0.0.1:1"), "--address 127.0.0.1:1: no Ray cluster answers"),
    Case(("doctor", "--address", f"{'a' * 64}.x:6379"), "--address aaaaaaaa"),
    Case(("doctor", "--address", "[::1]:1"), "--address [::1]:1: no Ray cluster answers"),
]
PLACES = [
    Case(("run", "mine.yaml", "--dry-run", f"--run-dir={run_dir}"), start)
    for run_dir, start in (
        ("mine.yaml", "--run-dir mine.yaml: "),
        ("mine.yaml/x", "--run-dir mine.yaml/x: "),
        ("/dev/null", "--run-dir /dev/null: /dev/null is a file"),
        ("", '--run-dir "": is no path'),
        ("  ", '--run-dir " ": is no path'),
        ("x" * 300, "--run-dir xxxxxxx"),
        ("foreign", "--run-dir foreign: holds thesis.tex, and no run"),
        ("s3://", "run directory 's3://': must be a path"),
        ("s3:///x", "run directory 's3:///x': must be a path"),
        ("s3://Bad_Bucket!/x", "run directory 's3://Bad_Bucket!/x': has no name of a bucket"),
        ("s3://bucket/x?y=1", "run directory 's3://bucket/x?y=1': has a query"),
        ("s3://AKIAKEY:hunter2-secret@bucket/x", "run directory: names who may read it"),
        ("http://h/x", "run directory 'http://h/x': must be a path"),
        ("file://host/x", "run directory 'file://host/x': must be a path"),
        ("s3://[/x", "run directory 's3://[/x': is no URI"),
        ("runs/other", "--run-dir runs/other: holds a run of other settings"),
        ("runs/c-cut", "runs/c-cut/config.yaml:2: not valid YAML"),
        ("runs/c-binary", "runs/c-binary/config.yaml: can't be read: is no text"),
    )
]
RUNS: dict[str, tuple[str, Any, str, int]] = {  # file, what is in it, line, exit code
    "c-cut": ("config.yaml", b"a: [", "/config.yaml:2: not valid YAML", 2),
    "c-binary": ("config.yaml", bytes(range(256)), "runs/c-binary/config.yaml: can't be read: is no text", 2),
    "c-list": ("config.yaml", b"- 1", "/config.yaml: must hold `key: value` pairs", 2),
    "c-number": ("config.yaml", b"3", "/config.yaml: must hold `key: value` pairs", 2),
    "c-deep": ("config.yaml", b"[" * 100_000, "/config.yaml: nested too deeply", 2),
    "c-model": ("config.yaml", b"model: [1]", "/config.yaml: is no configuration of a run", 2),
    "c-reward": ("config.yaml", b"reward: [1]", "/config.yaml: is no configuration of a run", 2),
    "m-cut": ("manifest.json", b"{", "/manifest.json can't be read: it is no JSON", 1),
    "m-list": ("manifest.json", [1], "/manifest.json can't be read: it is no JSON object", 1),
    "m-deep": ("manifest.json", b"[" * 100_000, "/manifest.json can't be read: it is nested too deeply", 1),
    "m-binary": ("manifest.json", bytes(range(256)), "/manifest.json can't be read: it is no text", 1),
    "m-round": ("manifest.json", {**MANIFEST, "round": "x"}, "/manifest.json can't be read: it has no round", 1),
    "m-shards": ("manifest.json", {**MANIFEST, "shards": [1]}, "/manifest.json can't be read: it is no JSON obj", 1),
    "m-slip": ("manifest.json", {**MANIFEST, "shards": [SHARD]}, "/manifest.json can't be read: it '../../etc", 1),
    "x-cut": ("metrics.jsonl", b"{\n", "metrics.jsonl: line 1 is no JSON", 2),
    "x-list": ("metrics.jsonl", b"[]\n", "metrics.jsonl: line 1 is no JSON object", 2),
    "x-keys": ("metrics.jsonl", b"{}\n", "metrics.jsonl: line 1 has no round", 2),
    "x-round": ("metrics.jsonl", b'{"round": "x", "role": "evaluate"}\n', "metrics.jsonl: line 1 has no round", 2),
    "x-hash": ("metrics.jsonl", b'{"round": [], "role": {}}\n', "metrics.jsonl: line 1 has no round", 2),
    "x-binary": ("metrics.jsonl", b"\xff\n", "/metrics.jsonl can't be read: it is no text", 1),
    "p-cut": ("evaluate/round-0000.parquet", b"PAR1xx", "/evaluate/round-0000.parquet can't be read as Parquet", 1),
    "p-empty": ("evaluate/round-0000.parquet", b"", "/evaluate/round-0000.parquet can't be read as Parquet", 1),
    "r-folder": ("report.html/x", b"", "/report.html: Is a directory", 1),
}
STORED = [Case(("report", f"runs/{name}"), line, code) for name, (_, _, line, code) in RUNS.items()] + [
    Case(("report", "nowhere"), "nowhere: no such directory"),
    Case(("report", "."), ".: is no run directory (it has no config.yaml)"),
    Case(("report", ""), "'': is no path"),
    Case(("report", LONG), "xxxxx"),
    Case(("report", "s3://key:hunter2-secret@bucket"), "run directory: names who may read it"),
    Case(("evaluate", "nowhere"), "nowhere: no such directory"),
    Case(("evaluate", "runs/m-none"), "runs/m-none: is no run directory (it has no manifest.json)"),
    Case(("evaluate", "runs/m-newer"), "/manifest.json can't be read: it has later, of which this release knows", 1),
    Case(("evaluate", "runs/m-phase"), "/manifest.json can't be read: it says round 2, phase dance", 1),
    Case(("evaluate", "runs/m-policy"), "/manifest.json can't be read: it has no policy_version", 1),
    Case(("evaluate", "runs/c-cut"), "runs/c-cut/config.yaml:2: not valid YAML"),
    Case(("evaluate", "runs/whole"), "runs/whole: policy/v0001 is absent, the run's last policy"),
    Case(("sample", "runs/whole", "--num", "1", "--out", "x"), "runs/whole: policy/v0001 is absent"),
    Case(("sample", "runs/m-cut", "--num", "1", "--out", "x"), "/manifest.json can't be read: it is no JSON", 1),
]
CASES = [*MODELS, *MASKED_CASES, *PROMPTS, *REWARDS, *ADDRESSES, *PLACES, *STORED]


def write() -> None:
    """All of the files, below the current folder, where `mine.yaml` lies."""
    Path("dna.yaml").write_text(
        "model: {kind: masked, path: 'shipped:dna'}\nreward: {kind: gc_content}\nmstep: {lora: {targets: [convs]}}\n"
    )
    _put("foreign/thesis.tex", b"")
    for name, content in DATA.items():
        _put(f"data/{name}", content)
    os.mkfifo("data/pipe.txt")
    with open("data/huge.txt", "wb") as file:
        file.truncate(100_000_000)
    for name, text in MODULES.items():
        _put(f"{name}.py", text)
    _write_models()
    _write_checkpoints()
    _write_golden()
    _write_runs()


def _put(path: str, content: Any) -> None:
    data = content if isinstance(content, bytes) else content if isinstance(content, str) else json.dumps(content)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data.encode() if isinstance(data, str) else data)


def _write_models() -> None:
    parts = {"unet": {"in_channels": 4}, "vae": {"latent_channels": 4}, "text_encoder": {}, "tokenizer": {}}
    index = {part: ["diffusers", "X"] for part in [*parts, "scheduler"]} | {"_class_name": "StableDiffusionPipeline"}
    scheduler = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000}
    for name, (file, content, _) in PIPELINES.items():
        files: dict[str, Any] = {"model_index.json": index, "scheduler/scheduler_config.json": scheduler}
        files |= {f"{part}/config.json": config for part, config in parts.items()}
        files |= {f"{part}/model.safetensors": LAYERS for part in parts}
        files[file] = {**files[file], **content} if isinstance(content, dict) else content
        for path, held in files.items():
            if held is not None:
                _put(f"models/{name}/{path}", held)
    _put("models/pickle/unet/pytorch_model.bin", pickle.dumps(Evil()))
    for name, (config, weights, _) in {**FOLDERS, "m-none-of-it": (MASKED, header({}), "")}.items():
        for file, held in (("config.json", config), ("model.safetensors", weights)):
            if held is not None:
                _put(f"models/{name}/{file}", held)


def _write_checkpoints() -> None:
    """As torch.save writes them, by hand: a zip archive with a pickle in it."""
    _put("text.ckpt", "no checkpoint")
    _put("legacy.ckpt", pickle.dumps(Evil()))
    held = {"evil": {"state_dict": Evil()}, "list": [1], "bare": {"a": 1}, "slip": {"a": 1}}
    for name, value in held.items():
        with zipfile.ZipFile(f"{name}.ckpt", "w") as archive:
            folder = "../../slipped" if name == "slip" else name
            archive.writestr(f"{folder}/data.pkl", pickle.dumps(value, protocol=2))
            archive.writestr(f"{folder}/version", "3\n")


def _write_golden() -> None:
    import numpy as np

    def archive(name: str, **arrays: Any) -> None:
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        _put(f"golden/{name}.npz", file.getvalue())

    right = {"samples": np.zeros((1, 3, 2, 2), np.float32), "conditions": np.array(["a"]), "grad": np.array(False)}
    _put("golden/text.npz", "no archive")
    archive("evil", **right, values=np.array([Evil()], dtype=object))
    archive("keys", **right)
    archive("rows", **{**right, "samples": np.zeros((2, 1))}, values=np.zeros(1))
    archive("shape", **{**right, "conditions": np.array(3)}, values=np.zeros((2, 2)))
    archive("crc", **right, values=np.zeros(1))
    data = bytearray(Path("golden/crc.npz").read_bytes())
    with zipfile.ZipFile("golden/crc.npz") as whole:
        info = whole.getinfo("samples.npy")
    with zipfile.ZipFile("golden/bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb:
        with bomb.open("samples.npy", "w", force_zip64=True) as file:
            for _ in range(3000):
                file.write(b"\0" * 1_000_000)
    start = info.header_offset + 30 + len("samples.npy") + 20
    data[start + 5] ^= 0xFF
    _put("golden/crc.npz", bytes(data))


def _write_runs() -> None:
    from dav_ray.config.recipe.load import load

    config = load("mine.yaml").yaml.encode()
    for name, (file, content, _, _) in RUNS.items():
        _put(f"runs/{name}/config.yaml", config)
        _put(f"runs/{name}/manifest.json", MANIFEST)
        _put(f"runs/{name}/{file}", content)
    others = {
        **{"m-newer": {**MANIFEST, "later": 1}, "m-phase": {**MANIFEST, "phase": "dance"}, "whole": MANIFEST},
        **{"m-policy": {**MANIFEST, "policy_version": -5}, "m-none": None},
    }
    for name, manifest in others.items():
        _put(f"runs/{name}/config.yaml", config)
        if manifest is not None:
            _put(f"runs/{name}/manifest.json", manifest)
    _put("runs/other/config.yaml", load("mine.yaml", ["seed=7"]).yaml)
