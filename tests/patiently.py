"""Runs a script on machines with other things to do: `python patiently.py SCRIPT ARGUMENTS`.

Ray has two minutes to start, as with this project's commands, not half a minute.
"""

import runpy
import sys
from unittest.mock import patch

from ray._private import services

from orchestrator.executors.cluster import _patient

if __name__ == "__main__":
    del sys.argv[0]
    with patch.object(services, "get_node", _patient(services.get_node)):
        runpy.run_path(sys.argv[0], run_name="__main__")
