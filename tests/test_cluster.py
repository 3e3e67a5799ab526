"""The cluster files, checked without a cloud: Ray's own schema, what it does not look at, and what
Ray's autoscaler would start."""

import copy
import json
import os
import re
import shlex
import subprocess
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("ray")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

from cluster.rules import complaints
from packaging.requirements import Requirement
from ray._private import services
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.ray_installer import RayInstaller
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.instance_manager_pb2 import Instance

from orchestrator.executors.cluster import (
    ClusterError,
    Machines,
    Patience,
    connect,
    evaluation_request,
    generator_request,
)
from orchestrator.runtime import Runtime

ROOT = Path(__file__).parents[1]
FILES = {
    "aws": ROOT / "cluster.yaml",
    "gcp": ROOT / "clusters" / "gcp.yaml",
    "local": ROOT / "clusters" / "local.yaml",
}
KUBERAY = ROOT / "clusters" / "kuberay.yaml"
ALL = pytest.mark.parametrize("file", FILES.values(), ids=FILES)
AUTOSCALED = pytest.mark.parametrize("name", ["aws", "gcp", "kuberay"])

GENERATION = {"generator": 1, "GPU": 1}
EVALUATION = {"CPU": 1, "evaluator": 1}
GPU_EVALUATION = {"CPU": 1, "evaluator": 1, "GPU": 0.25}

# Those fields of a RayCluster (KubeRay 1.6) that the file uses: a misspelt one is none of them.
KUBERAY_SPEC = {"rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions"}
KUBERAY_SPEC |= {"headGroupSpec", "workerGroupSpecs"}
KUBERAY_GROUP = {
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "rayStartParams",
    "template",
}


@ALL
def test_setup_can_be_repeated(file: Path, tmp_path: Path) -> None:
    """As `ray up` does when a file has changed: the profile is written once, and nothing fails."""
    (step,) = [step for step in _load(file)["setup_commands"] if ".bashrc" in step]
    profile = tmp_path / ".bashrc"
    profile.write_text("alias ll='ls -l'\n")
    for _ in range(2):
        subprocess.run(["bash", "-c", step], env={**os.environ, "HOME": str(tmp_path)}, check=True)
        export, rest = profile.read_text().splitlines()
        assert export.startswith("export PATH=~/nag-env/bin:$PATH")
        assert rest == "alias ll='ls -l'"
    assert list(tmp_path.iterdir()) == [profile]


def _load(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text())


def _objects() -> dict[str, Any]:
    """The objects of clusters/kuberay.yaml by kind."""
    return {thing["kind"]: thing for thing in yaml.safe_load_all(KUBERAY.read_text())}


def _autoscaling(name: str) -> dict[str, Any]:
    """What Ray's autoscaler makes of a file; for KubeRay by Ray's own translation."""
    if name != "kuberay":
        return prepare_config(_load(FILES[name]))
    cluster = copy.deepcopy(_objects()["RayCluster"])
    cluster["metadata"]["namespace"] = "default"  # Kubernetes fills it in
    return _derive_autoscaling_config_from_ray_cr(cluster)


def _started(name: str, queue: Sequence[Mapping[str, float]]) -> dict[str, int]:
    """Machines of each type that the autoscaler starts for these requests, besides the head."""
    config = AutoscalingConfig(_autoscaling(name), skip_content_hash=True)
    requests = [ResourceRequestUtil.make(dict(request)) for request in queue]
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count(requests),
        )
    )
    started = Counter({launch.instance_type: launch.count for launch in reply.to_launch})
    return {node_type: n for node_type, n in started.items() if "head" not in node_type}


@ALL
def test_ray_accepts_the_file(file: Path) -> None:
    validate_config(prepare_config(_load(file)))


@ALL
def test_nothing_to_complain_about(file: Path) -> None:
    assert complaints(_load(file)) == []


def _without(path: str, key: str) -> Callable[[Any], None]:
    return lambda config: _at(config, path).pop(key)


