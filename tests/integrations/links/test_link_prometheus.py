"""Prometheus: what is served, what is in the text file, and that no label grows with the checkpoints."""

from __future__ import annotations

import socket
import urllib.request

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from ckpt_core import CheckpointManager, CkptError, KeepLast, UsageError, hook
from ckpt_core.hooks import HookEvent
from ckpt_links import PrometheusLink


def samples(text):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@hook(HookEvent.BEFORE_SAVE)
def no_third(context):
    return context.step != 3


def train(store, *hooks, steps=4):
    with CheckpointManager(
        store, experiment="x", metric="loss", hooks=hooks, retention=[KeepLast(2)]
    ) as manager:
        for step in range(1, steps + 1):
            manager.save({"w": np.full(1000, step)}, step=step, metrics={"loss": 1 / step}).exception()
        manager.wait()
        manager.load("latest")


def test_what_is_served_is_what_happened(store_path):
    link = PrometheusLink(port=0)
    try:
        train(store_path, link, no_third)
        with urllib.request.urlopen(f"http://127.0.0.1:{link.port}/metrics", timeout=10) as answer:
            found = samples(answer.read().decode())
    finally:
        link.close()
    assert found["ckpt_saves_total", "x", "saved"] == 3
    assert ("ckpt_saves_total", "x", "failed") not in found  # one that was refused is no failure
    assert found["ckpt_logical_bytes_total", "x"] == 24_000
    assert 24_000 < found["ckpt_written_bytes_total", "x"] < 50_000  # headers, too
    assert found["ckpt_save_seconds_count", "x"] == 3
    assert 0 < found["ckpt_save_seconds_sum", "x"] < 60
    assert found["ckpt_last_save_step", "x"] == found["ckpt_best_step", "x"] == 4
    assert found["ckpt_last_save_timestamp_seconds", "x"] > 1.7e9
    assert found["ckpt_checkpoint_metric", "x", "loss"] == 0.25
    assert found["ckpt_loads_total", "x", "loaded"] == 1
    assert found["ckpt_deleted_checkpoints_total", "x"] == 1


def test_a_text_file_is_whole_at_any_time(store_path, tmp_path):
    path = tmp_path / "ckpt.prom"
    train(store_path, PrometheusLink(textfile=path), steps=2)
    text = path.read_text()
    assert samples(text)["ckpt_saves_total", "x", "saved"] == 2
    assert [found.name for found in tmp_path.iterdir() if found.suffix != ""] == ["ckpt.prom"]


def test_the_number_of_series_does_not_grow_with_the_checkpoints(store_path, tmp_path):
    registry = CollectorRegistry()
    link = PrometheusLink(registry=registry)
    counts = []
    for steps in (2, 6):
        train(tmp_path / f"store-{steps}", link, steps=steps)
        counts.append(sum(len(family.samples) for family in registry.collect()))
    assert counts[1] - counts[0] <= 2  # deletions came along: its counter, and when that was made


@pytest.mark.parametrize("options", [{}, {"textfile": "ckpt.txt"}])
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(UsageError):
        PrometheusLink(**options)


def test_a_port_that_is_taken_is_told(store_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        link = PrometheusLink(port=taken.getsockname()[1])
        for _ in range(2):  # nor is the experiment locked by a manager that there never was
            with pytest.raises(UsageError, match="choose another port"):
                CheckpointManager(store_path, experiment="x", hooks=[link], exclusive=True)


def test_a_text_file_that_cannot_be_written_touches_no_save(store_path, tmp_path, caplog):
    train(store_path, PrometheusLink(textfile=tmp_path / "nowhere" / "ckpt.prom"), steps=2)
    assert "hook PrometheusLink raised" in caplog.text
    with CheckpointManager(store_path, experiment="x") as manager:
        assert [found.step for found in manager.checkpoints()] == [1, 2]


def test_one_that_a_file_names_serves_as_long_as_its_manager_is_open(store_path, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "ckpt.toml").write_text(f'[[hooks]]\nuse = "prometheus"\nport = {port}\n')
    for _ in range(2):
        with (
            CheckpointManager(store_path, experiment="x", hooks_file=tmp_path / "ckpt.toml"),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer,
        ):
            assert b"ckpt_preemptions" in answer.read()


@pytest.mark.parametrize("fails", ["another hook", "the same port", "the catalog"])
def test_a_manager_that_cannot_be_made_serves_nothing(store_path, tmp_path, fails):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    entry = f'[[hooks]]\nuse = "prometheus"\nport = {port}\n'
    text = entry + {"another hook": '[[hooks]]\nuse = "nothing"\n', "the same port": entry}.get(fails, "")
    (tmp_path / "ckpt.toml").write_text(text)
    with pytest.raises(CkptError):
        CheckpointManager(
            store_path,
            experiment="x",
            hooks_file=tmp_path / "ckpt.toml",
            catalog="nothing://of/the/kind" if fails == "the catalog" else None,
        )
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)
