"""What is not trusted runs no code, what is trusted is said aloud, and secrets stay where they are."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from dav_ray import redact
from dav_ray.cli import app
from dav_ray.config.checks.user_code import announced
from dav_ray.config.imports import module_file
from dav_ray.config.recipe.load import from_yaml, load
from dav_ray.config.schema import Config
from dav_ray.diffusion.pipelines.files import attach, load_pipeline
from dav_ray.diffusion.weight_files import read_checkpoint
from dav_ray.errors import DataError, UserError
from dav_ray.report.page import render
from dav_ray.rewards.oracle import read_weights
from dav_ray.run_dir.quarantine import Scene, keep
from dav_ray.run_dir.records import RunLog
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.types import Chunk
from tests.report.test_page import make_run
from tests.support.deadlines import hung
from tests.support.places import ROOT

FILES = sorted(path for folder in ("dav_ray", "jobs") for path in (ROOT / folder).rglob("*.py"))
TOKEN = 'tok"en-hünter2-batterystaple'
RECIPE = "model: {path: org/name}\nprompts: [cat]\nreward: {kind: brightness}\n"


@pytest.fixture(autouse=True)
def own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redact, "_known", {})


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


def calls(tree: ast.AST) -> Iterator[tuple[str, dict[str, str]]]:
    """(dotted name, keyword arguments as text) of every call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg or "**": ast.unparse(word.value) for word in node.keywords}


def forbidden(source: str) -> list[str]:
    """What would run code of a file, or hand a line to a shell."""
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        pickles = ("pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "tarfile")
        found += [name for name in names if name.split(".")[0] in pickles]
    for name, words in calls(tree):
        last = name.rpartition(".")[2]
        if name == "torch.load" and words.get("weights_only") != "True":
            found.append("torch.load")
        if name in ("np.load", "numpy.load") and words.get("allow_pickle") != "False":
            found.append("np.load")
        if name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system", "os.popen"):
            found.append(name)
        if last == "from_pretrained" and words.get("use_safetensors") != "True":
            found.append(name)
        if last in ("extractall", "read_pickle") or words.get("shell", "False") != "False":
            found.append(name)
        found += ["trust_remote_code"] if words.get("trust_remote_code", "False") != "False" else []
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_runs_what_a_file_holds(path: Path) -> None:
    assert forbidden(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle", "from pickle import loads", "torch.load(f)", "torch.load(f, weights_only=False)", "eval(x)"),
        *(
            "np.load(f, allow_pickle=True)",
            "np.load(f)",
            "yaml.load(f)",
            "subprocess.run(x, shell=True)",
            "os.system(x)",
        ),
        *(
            "C.from_pretrained(f)",
            "C.from_pretrained(f, use_safetensors=True, trust_remote_code=True)",
            "z.extractall()",
        ),
    ],
)
def test_it_would_be_seen(source: str) -> None:
    assert forbidden(source)


@pytest.mark.parametrize(
    "wrap", [lambda evil: evil, lambda evil: {"state_dict": evil}, lambda evil: {"a": [{"b": evil}]}]
)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_in_a_checkpoint_does_nothing(tmp_path: Path, wrap: Any, legacy: bool) -> None:
    file, harm = tmp_path / "a.ckpt", tmp_path / "harm"
    torch.save(wrap(Evil(harm)), file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="can't be read as a checkpoint"):
        read_checkpoint(file)
    with pytest.raises(ValueError, match="can't be read as a checkpoint"):
        read_weights(file)
    assert not harm.exists()
    torch.load(file, weights_only=False)
    assert harm.exists()  # it would have