def _with(path: str, **values: Any) -> Callable[[Any], None]:
    return lambda config: _at(config, path).update(values)


def _at(config: Any, path: str) -> Any:
    for step in path.split():
        config = config[int(step) if step.isdigit() else step]
    return config


def _replacing(key: str, old: str, new: str) -> Callable[[Any], None]:
    def change(config: dict[str, Any]) -> None:
        changed = [command.replace(old, new) for command in config[key]]
        assert changed != config[key]
        config[key] = changed

    return change


OPEN = {"FromPort": 6379, "ToPort": 6379, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
EVALUATOR = "available_node_types evaluator"


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("aws", _without(f"{EVALUATOR} node_config", "InstanceType"), "InstanceType is missing"),
        ("aws", _with(f"{EVALUATOR} node_config", ImageID="x"), "ImageID is unknown"),
        ("aws", _without(f"{EVALUATOR} node_config", "InstanceMarketOptions"), "spot machines"),
        ("gcp", _without(f"{EVALUATOR} node_config", "disks"), "disks is missing"),
        ("gcp", _with(f"{EVALUATOR}-gpu node_config", scheduling={}), "cannot be moved"),
        (
            "gcp",
            _without(f"{EVALUATOR}-gpu", "initialization_commands"),
            "evaluator-gpu: Ray is started before the driver is there",
        ),
        (
            "gcp",
            _without(f"{EVALUATOR}-gpu", "initialization_commands"),
            "evaluator-gpu: Jupyter may have the port",
        ),
        (
            "gcp",
            _without(f"{EVALUATOR} node_config disks 0 initializeParams", "diskType"),
            "head: the disk is magnetic",
        ),
        ("gcp", _with("provider", availability_zone="us-west1-b"), "in another zone"),
        ("aws", _replacing("setup_commands", "--torch-backend=auto ", ""), "GPU install CUDA"),
        ("aws", _with(EVALUATOR, max_workers=9), "max_workers is not the sum"),
        ("aws", _with(EVALUATOR, min_workers=9), "min_workers is more than max_workers"),
        ("aws", _with("available_node_types head", resources={"CPU": 4}), "the head evaluates"),
        ("local", _replacing("head_start_ray_commands", "--num-cpus=0", ""), "the head evaluates"),
        ("aws", _with("provider security_group", IpPermissions=[OPEN]), "port 6379 is open"),
        ("gcp", _replacing("head_start_ray_commands", "127.0.0.1", "0.0.0.0"), "dashboard listens"),
        ("local", _replacing("setup_commands", "RAY_AUTH_MODE=token", ""), "RAY_AUTH_MODE=token"),
        ("local", _without("file_mounts", "~/.ray/auth_token"), "the token is not on the machines"),
        ("gcp", _replacing("setup_commands", "pip install", "true"), "project is not installed"),
        ("local", _replacing("worker_start_ray_commands", "unset", "echo"), "have one thread"),
        ("aws", _replacing("setup_commands", "chmod 600", "true"), "token is readable"),
        ("aws", _replacing("setup_commands", "ray==2.60.0 ", ""), "get another Ray"),
        (
            "gcp",
            _replacing("setup_commands", "--python 3.12.16", "--python 3.12"),
            "another Python",
        ),
    ],
)
def test_a_bad_file_would_be_noticed(
    name: str, change: Callable[[Any], None], complaint: str
) -> None:
    config = copy.deepcopy(_load(FILES[name]))
    change(config)
    assert any(complaint in text for text in complaints(config))


def test_a_misspelt_key_would_be_noticed() -> None:
    config = _load(FILES["aws"])
    config["available_node_types"]["evaluator"]["max_worker"] = 3
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("name", ["gcp", "local"])
def test_machines_are_set_up_alike_everywhere(name: str) -> None:
    config, aws = _load(FILES[name]), _load(FILES["aws"])
    for key in ("file_mounts", "rsync_exclude"):
        assert config[key] == aws[key]
    assert config["setup_commands"][-1] == aws["setup_commands"][-1]  # the profile
    for key in ("setup_commands", "worker_start_ray_commands"):
        assert config[key] == aws[key] or name == "local"


