"""The files of `cluster/`: Ray reads them, they agree with each other and the project, nothing is open or secret."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.places import ROOT

CLUSTER = ROOT / "cluster"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS = sorted(CLUSTER.glob("*.sh"))
METRICS = {  # what a run exports, as Prometheus sees it
    *(f"ray_dav_{name}" for name in ("reward", "reward_mean", "reward_std", "search_ess", "search_nfe_per_sample")),
    *(
        f"ray_dav_{name}"
        for name in ("search_samples_per_s", "search_reward_wait_share", "mstep_nll", "mstep_kl", "mstep_grad_norm")
    ),
    *(f"ray_dav_{name}" for name in ("time_estep_s", "time_mstep_s", "util", "diversity", "heldout", "round")),
    *(f"ray_dav_{name}" for name in ("search_decode_share", "search_tflops", "chunk_s")),
    *(f"ray_dav_{name}" for name in ("group_chunk_s", "peak_share")),
    *(f"ray_dav_{name}" for name in ("chunks_committed_total", "chunks_outstanding", "workers")),
}


def load(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def prepared(name: str) -> dict[str, Any]:
    """A launcher file as `ray up` sees it: the provider's defaults filled in."""
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(load(name))


def node_types(name: str) -> dict[str, dict[str, Any]]:
    """Name -> what the autoscaler knows of a node type: resources, labels, bounds. The head is `head`."""
    if not name.startswith("kuberay"):
        return prepared(name)["available_node_types"]
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr as derive

    document = load(name)
    spec = document["spec"].get("rayClusterSpec", document["spec"])
    types = derive({"metadata": {"name": "dav-ray", "namespace": "default"}, "spec": spec})["available_node_types"]
    return {name.replace("headgroup", "head"): node for name, node in types.items()}


CLUSTERS = ("aws.yaml", "gcp.yaml", "kuberay-cluster.yaml", "kuberay-job.yaml")


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_ray_accepts_launcher_file(name: str) -> None:
    from ray.autoscaler._private.util import validate_config

    config = prepared(name)
    validate_config(config)
    assert config["head_setup_commands"] == config["worker_setup_commands"] == []  # nothing of the defaults' other ray
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    for command in (*config["head_start_ray_commands"], *config["worker_start_ray_commands"]):
        assert command == "ray stop" or started_by(command.split()[2:])
    assert any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"])


def started_by(words: list[str]) -> dict[str, Any]:
    """The options of `ray start` with these words, as Ray's own command line reads them."""
    from ray.scripts.scripts import start

    return start.make_context("ray start", [word.replace("$RAY_HEAD_IP", "192.0.2.1") for word in words]).params


@pytest.mark.parametrize("name", CLUSTERS)
def test_node_types(name: str) -> None:
    from ray._private.label_utils import validate_node_label_syntax

    types = node_types(name)
    assert {key: node["labels"] for key, node in types.items()} == {
        key: node["labels"] for key, node in node_types("aws.yaml").items()
    }
    assert set(types) == {"head", "a100", "l4", "reward", "cpu"}
    for key, node in types.items():
        validate_node_label_syntax(node["labels"])
        assert node["min_workers"] == 0 and (node["max_workers"] > 0) == (key != "head")
        assert ("GPU" in node["resources"]) == ("accelerator" in node["labels"])
    # too small for any role's actor, enough for one of Ray Data's tasks
    assert types["head"]["resources"]["CPU"] == 1
    assert types["l4"]["labels"]["market"] == "spot" and types["l4"]["priority"] > types["a100"].get("priority", 0)


@pytest.mark.parametrize("name", CLUSTERS)
def test_roles_of_the_mixed_recipe_have_nodes(name: str) -> None:
    from dav_ray.config.recipe.load import load as recipe
    from dav_ray.runtime.doctor.packing import actor_demand
    from dav_ray.runtime.doctor.pool import Node

    nodes = {key: Node(key, node["resources"], node["labels"]) for key, node in node_types(name).items()}
    roles = recipe(str(CLUSTER / "mixed.yaml"), []).config.roles
    found = {
        role: {key for key, node in nodes.items() if not node.lacks(actor_demand(getattr(roles, role)))}
        for role in ("search", "reward", "train")
    }
    assert found == {"search": {"a100", "l4"}, "reward": {"reward"}, "train": {"a100"}}


