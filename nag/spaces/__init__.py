"""Search spaces by name. To add one, write its module and register it in SPACES, or in a plugin.

A plugin is a module of another package, named as an entry point of the group `diffusionnag_bo`. It
is imported before a space is looked up, and may also register evaluators and properties.
"""

from functools import cache
from importlib.metadata import entry_points

from nag.errors import choose
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


def find_space(name: str) -> StagedSpace:
    """The search space called `name`; raises UserError."""
    _load_plugins()
    return SPACES[choose("space", name, SPACES)]


@cache
def _load_plugins() -> None:
    for plugin in entry_points(group="diffusionnag_bo"):
        plugin.load()


__all__ = [
    "ABSENT",
    "SPACES",
    "Architecture",
    "InvalidArchitectureError",
    "SearchSpace",
    "Stage",
    "StagedSpace",
    "find_space",
]