def test_all_files_name_the_same_ray() -> None:
    """Which is one that the project accepts: Ray refuses machines with any other."""
    files = [file.read_text() for file in (*FILES.values(), KUBERAY)]
    (version,) = set(re.findall(r"ray(?:==|:|Version: )(\d[\d.]+)", "".join(files)))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (ray,) = [r for r in map(Requirement, project["dependencies"]) if r.name == "ray"]
    assert version in ray.specifier


def test_local_cluster_uses_the_autoscaler_that_works() -> None:
    start = _load(FILES["local"])["head_start_ray_commands"][1]
    assert start.startswith("export RAY_enable_autoscaler_v2=0; ")


@AUTOSCALED
def test_an_idle_cluster_is_small(name: str) -> None:
    assert _started(name, []) == {"generator": 1, "evaluator": 1}


@AUTOSCALED
@pytest.mark.parametrize(
    ("queue", "more"),
    [
        ([GENERATION], {}),
        ([GENERATION] * 2, {"generator": 2}),
        ([EVALUATION] * 4, {}),
        ([EVALUATION] * 12, {"evaluator": 3}),
        ([EVALUATION] * 32, {"evaluator": 8}),
        ([{"CPU": 1}] * 12, {"evaluator": 3}),  # a run that began before an evaluator was there
        ([GPU_EVALUATION] * 6, {"evaluator-gpu": 2}),
        ([GENERATION] + [EVALUATION] * 4 + [GPU_EVALUATION] * 4, {"evaluator-gpu": 1}),
    ],
    ids=lambda value: None if isinstance(value, list) else str(value or "as idle"),
)
def test_what_queues_is_given_machines(
    name: str, queue: list[Mapping[str, float]], more: Mapping[str, int]
) -> None:
    assert _started(name, queue) == {"generator": 1, "evaluator": 1} | more


class NewMachine(NodeProvider):
    """A provider of one machine, and the process runner for it: it records what would be run."""

    CalledProcessError = subprocess.CalledProcessError

    def __init__(self) -> None:
        super().__init__({}, "nag")
        self.tags: dict[str, str] = {}
        self.run: list[str] = []

    def check_call(self, command: Sequence[str], **options: Any) -> int:
        (line,) = shlex.split(command[-1]) if command[0] == "ssh" else [shlex.join(command)]
        self.run.append(line)
        return 0

    def node_tags(self, node_id: str) -> dict[str, str]:
        return self.tags

    def set_node_tags(self, node_id: str, tags: Mapping[str, str]) -> None:
        self.tags.update(tags)

    def is_terminated(self, node_id: str) -> bool:
        return False

    def internal_ip(self, node_id: str) -> str:
        return "192.0.2.2"


