"""`python -m orchestrator.dashboards`: configure Prometheus and Grafana to show runs."""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from cyclopts import Parameter

from nag.cli import command_line, plain_console, run
from nag.errors import UserError
from nag.files import write_bytes, write_text

app = command_line(
    "python -m orchestrator.dashboards",
    "python -m orchestrator.dashboards --out /tmp/ray/session_latest/metrics",
)

_TARGET = r"([\w.-]+|\[[\da-fA-F:.]+\]):\d+"
_PROMETHEUS = "http://127.0.0.1:9090"
_SCRAPE_INTERVAL = "10s"  # as often as Ray reports
_RAYS_TARGETS = "/tmp/ray/prom_metrics_service_discovery.json"  # kept by the last Ray started here


@app.default
def main(
    *,
    out: Path,
    target: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    prometheus: str = _PROMETHEUS,
) -> None:
    """Write a Grafana dashboard for runs, and the configuration files needed to show it.

    The layout is that of Ray's own configuration in SESSION/metrics. Existing configuration files
    are kept, so if OUT is that folder, the dashboard appears among Ray's own.

    Parameters
    ----------
    out
        Folder to write to.
    target
        HOST:PORT that serves metrics, for instance 127.0.0.1 and the --metrics-port of a run; may
        be repeated. By default all machines of the last cluster whose head was started here.
    prometheus
        Address at which Grafana finds Prometheus.
    """
    for one in target:
        if not re.fullmatch(_TARGET, one) or not _is_address(f"http://{one}"):
            raise UserError(f"--target {one!r} must be HOST:PORT")
    if not _is_address(prometheus):
        raise UserError(f"--prometheus {prometheus!r} must be http://HOST:PORT or https://HOST")
    console = plain_console(stderr=False)
    grafana = out.resolve() / "grafana"
    dashboards, provisioning = grafana / "dashboards", grafana / "provisioning"
    for path, content, asked in (
        (out / "prometheus" / "prometheus.yml", _prometheus(target), target and "--target"),
        (
            provisioning / "datasources" / "default.yml",
            _datasources(prometheus),
            prometheus != _PROMETHEUS and "--prometheus",
        ),
        (provisioning / "dashboards" / "default.yml", _providers(dashboards), None),
    ):
        text = json.dumps(content, indent=1) + "\n"  # JSON is YAML
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
            console.print(f"wrote {path}")
        elif asked and path.read_text() != text:
            raise UserError(f"{path} exists and differs from {asked}: delete or edit it")
        else:
            console.print(f"kept {path}")
    dashboards.mkdir(exist_ok=True)
    write_bytes(dashboards / "nag.json", files(__package__).joinpath("nag.json").read_bytes())
    console.print(f"wrote {dashboards / 'nag.json'}")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # invalid port
        return False


def _prometheus(targets: tuple[str, ...]) -> dict[str, Any]:
    where = (
        {"static_configs": [{"targets": list(targets)}]}
        if targets
        else {"file_sd_configs": [{"files": [_RAYS_TARGETS]}]}
    )
    return {
        "global": {"scrape_interval": _SCRAPE_INTERVAL},
        "scrape_configs": [{"job_name": "ray", **where}],
    }


def _datasources(url: str) -> dict[str, Any]:
    source = {"name": "Prometheus", "type": "prometheus", "url": url, "isDefault": True}
    return {"apiVersion": 1, "datasources": [{**source, "access": "proxy"}]}


def _providers(folder: Path) -> dict[str, Any]:
    provider = {"name": "nag", "type": "file", "options": {"path": str(folder)}}
    return {"apiVersion": 1, "providers": [provider]}


if __name__ == "__main__":
    run(app)
