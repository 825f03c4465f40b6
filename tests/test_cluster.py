"""What is asked of a cluster, and what is told where there is none."""

from __future__ import annotations

import socket
import sys

import pytest

from segue import cluster
from segue.cluster import Places


@pytest.mark.parametrize(
    ("found", "number", "cpus", "device", "places"),
    [
        ({"CPU": 8}, None, 1, None, Places(8, 1, 0)),
        ({"CPU": 8}, None, 3, None, Places(2, 3, 0)),
        ({"CPU": 8}, 4, 2, "cpu", Places(4, 2, 0)),
        ({"CPU": 8, "GPU": 2}, None, 1, None, Places(2, 1, 1)),
        ({"CPU": 8, "GPU": 2}, None, 1, "cpu", Places(8, 1, 0)),
        ({"CPU": 8, "GPU": 4}, 3, 1, "cuda:1", Places(3, 1, 1)),
        ({"CPU": 2, "GPU": 4}, None, 2, "cuda", Places(1, 2, 1)),
    ],
)
def test_as_many_as_fit(
    found: dict[str, float], number: int | None, cpus: int, device: str | None, places: Places
) -> None:
    assert cluster._places(found, number, cpus, device) == places
    assert places.options() == {"num_cpus": cpus, "num_gpus": places.gpus}
    assert places.device(device) == ("cuda" if places.gpus else device)


@pytest.mark.parametrize(
    ("found", "number", "cpus", "device", "told"),
    [
        (
            {"CPU": 2},
            3,
            1,
            None,
            "of 2 CPUs and 0 GPUs has room for 1 CPU 2 times, and 3 times is wanted",
        ),
        ({"CPU": 2}, None, 4, None, "for 4 CPUs 0 times, and 1 times is wanted: ask for fewer, for fewer cores"),
        ({"CPU": 8, "GPU": 1}, 2, 1, None, "for 1 CPU and a GPU 1 times, and 2 times"),
        ({"CPU": 8}, None, 1, "cuda", "or for device cpu"),
        ({}, None, 1, None, "0 CPUs and 0 GPUs"),
    ],
)
def test_what_does_not_fit(
    found: dict[str, float], number: int | None, cpus: int, device: str | None, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        cluster._places(found, number, cpus, device)


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segue.models.engine.free_memory", lambda: 8000)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert [cluster.kv_budget(None, cpus) for cpus in (1, 2, 4, 9)] == [1000, 2000, 4000, 4000]
    assert cluster.kv_budget(5, 1) == 5
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert cluster.kv_budget(None, 1) is None


@pytest.mark.filterwarnings("ignore")  # of Ray, as it is imported
@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("nobody", "'nobody' is not the address of a cluster: give HOST:PORT, or auto"),
        ("ray://127.0.0.1:10001", "Ray's client"),
        ("127.0.0.1:port", "there is no cluster of Ray at '127.0.0.1:port'"),
        ("127.0.0.1:99999", "there is no cluster of Ray at '127.0.0.1:99999'"),
        (None, "0 processes are not possible: at least 1"),
    ],
)
def test_addresses_where_nothing_is(address: str | None, told: str) -> None:
    number = 0 if address is None else 1
    with pytest.raises(ValueError, match=told), cluster.connected(address, number, 1, None):
        raise AssertionError("connected")


@pytest.mark.filterwarnings("ignore")
def test_a_process_of_more_cores_than_the_machine_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.os, "cpu_count", lambda: 2)
    with pytest.raises(ValueError, match="3 cores for each process are more than the 2 of this machine"):
        cluster.connected(None, 1, 3, None).__enter__()


@pytest.mark.filterwarnings("ignore")
def test_a_port_where_nobody_listens_is_told_at_once() -> None:
    with socket.socket() as probe:  # bound, but not listening
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(ValueError, match="Connection refused"), cluster.connected(address, 1, 1, None):
            raise AssertionError("connected")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(ValueError, match=r'pip install "segue\[ray\]"'):
        cluster.check_library()