@pytest.mark.parametrize("node_type", ["generator", "evaluator", "evaluator-gpu"])
def test_what_is_run_on_a_new_machine(
    node_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the head on Google Cloud; AWS differs only in what concerns the driver."""
    monkeypatch.setenv("HOME", str(tmp_path))
    config = prepare_config(_load(FILES["gcp"]))
    for remote in config["file_mounts"]:  # the head sends on what it was sent
        config["file_mounts"][remote] = remote
        Path(remote).expanduser().parent.mkdir(exist_ok=True)
        Path(remote).expanduser().touch()
    machine = NewMachine()
    installer = RayInstaller(machine, AutoscalingConfig(config, True), process_runner=machine)
    installer.install_ray(Instance(cloud_instance_id="1", instance_type=node_type), "192.0.2.1")
    for line in machine.run:
        subprocess.run(["bash", "-n", "-c", line], check=True)
    steps = [
        "/.ray/auth_token",
        "uv venv",
        "uv pip install",
        ".bashrc.new",
        "ray stop",
        "ray start",
    ]
    resources = config["available_node_types"][node_type]["resources"]
    if resources.get("GPU"):
        steps.insert(1, "until nvidia-smi")
    else:
        assert not any("nvidia-smi" in line for line in machine.run)
    first = [next(i for i, line in enumerate(machine.run) if step in line) for step in steps]
    assert first == sorted(first)
    start = machine.run[first[-1]]
    assert json.loads(re.search("RAY_OVERRIDE_RESOURCES='(.*?)'", start)[1]) == resources
    assert "export RAY_HEAD_IP=192.0.2.1;" in start


def test_what_ray_asks_of_aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own calls against a pretend AWS; boto3 refuses settings that EC2 does not know."""
    moto, boto3 = pytest.importorskip("moto"), pytest.importorskip("boto3")
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    monkeypatch.setenv("HOME", str(tmp_path))  # for the key
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "pretend")
    config = prepare_config(_load(FILES["aws"]))
    region, types = config["provider"]["region"], config["available_node_types"]
    for node_type in types.values():
        assert node_type["node_config"]["ImageId"] == "ami-REPLACE"
        node_type["node_config"]["ImageId"] = "ami-12c6146b"  # one of moto's
    with moto.mock_aws():
        iam, role = boto3.client("iam", region), "ray-autoscaler-v1"  # Ray would take 30 s for it
        iam.create_instance_profile(InstanceProfileName=role)
        iam.create_role(RoleName=role, AssumeRolePolicyDocument="{}")
        iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
        config = AWSNodeProvider.bootstrap_config(config)
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        started = {}
        for name, node_type in config["available_node_types"].items():
            own = config["head_node"] if name == config["head_node_type"] else {}
            (started[name],) = provider.create_node(node_type["node_config"] | own, {}, 1).values()
        assert {n: machine.instance_type for n, machine in started.items()} == {
            name: node_type["node_config"]["InstanceType"] for name, node_type in types.items()
        }
        spot = [name for name, machine in started.items() if machine.instance_lifecycle == "spot"]
        assert spot == ["evaluator", "evaluator-gpu"]
        may_start_machines = [n for n, machine in started.items() if machine.iam_instance_profile]
        assert may_start_machines == ["head"]
        for machine in started.values():
            assert [(v.size, v.volume_type) for v in machine.volumes.all()] == [(150, "gp3")]
            (group,) = machine.security_groups
            assert group["GroupName"] == "nag"
        rules = boto3.resource("ec2", region).SecurityGroup(group["GroupId"]).ip_permissions
        assert [rule["FromPort"] for rule in rules if rule["IpRanges"]] == [22]
        assert [p for rule in rules for p in rule["UserIdGroupPairs"]] == [
            {"UserId": "123456789012", "GroupId": group["GroupId"]}
        ]


