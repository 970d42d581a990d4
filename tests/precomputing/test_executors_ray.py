"""Ray: the same set by actors on two nodes of this machine, which are lost meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from on_executors import UNITS, job, killing, of_ray, slow, write_rows
from same_set import contents
from tables import TableTeacher

from softlabels.precomputing import on_ray
from softlabels.precomputing.executors import Ray
from softlabels.verifying.verify import verify

pytestmark = pytest.mark.slow

# Read when it is imported.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # else it warns, which is an error here
ray = pytest.importorskip("ray")

LIMIT_S = 300.0
HALF = {"CPU": 0.5}


@pytest.fixture(scope="module", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    until = time.monotonic() + 30
    while of_ray() and time.monotonic() < until:
        time.sleep(0.2)
    assert [process.cmdline() for process in of_ray()] == []


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: str) -> Path:
    return job(data, tmp_path_factory.mktemp("sets") / "whole").root


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes of a CPU each, which notice within seconds that one is lost."""
    from ray.cluster_utils import Cluster

    config = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 500,
        "health_check_timeout_ms": 500,
        "health_check_failure_threshold": 3,
    }
    node = {"node_ip_address": "127.0.0.1", "object_store_memory": 80 << 20, "num_cpus": 1}
    made = Cluster(
        initialize_head=True,
        head_node_args={**node, "_system_config": config, "include_dashboard": False},
    )
    try:
        made.add_node(**node)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def check_same(found: Path, expected: Path) -> None:
    assert contents(found) == contents(expected)
    assert verify(found).findings == ()


def test_two_nodes_make_the_same_set_while_an_actor_is_killed(
    tmp_path: Path, data: str, whole: Path, cluster: Any
) -> None:
    terminated = signal.getsignal(signal.SIGTERM)
    marker = tmp_path / "killed"
    how = Ray(actors=3, address=cluster.address, resources=HALF)
    teacher = TableTeacher(wrong=partial(killing, marker))
    labels = job(data, tmp_path / "set", executor=how, teacher=teacher)
    assert labels.finished
    assert marker.exists()
    check_same(tmp_path / "set", whole)
    assert signal.getsignal(signal.SIGTERM) is terminated
    assert not ray.is_initialized()


def test_a_lost_node_gives_its_units_to_the_actors_of_another(
    tmp_path: Path, data: str, whole: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, lost = tmp_path / "set", []
    take = on_ray._Crew._take

    def losing(crew: Any, ref: Any) -> Iterator[Any]:
        for done in take(crew, ref):
            yield done
            if not lost and sum(member.ready for member in crew._members) == 2:
                lost.append(cluster.worker_nodes.copy().pop())
                cluster.remove_node(lost[0], allow_graceful=False)

    monkeypatch.setattr(on_ray._Crew, "_take", losing)
    how = Ray(actors=2, address=cluster.address, resources={"CPU": 0.6})
    job(data, out, executor=how, teacher=TableTeacher(wrong=partial(slow, 0.2)))
    assert lost
    check_same(out, whole)


ALONE = """
import os, sys
from on_executors import TableTeacher, always_killing, job, listening, of_ray
from pathlib import Path
from softlabels.errors import LabellingError
from softlabels.precomputing import hand_out, on_ray
from softlabels.precomputing.executors import Ray

data, out = sys.argv[1], Path(sys.argv[2])
take = on_ray._Crew._take
heard = []

def looking(crew, ref):
    if not heard:
        heard.extend([os.environ["RAY_AUTH_MODE"], *listening(of_ray())])
    yield from take(crew, ref)

on_ray._Crew._take, hand_out.TRIES = looking, 1
job(data, out, executor=Ray(actors=2))
print("said", *heard, "RAY_AUTH_MODE" in os.environ, "ray" in sys.modules)
for how, teacher in [
    (Ray(), TableTeacher(wrong=always_killing)),
    (Ray(resources={"CPU": 99}, patience_s=1), None),
]:
    try:
        job(data, out.with_name("no"), executor=how, teacher=teacher)
    except LabellingError as error:
        print("said", error)
print("said", len(of_ray()))
"""


def test_without_an_address_a_cluster_lives_here_alone_and_no_longer_than_the_job(
    tmp_path: Path, data: str, whole: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, data, tmp_path / "set"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    said = [line[5:] for line in done.stdout.splitlines() if line.startswith("said ")]
    heard, survived, room, left = said
    assert heard == "token 127.0.0.1 False True"
    assert re.search(r"work unit \d+ .*each ended; the last one was lost", survived)
    assert re.search(r"room for no actor: each wants 99 CPU.*--resources", room)
    assert left == "0"
    check_same(tmp_path / "set", whole)


def test_a_killed_driver_takes_its_own_cluster_with_it_and_can_be_begun_again(
    tmp_path: Path, data: str, whole: Path
) -> None:
    out = tmp_path / "set"
    script = Path(__file__).with_name("on_executors.py")
    options = json.dumps({"executor": "ray", "workers": 2, "slow": 0.2})
    command = [sys.executable, str(script), data, str(out), options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as driver:
        until = time.monotonic() + LIMIT_S
        while len(list(out.glob("data/*.parquet"))) < 2 and time.monotonic() < until:
            assert driver.poll() is None, driver.communicate()
            time.sleep(0.05)
        # Ray's own agents notice a minute later.
        agents = [process for process in of_ray() if "Agent" in process.cmdline()[0]]
        others = [process for process in of_ray() if process not in agents]
        driver.kill()
        driver.communicate(timeout=LIMIT_S)
    _, alive = psutil.wait_procs(others, timeout=30)
    assert [process.cmdline() for process in alive] == []
    for agent in agents:
        agent.kill()
    before = {path: path.stat().st_mtime_ns for path in out.glob("data/*.parquet")}
    assert 2 <= len(before) < UNITS
    job(data, out)
    check_same(out, whole)
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())
