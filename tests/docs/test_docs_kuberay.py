"""The manifest that the fleet's guide ships: KubeRay's fields, and a command that edgeclean takes.

The fields are those of KubeRay's interface, ray.io/v1, that the manifest uses or could; others are
dropped or refused.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterable
from typing import Any

import pytest
import typer
import yaml
from written_pages import ROOT

from edgeclean import cli
from edgeclean.fleet.local_engine import GIB, JOB_BYTES
from edgeclean.fleet.ray_engine import OLDEST

GUIDES = ROOT / "docs" / "guides"
JOB = {
    *("entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
    *("rayClusterSpec", "activeDeadlineSeconds", "submissionMode", "runtimeEnvYAML", "suspend"),
}
CLUSTER = {
    *("rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions"),
    *("headGroupSpec", "workerGroupSpecs", "suspend", "headServiceAnnotations"),
}
AUTOSCALER = {"idleTimeoutSeconds", "upscalingMode", "resources", "image", "imagePullPolicy"}
HEAD = {"rayStartParams", "template", "serviceType", "enableIngress", "headService"}
WORKERS = {
    *("groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts"),
    *("rayStartParams", "template", "scaleStrategy", "idleTimeoutSeconds"),
}
UNITS = {"Mi": 2**20, "Gi": 2**30}
OBJECTS = 0.3  # of a node's memory that Ray keeps for its objects


@pytest.fixture(scope="module")
def job() -> Any:
    return yaml.safe_load((GUIDES / "fleet-kuberay.yaml").read_text("utf-8"))


def container(group: Any) -> Any:
    """The one container of a group."""
    (one,) = group["template"]["spec"]["containers"]
    return one


def size(text: str) -> int:
    return int(text[:-2]) * UNITS[text[-2:]]


def unknown(table: Any, fields: Iterable[str]) -> set[str]:
    return set(table) - set(fields)


def test_every_field_is_one_of_kuberays(job: Any) -> None:
    assert set(job) == {"apiVersion", "kind", "metadata", "spec"}
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert unknown(job["spec"], JOB) == set()
    assert unknown(cluster, CLUSTER) == set()
    assert unknown(cluster["autoscalerOptions"], AUTOSCALER) == set()
    assert cluster["authOptions"] == {"mode": "token"}
    assert unknown(cluster["headGroupSpec"], HEAD) == set()
    for group in cluster["workerGroupSpecs"]:
        assert unknown(group, WORKERS) == set()
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert container(group)["resources"]["requests"] == container(group)["resources"]["limits"]


def test_its_command_is_one_and_writes_where_it_outlives_the_head(job: Any) -> None:
    program, name, *words = shlex.split(job["spec"]["entrypoint"])
    assert (program, name) == ("edgeclean", "fleet")
    command = typer.main.get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    given = command.make_context(name, words).params
    assert (given["engine"], given["address"]) == ("ray", "auto")
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]
    claimed = {
        one["name"]
        for one in head["template"]["spec"]["volumes"]
        if "claimName" in one["persistentVolumeClaim"]
    }
    mounts = {one["mountPath"]: one for one in container(head)["volumeMounts"]}
    assert {one["name"] for one in mounts.values()} == claimed
    for place, written in (("catalogue", False), ("output", True), ("cache", True)):
        (mount,) = [one for path, one in mounts.items() if str(given[place]).startswith(f"{path}/")]
        assert mount.get("readOnly", False) is not written
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        assert "volumes" not in group["template"]["spec"]
        assert "volumeMounts" not in container(group)


def test_a_task_fits_each_processor_of_a_worker_and_none_the_head(job: Any) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        limits = container(group)["resources"]["limits"]
        assert int(limits["cpu"]) * JOB_BYTES <= (1 - OBJECTS) * size(limits["memory"])
    assert size(container(cluster["headGroupSpec"])["resources"]["limits"]["memory"]) >= 4 * GIB


def test_its_ray_is_that_of_the_image_and_knows_tokens(job: Any) -> None:
    version = job["spec"]["rayClusterSpec"]["rayVersion"]
    guide = (GUIDES / "fleet.md").read_text("utf-8")
    assert re.findall(r"^FROM rayproject/ray:([\d.]+)-py\d+$", guide, re.MULTILINE) == [version]
    assert tuple(map(int, version.split(".")[:2])) >= OLDEST
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (wanted,) = project["optional-dependencies"]["ray"]
    assert wanted == f"ray>={OLDEST[0]}.{OLDEST[1]},<3"
