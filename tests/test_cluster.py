"""The cluster files, checked without a cloud: Ray's own schema, and what it does not look at."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("ray")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

from ray.autoscaler._private.util import prepare_config, validate_config

from orchestrator.config import Runtime
from orchestrator.ray_cluster import ClusterError, evaluation_request, generator_request

ROOT = Path(__file__).parents[1]
AWS, LOCAL = ROOT / "cluster.yaml", ROOT / "examples" / "cluster-local.yaml"
BOTH = pytest.mark.parametrize("file", [AWS, LOCAL], ids=["aws", "local"])

# What EC2 takes for a machine and the files use; Ray passes it on unread.
NODE_CONFIG = {"InstanceType", "ImageId", "BlockDeviceMappings", "InstanceMarketOptions"}


def _load(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text())


def _resources(**nodes: int) -> dict[str, float]:
    """What `ray.cluster_resources()` says with so many nodes of each type."""
    types = _load(AWS)["available_node_types"]
    total: dict[str, float] = {}
    for name, count in nodes.items():
        for resource, amount in types[name]["resources"].items():
            total[resource] = total.get(resource, 0) + count * amount
    return {name: amount for name, amount in total.items() if amount}


@BOTH
def test_ray_accepts_the_file(file: Path) -> None:
    validate_config(prepare_config(_load(file)))


def test_a_misspelt_key_would_be_noticed() -> None:
    config = _load(AWS)
    config["available_node_types"]["evaluator"]["max_worker"] = 3
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(config))


def test_machines() -> None:
    for node_type in _load(AWS)["available_node_types"].values():
        machine = node_type["node_config"]
        assert {"InstanceType", "ImageId"} <= machine.keys() <= NODE_CONFIG
        assert machine.get("InstanceMarketOptions", {"MarketType": "spot"}) == {
            "MarketType": "spot"
        }


def test_limits_allow_all_nodes() -> None:
    config = _load(AWS)
    workers = [t for name, t in config["available_node_types"].items() if name != "head"]
    assert config["max_workers"] == sum(t["max_workers"] for t in workers)
    assert all(t["min_workers"] >= 1 for t in workers), "a run uses the nodes that are there"


@BOTH
def test_hosts_get_the_same_surroundings(file: Path) -> None:
    config = _load(file)
    (profile,) = [c for c in config["setup_commands"] if ".bashrc" in c]
    for setting in ("PATH=~/nag-env/bin", "RAY_AUTH_MODE=token", "RAY_task_oom_retries="):
        assert setting in profile
    assert any("pip install" in c and c.endswith("~/nag") for c in config["setup_commands"])
    assert config["file_mounts"] == {"~/nag": ".", "~/.ray/auth_token": "~/.ray/auth_token"}
    for kind in ("head", "worker"):
        stop, start = config[f"{kind}_start_ray_commands"]
        assert stop == "ray stop"
        assert "ray start" in start
    assert (
        "--autoscaling-config=~/ray_bootstrap_config.yaml" in config["head_start_ray_commands"][1]
    )


def test_local_cluster_uses_the_autoscaler_that_works() -> None:
    assert _load(LOCAL)["head_start_ray_commands"][1].startswith(
        "export RAY_enable_autoscaler_v2=0; "
    )


def test_the_executor_finds_its_roles() -> None:
    resources = _resources(head=1, generator=1, evaluator=2)
    assert generator_request(resources, Runtime()) == ({"GPU": 1, "generator": 1}, "cuda")
    shared = Runtime(gpus_per_eval=0.25, generator_gpus=0.5)
    assert generator_request(resources, shared) == ({"GPU": 0.5, "generator": 1}, "cuda")
    on_cpu = Runtime(device="cpu")
    assert generator_request(resources, on_cpu) == ({"generator": 1}, "cpu")
    assert evaluation_request(resources, Runtime()) == {"CPU": 1, "evaluator": 1}
    assert evaluation_request(resources, shared) == {"CPU": 1, "GPU": 0.25, "evaluator": 1}


def test_a_cluster_without_roles_and_gpus() -> None:
    assert generator_request({"CPU": 2}, Runtime()) == ({}, "cpu")
    assert evaluation_request({"CPU": 2}, Runtime(cpus_per_eval=0.5)) == {"CPU": 0.5}
    with pytest.raises(ClusterError, match="--device cuda: the cluster has no GPU"):
        generator_request({"CPU": 2}, Runtime(device="cuda"))


def test_local_roles_are_those_the_executor_asks_for() -> None:
    config = _load(LOCAL)
    assert """--resources='{"generator":1}'""" in config["head_start_ray_commands"][1]
    assert """--resources='{"evaluator":2}'""" in config["worker_start_ray_commands"][1]
