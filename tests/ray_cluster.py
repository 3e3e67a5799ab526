"""Ray's own test cluster, for machines with other things to do."""

from typing import Any
from unittest.mock import patch

from ray._private import services
from ray.cluster_utils import Cluster

from orchestrator.executors.cluster import _patient


class PatientCluster(Cluster):
    """Without a dashboard; waits two minutes for each of its machines, not half a minute."""

    def __init__(self, **head: Any) -> None:
        super().__init__(initialize_head=True, head_node_args={"include_dashboard": False, **head})

    def add_node(self, **settings: Any) -> Any:
        with patch.object(services, "get_node", _patient(services.get_node)):
            return super().add_node(**settings)
