"""Search spaces by name. To add one, write its module and register it in SPACES."""

from nag.spaces.base import (
    ABSENT,
    Architecture,
    InvalidArchitectureError,
    SearchSpace,
    Stage,
    StagedSpace,
)
from nag.spaces.mobilenetv3 import MOBILENETV3
from nag.spaces.nasbench201 import NASBENCH201
from nag.spaces.toy import TOY

SPACES: dict[str, StagedSpace] = {space.name: space for space in (MOBILENETV3, NASBENCH201, TOY)}

__all__ = [
    "ABSENT",
    "SPACES",
    "Architecture",
    "InvalidArchitectureError",
    "SearchSpace",
    "Stage",
    "StagedSpace",
]