def test_kuberay_cluster() -> None:
    things = _objects()
    spec = things["RayCluster"]["spec"]
    assert spec["authOptions"] == {"mode": "token", "secretName": "nag-token"}
    assert "kubectl create secret generic nag-token --from-file=auth_token=" in KUBERAY.read_text()
    assert spec["enableInTreeAutoscaling"] is True
    assert spec.keys() == KUBERAY_SPEC
    head = spec["headGroupSpec"]
    assert head.keys() == {"rayStartParams", "template"}
    assert all(group.keys() == KUBERAY_GROUP for group in spec["workerGroupSpecs"])
    assert head["rayStartParams"] == {"num-cpus": "0", "dashboard-host": "127.0.0.1"}
    policy = things["NetworkPolicy"]["spec"]
    ours = {"matchLabels": {"ray.io/cluster": things["RayCluster"]["metadata"]["name"]}}
    assert policy["podSelector"] == ours
    assert policy["ingress"] == [{"from": [{"podSelector": ours}]}]
    claim = things["PersistentVolumeClaim"]["metadata"]["name"]
    for group in (head, *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        on_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert [t["key"] for t in pod.get("tolerations", [])] == ["nvidia.com/gpu"] * on_gpu
        assert {"name": "LD_LIBRARY_PATH", "value": "/usr/local/nvidia/lib64"} in container["env"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert pod["securityContext"] == {"fsGroup": 100}, "who writes to the volume"
        assert pod["volumes"] == [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]
        assert container["volumeMounts"] == [{"name": "data", "mountPath": "/data"}]
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_kuberay_groups_are_the_node_types_of_the_other_files() -> None:
    kuberay, aws = (_autoscaling(name)["available_node_types"] for name in ("kuberay", "aws"))
    for name in ("generator", "evaluator", "evaluator-gpu"):
        for key in ("min_workers", "max_workers"):
            assert kuberay[name][key] == aws[name][key]
        ours, theirs = (dict(types[name]["resources"]) for types in (kuberay, aws))
        ours.pop("memory")  # KubeRay knows that of a pod
        assert ours == theirs


def test_the_executor_asks_for_these_roles() -> None:
    resources = {"CPU": 4, "GPU": 1, "generator": 1, "evaluator": 4}  # of an idle cluster
    assert generator_request(resources, Runtime()) == (GENERATION, "cuda")
    assert evaluation_request(resources, Runtime(), 0.0) == EVALUATION
    shared = Runtime(generator_gpus=0.5)
    assert generator_request(resources, shared) == (GENERATION | {"GPU": 0.5}, "cuda")
    assert evaluation_request(resources, shared, 0.25) == GPU_EVALUATION
    assert generator_request(resources, Runtime(device="cpu")) == ({"generator": 1}, "cpu")


def test_a_cluster_without_roles_and_gpus() -> None:
    assert generator_request({"CPU": 2}, Runtime()) == ({}, "cpu")
    assert evaluation_request({"CPU": 2}, Runtime(cpus_per_eval=0.5), 0.0) == {"CPU": 0.5}
    with pytest.raises(ClusterError, match="--device cuda: the cluster has no GPU"):
        generator_request({"CPU": 2}, Runtime(device="cuda"))


SMALL, BIG = {"CPU": 64.0}, {"CPU": 8.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("request_", "held", "expected"),
    [
        ({"CPU": 1}, [{}], 72),
        ({"CPU": 1}, [{"GPU": 1}], 72),
        ({"CPU": 1, "GPU": 0.25}, [], 4),
        ({"CPU": 1, "GPU": 0.25}, [{"GPU": 0.5}], 2),
        ({"CPU": 1, "GPU": 0.25}, [{"GPU": 0.25}] * 3, 1),
        ({"CPU": 1, "GPU": 0.25}, [{"GPU": 1}] * 2, 0),  # one of them is not there yet
        ({"CPU": 8, "GPU": 0.5}, [{"GPU": 0.5}], 1),  # of which the CPUs are the limit
        ({"CPU": 1, "GPU": 0.25}, [{"GPU": 0.0}], 4),
        ({"CPU": 1, "evaluator": 1}, [], 0),
    ],
)
def test_room_for_evaluations_besides_generators(
    request_: dict[str, float], held: list[dict[str, float]], expected: int
) -> None:
    assert Machines((SMALL, BIG)).room(request_, held) == expected


def test_the_generator_is_where_it_costs_least() -> None:
    two = Machines((BIG, BIG | {"GPU": 2.0, "CPU": 4.0}))
    assert two.room({"CPU": 1, "GPU": 0.25}, [{"GPU": 1}]) == 8  # 4 + 4: the CPUs of the second
    assert two.room({"CPU": 1, "GPU": 0.25}, [{"GPU": 1}] * 2) == 4


def test_what_must_be_alone_asks_for_what_one_machine_has() -> None:
    """Not for the CPUs of one and the GPU of another, nor for a GPU that the generator shares."""
    machines = Machines((SMALL, BIG))
    assert machines.alone({"CPU": 1}, {}) == {"CPU": 64}
    assert machines.alone({"CPU": 1, "GPU": 0.25}, {}) == {"CPU": 8, "GPU": 1}
    assert machines.alone({"CPU": 1, "GPU": 0.25}, {"GPU": 0.5}) == {"CPU": 8, "GPU": 0.5}


@pytest.mark.parametrize("usable", [True, False])
def test_a_ray_of_our_own_has_the_gpus_that_pytorch_can_use(
    usable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray also counts Apple's, on which the generator could not start."""
    asked: dict[str, Any] = {}

    def init(**options: Any) -> None:
        asked.update(options)
        raise RuntimeError("that is enough")

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("torch.cuda.is_available", lambda: usable)
    with pytest.raises(ClusterError, match="that is enough"):
        connect(Runtime(auth="disabled"))
    assert asked["num_gpus"] == (None if usable else 0)


def test_a_kept_process_may_be_given_another_gpu_where_there_are_several() -> None:
    one, eight = Machines((SMALL, BIG)), Machines((BIG, BIG | {"GPU": 8.0}))
    for share in (0.25, 1, 8):
        assert not one.may_move({"CPU": 1, "GPU": share})
        assert eight.may_move({"CPU": 1, "GPU": share}) == (share < 8)
    assert not eight.may_move({"CPU": 1})


def test_what_a_machine_lacks_is_said_in_words() -> None:
    lost = Machines(({"CPU": 0.0}, SMALL))
    assert lost.lack("an evaluation", {"CPU": 1}, [{}]) is None
    assert lost.lack("the generator", {}) is None  # it reserves nothing where there is no GPU
    assert lost.lack("the generator", {"GPU": 0.5, "generator": 1}) == (
        "no machine has room: the generator needs 0.5 GPU, 1 generator; "
        "the cluster has 0 GPU, 0 generator"
    )
    assert Machines((BIG,)).lack("an evaluation", {"CPU": 1, "GPU": 0.25}, [{"GPU": 1}]) == (
        "no machine has room: an evaluation needs 1 CPU, 0.25 GPU in addition to the generator's "
        "1 GPU; the cluster has 8 CPU, 1 GPU"
    )


def test_patience_ends_after_ten_minutes_without_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    at = [0.0]
    monkeypatch.setattr("orchestrator.executors.cluster.monotonic", lambda: at[0])
    patience = Patience()
    for second, lack in ((0, "no room"), (599, "no room"), (599.5, None), (650, "no room")):
        at[0] = second
        patience.look(lack)
    at[0] = 1250
    patience.look("no room")
    at[0] = 1251
    with pytest.raises(ClusterError, match=r"^no room$"):
        patience.look("no room")
    warning = "no room: waiting up to 10 minutes for a machine"
    assert caplog.messages == [warning] * 2  # once for each wait


@pytest.mark.parametrize(("after", "said"), [(100.0, "started"), (1e9, "gave up after 120 s")])
def test_a_busy_machine_has_two_minutes_to_start_ray(
    monkeypatch: pytest.MonkeyPatch, after: float, said: str
) -> None:
    """Ray asks for its new node, and gives up if that fails after the first 30 s."""
    at = [0.0]

    def sleep(seconds: float) -> None:
        at[0] += seconds

    def get_node(gcs_address: str, node_id: str) -> None:
        if at[0] < after:
            raise RuntimeError("not yet")

    def init(**options: Any) -> None:
        try:
            services.get_node("127.0.0.1:6379", "0")
        except RuntimeError:
            raise Exception(f"gave up after {at[0]:.0f} s") from None
        raise Exception("started")

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr("orchestrator.executors.cluster.monotonic", lambda: at[0])
    monkeypatch.setattr("orchestrator.executors.cluster.sleep", sleep)
    monkeypatch.setattr(services, "get_node", get_node)
    monkeypatch.setattr("ray.init", init)
    with pytest.raises(ClusterError, match=f"^cannot use Ray at this machine: {said}$"):
        connect(Runtime())
