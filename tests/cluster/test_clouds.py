"""The files of `cluster/` against what the clouds would say: AWS (moto), Google's API schema, KubeRay's CRDs."""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.cluster.test_files import load, prepared

GROUP = "sg-0123456789abcdef0"
CRDS_FROM = (
    "set KUBERAY_CRD_DIR to a folder with ray.io_rayclusters.yaml and ray.io_rayjobs.yaml "
    "(KubeRay's release: helm-chart/kuberay-operator/crds)"
)


def test_aws_launches_every_node_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own bootstrap and node provider, against moto: botocore checks every parameter."""
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("HOME", str(tmp_path)), ("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")):
        monkeypatch.setenv(name, value)
    with mock_aws():
        ec2, iam = boto3.client("ec2", region_name="us-west-2"), boto3.client("iam", region_name="us-west-2")
        group = ec2.create_security_group(GroupName="dav-ray", Description="as aws_setup.sh makes it")["GroupId"]
        for name in ("dav-ray-head", "dav-ray-worker"):
            iam.create_instance_profile(InstanceProfileName=name)
        images = ec2.describe_images(Filters=[{"Name": "name", "Values": ["ubuntu/images/hvm-ssd/ubuntu-trusty*"]}])
        image = images["Images"][0]["ImageId"]  # moto resolves no SSM parameter
        text = re.sub(r"resolve:ssm:[^\"]+", image, json.dumps(prepared("aws.yaml")).replace(GROUP, group))
        config = bootstrap_aws(json.loads(text))
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for key, node in config["available_node_types"].items():
            provider.create_node(node["node_config"], {"ray-user-node-type": key}, 1)
        instances = {
            tag["Value"]: instance
            for reservation in ec2.describe_instances()["Reservations"]
            for instance in reservation["Instances"]
            for tag in instance["Tags"]
            if tag["Key"] == "ray-user-node-type"
        }
        open_groups = [
            rule["GroupId"]
            for rule in ec2.describe_security_group_rules()["SecurityGroupRules"]
            if not rule["IsEgress"] and rule.get("CidrIpv4") == "0.0.0.0/0"
        ]
    assert set(instances) == {"head", "a100", "l4", "reward", "cpu"} and open_groups == []
    assert [key for key, instance in instances.items() if instance.get("InstanceLifecycle") == "spot"] == ["l4"]
    for key, instance in instances.items():
        assert [found["GroupId"] for found in instance["SecurityGroups"]] == [group]
        assert instance["IamInstanceProfile"]["Arn"].endswith("head" if key == "head" else "worker")
        assert instance["MetadataOptions"]["HttpTokens"] == "required"


def test_gcp_node_configs_are_what_the_api_takes() -> None:
    """Against the schema of `instances.insert` that Google's client ships."""
    pytest.importorskip("googleapiclient", reason="pip install 'dav_ray[gcp]'")
    import googleapiclient

    folder = Path(googleapiclient.__file__).parent / "discovery_cache/documents"
    document = json.loads((folder / "compute.v1.json").read_text())
    schemas = {name: strict(schema) for name, schema in document["schemas"].items()}
    schema = {"$ref": "#/$defs/Instance", "$defs": schemas}
    schema = json.loads(re.sub(r'"\$ref": "(\w+)"', r'"$ref": "#/$defs/\1"', json.dumps(schema)))
    for node in load("gcp.yaml")["available_node_types"].values():
        jsonschema.Draft202012Validator(schema).validate(node["node_config"])


def strict(schema: Any) -> Any:
    """A schema as one that refuses fields it does not name: an API server drops those in silence."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {
        key: value if key == "properties" else strict(value)
        for key, value in schema.items()
        if not key.startswith("x-") and key not in ("default", "format", "description", "id", "annotations")
    }
    if "properties" in schema:
        kept["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        kept["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    if schema.get("x-kubernetes-int-or-string") and "anyOf" not in schema:
        kept["type"] = ["integer", "string"]
    return kept


@pytest.mark.parametrize(("name", "kind"), [("kuberay-cluster.yaml", "rayclusters"), ("kuberay-job.yaml", "rayjobs")])
def test_kuberay_accepts_manifest(name: str, kind: str) -> None:
    folder = os.environ.get("KUBERAY_CRD_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip(CRDS_FROM)
    versions = yaml.load(
        Path(folder, f"ray.io_{kind}.yaml").read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    )["spec"]["versions"]
    served = next(version for version in versions if version["name"] == "v1" and version["served"])
    schema = strict(served["schema"]["openAPIV3Schema"])
    names = {"type": "object", "additionalProperties": {"type": "string"}}
    metadata = {"name": {"type": "string"}, "namespace": {"type": "string"}, "labels": names, "annotations": names}
    schema["properties"]["metadata"] = {"type": "object", "properties": metadata, "additionalProperties": False}
    validator = jsonschema.Draft202012Validator(schema)
    manifest = load(name)
    validator.validate(manifest)

    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    assert spec["authOptions"] == {"mode": "token", "secretName": "dav-ray-auth"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP" and spec["autoscalerOptions"]["version"] == "v2"
    for broken in ("workerGroupSpecs", "headGroupSpec"):  # the check itself: a field that nobody knows, deep down
        wrong = copy.deepcopy(spec)
        group = wrong[broken][0] if broken == "workerGroupSpecs" else wrong[broken]
        group["template"]["spec"]["containers"][0]["resource"] = {}
        document = {**manifest, "spec": {**manifest["spec"], "rayClusterSpec": wrong} if kind == "rayjobs" else wrong}
        with pytest.raises(jsonschema.ValidationError, match="'resource' was unexpected"):
            validator.validate(document)
