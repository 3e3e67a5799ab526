"""What Ray's schema does not look at in a cluster file: `complaints` lists what is wrong."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

WORLD = {"0.0.0.0/0", "::/0"}
PROFILE = ("PATH=~/nag-env/bin", "RAY_AUTH_MODE=token", "RAY_task_oom_retries=")

# What a provider must and may be told about a machine, and how the files say "spot". Ray passes
# these settings on unread, so that a misspelt one is noticed in the cloud, or never.
NODE_CONFIG: Mapping[str, tuple[set[str], set[str]]] = {
    "aws": (
        {"InstanceType", "ImageId", "BlockDeviceMappings"},
        {"InstanceMarketOptions"},
    ),
    "gcp": (
        {"machineType", "disks"},
        {"metadata", "scheduling", "guestAccelerators"},
    ),
}


def is_spot(node_config: Mapping[str, Any]) -> bool:
    market = node_config.get("InstanceMarketOptions", {}).get("MarketType")
    model = node_config.get("scheduling", {}).get("provisioningModel")
    return market == "spot" or model == "SPOT"


def complaints(config: Mapping[str, Any]) -> list[str]:
    """For a file of `ray up`; empty when all is well."""
    return [*_machines(config), *_node_types(config), *_ingress(config), *_hosts(config)]


def _machines(config: Mapping[str, Any]) -> Iterator[str]:
    required, optional = NODE_CONFIG.get(config["provider"]["type"], (set(), set()))
    for name, node_type in config.get("available_node_types", {}).items():
        settings = node_type["node_config"]
        for key in sorted(required - settings.keys()):
            yield f"{name}: {key} is missing"
        for key in sorted(settings.keys() - required - optional):
            yield f"{name}: {key} is unknown"
        if "evaluator" in node_type["resources"] and not is_spot(settings):
            yield f"{name}: evaluators are to be spot machines"
        scheduling = settings.get("scheduling", {})
        gcp_gpu = config["provider"]["type"] == "gcp" and node_type["resources"].get("GPU")
        if gcp_gpu and scheduling.get("onHostMaintenance") != "TERMINATE":
            yield f"{name}: a machine with a GPU cannot be moved"
        first = node_type.get("initialization_commands", [])
        if gcp_gpu and not any("until nvidia-smi" in step for step in first):
            yield f"{name}: Ray is started before the driver is there"
        if gcp_gpu and not any("disable --now jupyter" in step for step in first):
            yield f"{name}: Jupyter may have the port of Ray's metrics"
        zone = config["provider"].get("availability_zone")
        for disk in settings.get("disks", []):  # a G2 machine cannot have the default, pd-standard
            kind = disk["initializeParams"].get("diskType", "")
            if not re.fullmatch(rf"zones/{zone}/diskTypes/pd-(balanced|ssd)", kind):
                yield f"{name}: the disk is magnetic, or in another zone"


def _node_types(config: Mapping[str, Any]) -> Iterator[str]:
    if config["provider"]["type"] == "local":
        if "--num-cpus=0" not in config["head_start_ray_commands"][1]:
            yield "the head evaluates"
        return
    types = config["available_node_types"]
    head = types[config["head_node_type"]]
    if head["resources"] != {"CPU": 0}:
        yield "the head evaluates"
    workers = {name: t for name, t in types.items() if t is not head}
    for name, node_type in workers.items():
        if not 0 <= node_type["min_workers"] <= node_type["max_workers"]:
            yield f"{name}: min_workers is more than max_workers"
    if config["max_workers"] != sum(t["max_workers"] for t in workers.values()):
        yield "max_workers is not the sum of those of the node types"


def _ingress(config: Mapping[str, Any]) -> Iterator[str]:
    group = config["provider"].get("security_group", {})
    for rule in group.get("IpPermissions", []):
        sources = {r.get("CidrIp") for r in rule.get("IpRanges", [])}
        sources |= {r.get("CidrIpv6") for r in rule.get("Ipv6Ranges", [])}
        if sources & WORLD and (rule.get("FromPort"), rule.get("ToPort")) != (22, 22):
            yield f"port {rule.get('FromPort')} is open to the world"


def _hosts(config: Mapping[str, Any]) -> Iterator[str]:
    if config["file_mounts"] != {"~/nag": ".", "~/.ray/auth_token": "~/.ray/auth_token"}:
        yield "the project or the token is not on the machines"
    setup = config["setup_commands"]
    install = "".join(step for step in setup if "pip install" in step and step.endswith("~/nag"))
    if not install:
        yield "the project is not installed"
    if not re.search(r" ray==[\d.]+ ", install):
        yield "machines that start later get another Ray"
    if any("uv venv" in step and not re.search(r"--python \d+\.\d+\.\d+ ", step) for step in setup):
        yield "machines that start later get another Python"
    if any("uv pip install" in step and "--torch-backend=auto" not in step for step in setup):
        yield "machines without a GPU install CUDA"
    if "chmod 600 ~/.ray/auth_token" not in setup:
        yield "the token is readable for everyone on the machines"
    profile = "".join(step for step in setup if ".bashrc" in step)
    for setting in PROFILE:
        if setting not in profile:
            yield f"{setting} is not in the profile"
    for kind in ("head", "worker"):
        stop, start = config[f"{kind}_start_ray_commands"]
        if stop != "ray stop" or "ray start" not in start:
            yield f"the {kind} does not start anew"
        if "--metrics-export-port=8080" not in start:
            yield f"the {kind} has no metrics"
        if "0.0.0.0" in start:
            yield f"the {kind} listens to the world"
    if not config["worker_start_ray_commands"][1].startswith("unset OMP_NUM_THREADS; "):
        yield "evaluations with several CPUs have one thread"
    head = config["head_start_ray_commands"][1]
    if "--dashboard-host=127.0.0.1" not in head:
        yield "the dashboard listens to the world"
    if "--autoscaling-config=~/ray_bootstrap_config.yaml" not in head:
        yield "the head does not start the others"