@pytest.mark.parametrize(
    "words",
    [
        [str(CLUSTER / "mixed.yaml")],
        ["digits", "roles.search.labels.role=search", "roles.train.labels.accelerator=a100"],
    ],
)
def test_dry_run(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from dav_ray.cli.app import app

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = CliRunner().invoke(app, ["run", *words, "--run-dir", str(tmp_path / "run"), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "on nodes with role=search" in done.output and "on nodes with accelerator=a100" in done.output


def test_kuberay_pods_are_confined() -> None:
    cluster, job = load("kuberay-cluster.yaml")["spec"], load("kuberay-job.yaml")["spec"]
    assert job["rayClusterSpec"] == cluster
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"], {"template": job["submitterPodTemplate"]}]
    for group in groups:
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
        for container in pod["containers"]:
            security, resources = container["securityContext"], container["resources"]
            assert security == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert resources["limits"]["memory"] == resources["requests"]["memory"]
    for group in cluster["workerGroupSpecs"]:  # the operator lets `labels` and `resources` stand only without these
        assert group["rayStartParams"] == {}
    claim = load("kuberay-runs.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert cluster["headGroupSpec"]["template"]["spec"]["volumes"][0]["persistentVolumeClaim"] == {
        "claimName": claim["metadata"]["name"]
    }
    assert "entrypointNumCpus" not in job and "entrypointNumGpus" not in job  # the driver stays on the head


def test_nothing_is_open_or_secret() -> None:
    for path in sorted(CLUSTER.iterdir()):
        if path.name == "README.md":
            continue
        text = path.read_text()
        assert "0.0.0.0/0" not in text and "::/0" not in text, path.name
        # in a pod KubeRay opens the dashboard to the pods' own network, for its probes; nowhere else is it needed
        assert not re.search(r"dashboard-host[= ]+(?!127\.0\.0\.1)", text), path.name
        assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|\b[0-9a-f]{40,}\b|hf_\w{20}", text), path.name
        assert "RAY_AUTH_MODE=disabled" not in text and "mode: disabled" not in text, path.name


def test_versions_are_the_projects() -> None:
    from packaging.requirements import Requirement

    ray = next(Requirement(line) for line in PROJECT["dependencies"] if line.startswith("ray["))
    pinned = set()
    for path in (CLUSTER / "Dockerfile", *(CLUSTER / name for name in CLUSTERS), CLUSTER / "README.md"):
        text = path.read_text()
        tags = re.findall(r"(?:dav-ray|REGISTRY):([\d.]+)-ray([\d.]+\d)", text)
        assert tags and {tag[0] for tag in tags} == {PROJECT["version"]}, path.name
        pinned |= {tag[1] for tag in tags}
        pinned |= set(re.findall(r"(?:rayVersion: |ARG RAY=)([\d.]+)", text))
    assert len(pinned) == 1 and ray.specifier.contains(pinned.pop())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_clean(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert shellcheck, "pip install -e '.[dev]'"
    found = subprocess.run([shellcheck, str(script)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_dockerfile() -> None:
    text = re.sub(r"^#.*\n", "", (CLUSTER / "Dockerfile").read_text(), flags=re.M).replace("\\\n", "")
    steps = [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]
    names = [name for name, _ in steps]
    assert set(names) <= {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "CMD"}
    assert dict(steps)["USER"] == "1000" and names.index("USER") > max(
        i for i, name in enumerate(names) if name == "RUN"
    )
    assert "RAY_AUTH_MODE=token" in dict(steps)["ENV"]
    # torch.compile launches its kernels by C that it builds on the node, and keeps where all nodes are
    assert {"gcc", "libc6-dev"} <= set(next(words for name, words in steps if name == "RUN").split())
    assert "TORCHINDUCTOR_CACHE_DIR=/runs/" in dict(steps)["ENV"]
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    for _, words in (step for step in steps if step[0] == "COPY"):
        for source in words.split()[:-1]:
            assert (ROOT / source).exists() and f"!{source}" in sent
    major, minor = re.search(r"PYTHON=(\d+)\.(\d+)", text).groups()
    assert f">={major}.{minor}" == PROJECT["requires-python"]


def test_grafana_asks_for_what_is_exported() -> None:
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    board = load("grafana.json")
    assert board["schemaVersion"] >= 36 and board["title"] and board["uid"]
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "run"}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    places = [tuple(panel["gridPos"][key] for key in "xywh") for panel in board["panels"]]
    cells = [(x + i, y + j) for x, y, w, h in places for i in range(w) for j in range(h)]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked = {word for query in queries for word in re.findall(r"ray_\w+", query)}
    assert {word for word in asked if word.startswith("ray_dav_")} == METRICS
    assert {word for word in asked - METRICS} <= {f"ray_{name}" for name in METRICS_GAUGES}
    assert all('run=~"$run"' in query for query in queries if "ray_dav_" in query)


def test_rayignore_keeps_runs_at_home(tmp_path: Path) -> None:
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    kept = ["jobs/align.py", "cluster/mixed.yaml", "mine.yaml", "my_rewards.py", "dav_ray/assets/digits/config.json"]
    left = [
        "runs/digits/manifest.json",
        ".git/HEAD",
        ".venv/bin/python",
        ".hypothesis/x",
        ".ruff_cache/x",
        "tests/t.py",
    ]
    left += [
        "jobs/assets/figures/digits.png",
        "jobs/__pycache__/a.pyc",
        "aws.mine.yaml",
        "job.log",
        "dav_ray.egg-info/PKG-INFO",
    ]
    for name in kept + left:
        (tmp_path / "upload" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "upload" / name).write_text(name)
    (tmp_path / "upload/.rayignore").write_text((ROOT / ".rayignore").read_text())
    package = tmp_path / "package.zip"
    create_package(str(tmp_path / "upload"), package, True, excludes=get_runtime_env_default_excludes())
    sent = {name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")}
    assert sent == {*kept, ".rayignore"}


def test_readme_names_files_that_exist() -> None:
    text = (CLUSTER / "README.md").read_text()
    named = set(re.findall(r"(?:cluster|jobs)/[\w.-]+\.\w+", text))
    assert named and all((ROOT / name).exists() for name in named)


def test_every_file_names_the_image_of_this_release() -> None:
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    ray = re.search(r"^ARG RAY=(\S+)$", dockerfile, re.M)
    assert ray
    tags = {file.name: set(re.findall(r"\d[\d.]*-ray[\d.]*\d", file.read_text())) for file in CLUSTER.iterdir()}
    assert {name for name, found in tags.items() if found} >= {"Dockerfile", "README.md", "aws.yaml", "gcp.yaml"}
    assert {tag for found in tags.values() for tag in found} == {f"{PROJECT['version']}-ray{ray[1]}"}