def test_a_pipeline_of_pickles_or_with_code_of_its_own_is_not_loaded(tiny_folder: str, tmp_path: Path) -> None:
    import shutil

    harm = tmp_path / "harm"
    code = f"import os\nos.mkdir({str(harm)!r})\nclass UNet: ...\n"
    for part, name in (
        ("unet", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
        ("vae", "diffusion_pytorch_model"),
    ):
        place = tmp_path / part
        shutil.copytree(tiny_folder, place)
        (place / part / f"{name}.safetensors").unlink()
        for file in ("diffusion_pytorch_model.bin", "pytorch_model.bin"):
            torch.save(Evil(harm), place / part / file)
        with pytest.raises(Exception, match="safetensors|no file named"):
            load_pipeline(str(place))
    for library in ("evil", "os"):
        place = tmp_path / library
        shutil.copytree(tiny_folder, place)
        index = json.loads((place / "model_index.json").read_text())
        (place / "model_index.json").write_text(json.dumps({**index, "unet": [library, "mkdir"]}))
        for folder in (place, place / "unet"):
            (folder / f"{library}.py").write_text(code)
        with pytest.raises(Exception):  # noqa: B017 diffusers' own, which is of no one class
            load_pipeline(str(place))
    assert not harm.exists()


def test_a_policy_of_pickles_is_not_attached(tiny_folder: str, tmp_path: Path) -> None:
    pipe, harm = load_pipeline(tiny_folder), tmp_path / "harm"
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/config.json").write_text((Path(tiny_folder) / "unet/config.json").read_text())
    for file in ("unet/diffusion_pytorch_model.bin", "pytorch_lora_weights.bin"):
        torch.save(Evil(harm), tmp_path / file)
    for lora in (True, False):
        with pytest.raises(Exception, match="safetensors|no file named"):
            attach(pipe, tmp_path, lora=lora)
    assert not harm.exists()


OWN = """
print("imported", flush=True)
class Leaky:
    def __init__(self, token): ...
    def __call__(self, samples, conditions): ...
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setenv("DAV_TOKEN", TOKEN)
    monkeypatch.setitem(sys.modules, "own_leaky", None)
    monkeypatch.delitem(sys.modules, "own_leaky")
    (tmp_path / "own_leaky.py").write_text(OWN)
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "deep/__init__.py").write_text("raise RuntimeError('run')\n")
    (tmp_path / "deep/er/__init__.py").write_text("")
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return tmp_path


def test_code_of_the_users_own_is_named_before_it_is_imported(folder: Path) -> None:
    words = ["run", "mine.yaml", "reward={kind: 'own_leaky:Leaky', args: {token: x}}", "--dry-run"]
    result = CliRunner().invoke(app.app, words)
    lines = result.output.splitlines()
    assert result.exit_code == 0
    assert lines[:2] == [f"# imports own_leaky:Leaky from {folder}/own_leaky.py (reward.kind)", "imported"]
    assert CliRunner().invoke(app.app, ["run", "mine.yaml", "--dry-run"]).stdout.startswith("seed: ")  # nothing to say


def test_every_place_that_can_name_code_is_said(folder: Path) -> None:
    oracle = {"kind": "torch_oracle", "args": {"model": "own_leaky:Net", "weights": "x"}}
    rewards = [
        {"kind": "own_leaky:Leaky", "name": "a", "python": "/venv/bin/python"},
        {"kind": "product", "args": {"rewards": [{"kind": "deep.er:A"}, {"kind": "nowhere.at.all:B"}, oracle]}},
        {"kind": "brightness", "role": {"pip": ["holo"]}},
    ]
    config = Config.model_validate(
        {
            **{"model": {"path": "org/name"}, "prompts": ["a"], "reward": rewards},
            **{"evaluate": {"features": "own_leaky:F", "heldout": [{"kind": "own_leaky:H"}]}},
            **{"roles": {"search": {"container": "image"}, "train": {"python": "/other/python"}}},
        }
    )
    assert announced(config) == [
        "runs /venv/bin/python (reward[0].python)",
        "imports own_leaky:Leaky from where /venv/bin/python finds it (reward[0].kind)",
        f"imports deep.er:A from {folder}/deep/er/__init__.py (reward[1].args.rewards[0].kind)",
        "imports nowhere.at.all:B: not found here (reward[1].args.rewards[1].kind)",
        f"imports own_leaky:Net from {folder}/own_leaky.py (reward[1].args.rewards[2].args.model)",
        "runs holo (reward[2].role.pip)",
        f"imports own_leaky:H from {folder}/own_leaky.py (evaluate.heldout.kind)",
        f"imports own_leaky:F from {folder}/own_leaky.py (evaluate.features)",
        "runs image (roles.search.container)",
        "runs /other/python (roles.train.python)",
    ]
    assert module_file("deep.er") and "deep" not in sys.modules and "own_leaky" not in sys.modules


def test_a_secret_of_the_environment_is_written_nowhere(folder: Path) -> None:
    words = [
        "reward={kind: 'own_leaky:Leaky', args: {token: '${oc.env:DAV_TOKEN}'}}",
        "track.project=${oc.env:DAV_TOKEN}",
    ]
    loaded = load("mine.yaml", words)
    assert loaded.config.reward[0].args == {"token": TOKEN}  # the reward has it

    storage = open_storage(str(folder / "run"))
    storage.write("config.yaml", loaded.yaml.encode())
    cause = f"ValueError: 401 for {TOKEN!r}, {json.dumps(TOKEN)} and {TOKEN}"
    log = RunLog(storage, 1)
    log.event("run_failed", cause=cause)
    log.metrics(0, "evaluate", {"evaluate/reward_mean": 1.0})
    chunk = Chunk(1, 0, 0, 0, (0,), ("cat",))
    keep(storage, chunk, DataError("reward", cause), Scene("search-0", "n", 1, cause, {}))
    storage.write("report.html", render(storage).encode())
    dry = CliRunner().invoke(app.app, ["run", "mine.yaml", *words, "--dry-run"])
    wrong = CliRunner().invoke(app.app, ["run", "mine.yaml", *words, "reward.args.x=${oc.env:DAV_TOKEN}"])

    written = {str(file): file.read_text() for file in (folder / "run").rglob("*") if file.is_file()}
    assert len(written) >= 5 and any("401 for" in text for text in written.values())
    assert (dry.exit_code, wrong.exit_code) == (0, 2) and "${oc.env:DAV_TOKEN}" in wrong.stderr
    shown = [*written.values(), dry.output, wrong.output, redact.printable(cause), str(yaml.safe_load(loaded.yaml))]
    for text in shown:
        assert "batterystaple" not in text and "nter2" not in text
    assert json.loads(written[str(folder / "run/events.jsonl")])["event"] == "run_failed"  # still JSON
    again = from_yaml(written[str(folder / "run/config.yaml")], "run/config.yaml")
    assert again.config.reward[0].args == {"token": TOKEN}


def test_values_travel_to_workers_so_that_they_hide_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    redact.remember("A", "abcdef")
    redact.remember("SHORT", "abc")  # no secret, and part of other words
    there = redact.known()
    monkeypatch.setattr(redact, "_known", {})
    assert redact.hide("abcdef") == "abcdef"
    redact.learn(there)
    assert redact.hide("xabcdefx abc") == "x${oc.env:A}x abc"


@pytest.mark.parametrize("uri", ["s3://AKIA:{}@bucket/run", "s3://{}@bucket", "gs://a:{}@b/c", "https://u:{}@h/b"])
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(UserError, match="credentials in the environment") as caught:
        open_storage(uri.format("hunter2"))
    assert "hunter2" not in str(caught.value) and "AKIA" not in str(caught.value)


class Scripts(HTMLParser):
    """Counts elements that would do something; attributes that are event handlers."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags += [tag] if tag in ("script", "img", "iframe", "a", "svg", "object", "style", "meta") else []
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def test_the_report_escapes_what_users_and_models_wrote(tmp_path: Path) -> None:
    attack = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg onload=alert(3)>"
    quiet, loud = make_run(tmp_path / "quiet"), make_run(tmp_path / "loud")
    config = yaml.safe_load((loud / "config.yaml").read_text())
    config["reward"] = [{"kind": "brightness", "name": attack}]
    config["track"] = {"project": attack}
    (loud / "config.yaml").write_text(yaml.safe_dump(config))
    (loud / "metrics.jsonl").write_text(
        "".join(
            json.dumps({**json.loads(line), f"heldout/{attack}": 1.0, f"diversity/{attack}": 2.0}) + "\n"
            for line in (loud / "metrics.jsonl").read_text().splitlines()
        )
    )
    import pyarrow.parquet as pq

    for file in (loud / "evaluate").glob("*.parquet"):
        table = pq.read_table(file)
        place = table.column_names.index("condition")
        rows = [f"{attack} {text}" for text in table["condition"].to_pylist()]
        pq.write_table(table.set_column(place, "condition", [rows]), file)
    before, after = (Scripts(render(open_storage(str(run)))) for run in (quiet, loud))
    page = render(open_storage(str(loud)))
    assert "alert(1)" in page and "<script>alert" not in page and "<svg onload" not in page
    assert after.handlers == before.handlers == []
    charts = after.tags.count("script") - before.tags.count("script")
    assert charts == 1  # of the new measure
    assert {tag: after.tags.count(tag) for tag in ("img", "a", "svg", "iframe")} == {
        tag: before.tags.count(tag) for tag in ("img", "a", "svg", "iframe")
    }
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("Dockerfile", "RAY_AUTH_MODE=token"),
        ("aws.yaml", "RAY_AUTH_MODE=token"),
        ("gcp.yaml", "RAY_AUTH_MODE=token"),
        ("local.sh", "RAY_AUTH_MODE=token"),
        ("kuberay-cluster.yaml", "mode: token"),
        ("kuberay-job.yaml", "mode: token"),
        ("local.sh", "--dashboard-host=127.0.0.1"),
    ],
)
def test_clusters_ask_for_a_token(file: str, words: str) -> None:
    assert words in (ROOT / "cluster" / file).read_text()


LISTEN = """
import json, ray
from dav_ray.config.recipe.load import load
from dav_ray.runtime.cluster.connect import connected
with connected("local", load("mine.yaml").config):
    print("URL", ray._private.worker.global_worker.node.webui_url)
    port = int(ray._private.worker.global_worker.node.webui_url.rpartition(":")[2])
    rows = [line.split() for kind in ("tcp", "tcp6") for line in open(f"/proc/net/{kind}").readlines()[1:]]
    print("BOUND", json.dumps([row[1] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port]))
"""


@pytest.mark.slow
def test_the_embedded_dashboard_listens_on_loopback(folder: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "200"}
    done = subprocess.run([sys.executable, "-c", LISTEN], capture_output=True, text=True, env=env, timeout=hung(280))
    assert done.returncode == 0, done.stderr[-2000:]
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("URL", "BOUND")))
    assert lines["URL"].startswith("127.0.0.1:")
    bound = json.loads(lines["BOUND"])
    assert bound and all(address.startswith("0100007F:") for address in bound)
