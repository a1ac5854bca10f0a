"""Settings are validated once, and places follow from them."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from taskpool import config
from taskpool.errors import InvalidSettings


def test_defaults() -> None:
    settings = config.settings("/tmp/x.db")
    assert settings.workers == config.usable_cpus()
    assert (settings.durability, settings.on_owner_death, settings.cancel_grace_s) == ("power", "stop", 5.0)
    assert config.settings("/tmp/x.db", private=True).durability == "process"
    assert config.settings("/tmp/x.db", private=True, durability="power").durability == "power"
    assert config.settings("/tmp/x.db", cancel_grace=timedelta(minutes=1)).cancel_grace_s == 60.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": 0},
        {"workers": 2.5},
        {"workers": True},
        {"workers": 10**6},
        {"durability": "none"},
        {"on_owner_death": "cry"},
        {"cancel_grace": -1},
        {"owner_grace": float("inf")},
        {"drain_grace": "30"},
        {"poll_interval": 0},
        {"poll_interval": "1s"},
    ],
)
def test_bad_values_are_named(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(InvalidSettings, match=name):
        config.settings("/tmp/x.db", **wrong)
    assert issubclass(InvalidSettings, ValueError)


def test_a_store_is_a_path_or_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert config.store_path("pricing.db") == tmp_path / "pricing.db"
    assert config.store_path("./pricing") == tmp_path / "pricing"
    assert config.store_path(Path("pricing")) == tmp_path / "pricing"
    assert config.store_path("pricing") == tmp_path / "data" / "taskpool" / "pricing.db"
    assert (tmp_path / "data" / "taskpool").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link.db").symlink_to(tmp_path / "real.db")
    assert config.store_path("link.db") == tmp_path / "real.db"


@pytest.mark.parametrize("wrong", ["", ":memory:", "file:x.db?mode=ro", "a\0b.db", "na me", ".", "/tmp", "…"])
def test_what_is_no_store(wrong: str) -> None:
    with pytest.raises(InvalidSettings):
        config.store_path(wrong)


def test_the_socket_lies_beside_its_store_unless_the_path_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.socket_path("/srv/x.db") == Path("/srv/x.db.d/run/sock")
    long = Path("/srv", "d" * 100, "x.db")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path)[:60] if len(str(tmp_path)) <= 60 else "/tmp")
    short = config.socket_path(long)
    assert short.parent.name == "taskpool"
    assert len(os.fsencode(short)) <= config.SOCKET_PATH_BYTES_MAX
    assert short == config.socket_path(long)
    assert short != config.socket_path(long.with_name("y.db"))
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert config.socket_path(long).parent == Path(f"/tmp/taskpool-{os.geteuid()}")


def test_quota_of_version_2_of_any_group_above(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/user.slice/app.scope\n")
    mount = tmp_path / "fs"
    inner = mount / "user.slice" / "app.scope"
    inner.mkdir(parents=True)
    assert config.cgroup_cpus(membership, mount) is None
    (inner / "cpu.max").write_text("max 100000\n")
    assert config.cgroup_cpus(membership, mount) is None
    (mount / "user.slice" / "cpu.max").write_text("150000 100000\n")
    assert config.cgroup_cpus(membership, mount) == 1.5
    (inner / "cpu.max").write_text("50000 100000\n")
    assert config.cgroup_cpus(membership, mount) == 0.5


def test_quota_of_version_1_also_inside_a_container(tmp_path: Path) -> None:
    """There the group's path does not exist below the mount, whose root is the group."""
    membership = tmp_path / "cgroup"
    membership.write_text("4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n")
    mount = tmp_path / "fs"
    root = mount / "cpu,cpuacct"
    root.mkdir(parents=True)
    (root / "cpu.cfs_quota_us").write_text("-1\n")
    (root / "cpu.cfs_period_us").write_text("100000\n")
    assert config.cgroup_cpus(membership, mount) is None
    (root / "cpu.cfs_quota_us").write_text("250000\n")
    assert config.cgroup_cpus(membership, mount) == 2.5


def test_affinity_bounds_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "cgroup_cpus", lambda membership, mount: 0.5)
    assert config.usable_cpus() == 1
    monkeypatch.setattr(config, "cgroup_cpus", lambda membership, mount: 1000.0)
    assert config.usable_cpus() == len(os.sched_getaffinity(0))


def test_a_working_directory_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(InvalidSettings, match=r"x\.db: the working directory is gone"):
        config.store_path("x.db")
    assert config.store_path(tmp_path / "x.db") == tmp_path / "x.db"
