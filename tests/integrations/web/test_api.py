"""What the API answers: lists, documents, differences, bytes and ranges, tags; and how it fails."""

from __future__ import annotations

import inspect
import io
import json
import runpy
import sys
import types
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click import Context
from click.testing import CliRunner
from safetensors.numpy import load as load_safetensors
from starlette.testclient import TestClient

from ckpt_core import BaseAPI, CheckpointManager, Workspace
from ckpt_core.cli.program import program
from ckpt_core.format.signing import TrustedKeys, new_key
from ckpt_core.pipeline import manifests
from ckpt_core.policies import asked_policies
from ckpt_core.web.base import installed
from contract.web_case import NAME, client_of, fill, state


def get(api: TestClient, path: str, status: int = 200, /, **query: Any) -> Any:
    answer = api.get(f"/api/v1{path}", params=query)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_experiments_and_checkpoints_page_by_page(api: TestClient) -> None:
    assert [each["name"] for each in get(api, "/experiments")["items"]] == ["digits", NAME]
    steps, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        found = get(
            api, "/checkpoints", experiment="digits", limit=3, **({"cursor": cursor} if cursor else {})
        )
        steps += [each["step"] for each in found["items"]]
        cursor, pages = found["next"], pages + 1
    assert (steps, pages) == ([7, 6, 5, 4, 3, 2, 1], 3)
    assert len(get(api, "/checkpoints")["items"]) == 8
    assert [each["step"] for each in get(api, "/checkpoints", tag="t3")["items"]] == [3]
    assert get(api, "/checkpoints", experiment=NAME)["items"][0]["experiment"] == NAME
    assert get(api, "/checkpoints", experiment="nobody")["items"] == []


@pytest.mark.parametrize("cursor", ["x", "e30", "bnVsbA", "WzEsMl0", "W1tdXQ", "[" * 1500])
def test_a_cursor_of_something_else(api: TestClient, cursor: str) -> None:
    assert get(api, "/experiments", 400, cursor=cursor)["kind"] == "cursor"


def test_references(api: TestClient, newest: str) -> None:
    assert get(api, "/checkpoint", ref="digits@latest")["id"] == newest
    assert get(api, "/checkpoint", ref="digits@best", metric="loss", mode="max")["step"] == 1
    assert get(api, "/checkpoint", ref="t4")["step"] == 4
    assert get(api, "/checkpoint", 404, ref="t99")["status"] == 404
    assert get(api, "/checkpoint", 400, ref="latest")["status"] == 400
    assert get(api, f"/checkpoints/{newest}")["tags"] == ["t7"]
    assert get(api, f"/checkpoints/{'0' * 26}", 404)["title"] == "Not found"


def test_metric_series(api: TestClient) -> None:
    assert get(api, "/metrics", experiment="digits")["items"] == ["loss", "train"]
    points = get(api, "/series", experiment="digits", name="train")["items"]
    assert [each["value"] for each in points] == [1.0, 2.0, "NaN", 4.0, 5.0, 6.0, 7.0]
    first = get(api, "/series", experiment="digits", name="train", limit=5)
    second = get(api, "/series", experiment="digits", name="train", cursor=first["next"])
    assert [each["step"] for each in first["items"] + second["items"]] == [1, 2, 3, 4, 5, 6, 7]
    assert get(api, "/metrics", 404, experiment="nobody")["kind"] == "experiment"


def test_what_is_known_of_an_experiment(tmp_path: Path) -> None:
    config = {"optimizer": {"lr": 0.1}}
    with CheckpointManager(tmp_path, experiment="base") as manager:
        first = manager.save({"w": np.ones(3)}, step=1, wait=True).result()
    with (
        pytest.raises(ZeroDivisionError),
        CheckpointManager(tmp_path, experiment="tuned", config=config) as manager,
    ):
        manager.save(manager.load("base@latest"), step=2, wait=True)
        manager.tracker.tag("tuned", "good")
        1 / 0  # noqa: B018
    with (
        CheckpointManager(tmp_path, experiment="tuned") as manager,
        closing(Workspace.open(tmp_path)) as workspace,
    ):
        manager.begin_attempt()
        api = client_of(workspace)
        found = get(api, "/experiments/tuned")
        assert (found["name"], found["status"], found["tags"]) == ("tuned", "running", ["good"])
        assert found["config"] == {"optimizer": {"lr": 0.1}}
        assert found["environment"]["python"] == manager.tracker.experiment("tuned").environment["python"]
        failed, running = found["attempts"]
        assert (failed["number"], failed["status"], failed["reason"]) == (
            1,
            "failed",
            "ZeroDivisionError: division by zero",
        )
        assert failed["started_at"] < failed["ended_at"] < running["started_at"]
        assert (running["status"], running["ended_at"], running["config"]) == ("running", None, None)
        parent = {"relation": "fine-tuned", "experiment": "base", "checkpoint": first.id, "step": 1}
        assert failed["parent"] == parent
        rows = get(api, "/experiments")["items"]
        told = [(each["name"], each["status"], each["checkpoints"], each["attempts"]) for each in rows]
        assert told == [("base", "finished", 1, 1), ("tuned", "running", 1, 2)]
        for asked in ({"tag": "good"}, {"status": "running"}, {"config": "optimizer.lr>=0.1"}):
            assert [each["name"] for each in get(api, "/experiments", **asked)["items"]] == ["tuned"], asked
        assert get(api, "/experiments", 422, status="asleep")["kind"] == "validation"
        assert get(api, "/experiments", 400, config="lr")["status"] == 400
        assert "'base'" in get(api, "/experiments/bas", 404)["detail"]


def test_without_a_catalog_the_store_answers(tmp_path: Path) -> None:
    fill(tmp_path / "store")
    (tmp_path / "store" / "catalog.db").unlink()
    (tmp_path / "store" / "catalog.db").mkdir()
    with closing(Workspace.open(tmp_path / "store")) as workspace:
        api = client_of(workspace)
        rows = {each["name"]: each for each in get(api, "/experiments")["items"]}
        assert (rows["digits"]["checkpoints"], rows["digits"]["last_step"]) == (7, 7)
        assert rows[NAME]["checkpoints"] == 1
        assert get(api, "/experiments/digits")["attempts"][0]["status"] == "finished"
        assert get(api, "/metrics", experiment="digits")["items"] == ["loss", "train"]
        assert len(get(api, "/series", experiment="digits", name="train")["items"]) == 7


def test_metrics_of_an_experiment_that_saved_nothing(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, experiment="logged") as manager:
        manager.log({"train": 0.5}, step=1)
    with closing(Workspace.open(tmp_path)) as workspace:
        api = client_of(workspace)
        assert get(api, "/metrics", experiment="logged")["items"] == ["train"]
        (point,) = get(api, "/series", experiment="logged", name="train")["items"]
        assert (point["step"], point["value"], point["attempt"]) == (1, 0.5, 1)
        with CheckpointManager(tmp_path, experiment="logged") as manager:  # another process, later
            manager.log({"train": 0.25}, step=2)
        found = get(api, "/series", experiment="logged", name="train")["items"]
        assert [each["value"] for each in found] == [0.25]
        assert get(api, "/series", 404, experiment="nobody", name="train")["kind"] == "experiment"


def test_what_is_in_a_checkpoint(api: TestClient, newest: str) -> None:
    leaves = {each["path"]: each for each in get(api, f"/checkpoints/{newest}/leaves")["items"]}
    assert leaves["model/w"] == {
        "path": "model/w",
        "dtype": "F32",
        "shape": [40_000],
        "bytes": 160_000,
        "value": None,
    }
    assert leaves["config/name"]["value"] == "digits"
    assert leaves["config/nan"]["value"] == "NaN"
    assert get(api, f"/checkpoints/{newest}/manifest")["id"] == newest
    assert get(api, "/store")["allow_write"] is False


def test_experiments_side_by_side(tmp_path: Path) -> None:
    for name, rate in (("a", 0.1), ("b", 0.2)):
        config = {"optimizer": {"lr": rate, "name": "adam"}}
        with CheckpointManager(tmp_path, experiment=name, config=config) as manager:
            manager.log({"loss": float("nan") if name == "a" else rate}, step=1)
    line = ["experiments", "compare", "a", "b", "--store", str(tmp_path), "--json"]
    told = json.loads(CliRunner().invoke(program, line).stdout)["data"]
    with closing(Workspace.open(tmp_path)) as workspace:
        api = client_of(workspace)
        found = get(api, "/comparison", experiment=["a", "b"])
        assert (found["experiments"], found["next"]) == (["a", "b"], None)
        rows = {(row["group"], row["name"]): row for row in found["items"]}
        learning = rows["config", "optimizer.lr"]
        assert (learning["values"], learning["same"]) == ([0.1, 0.2], False)
        assert rows["config", "optimizer.name"]["same"] is True
        assert rows["metric", "loss last"]["values"] == ["NaN", 0.2]
        groups = ["status", "config", "environment", "metric"]
        assert list(dict.fromkeys(row["group"] for row in found["items"])) == groups
        assert {(row["group"], row["name"], row["same"]) for row in told["rows"]} == {
            (row["group"], row["name"], row["same"]) for row in found["items"]
        }
        pages, cursor = [], None
        while not pages or cursor:
            more = {"cursor": cursor} if cursor else {}
            part = get(api, "/comparison", experiment=["a", "b"], limit=7, **more)
            pages.append(part["items"])
            cursor = part["next"]
        assert [row for part in pages for row in part] == found["items"]
        assert max(map(len, pages)) == 7
        assert get(api, "/comparison", 400, experiment=["a", "a"])["kind"] == "compare"
        assert get(api, "/comparison", 404, experiment=["a", "c"])["kind"] == "experiment"
        assert get(api, "/comparison", 422)["kind"] == "validation"


def test_how_saves_and_loads_fared(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with CheckpointManager(tmp_path, experiment=name) as manager:
            manager.save({"w": np.ones(1000)}, step=1, wait=True)
    line = ["stats", "--perf", "--store", str(tmp_path), "--json"]
    told = json.loads(CliRunner().invoke(program, line).stdout)["data"]["attempts"]
    assert [each["experiment"] for each in told] == ["a", "b"]
    with closing(Workspace.open(tmp_path)) as workspace:
        api = client_of(workspace)
        found = get(api, "/performance")
        assert found == {"items": told, "next": None}
        assert found["items"][0]["latencies"]["save"]["count"] == 1
        assert found["items"][0]["bytes"]["saved"] == 8000
        first = get(api, "/performance", limit=1)
        rest = get(api, "/performance", cursor=first["next"])
        assert first["items"] + rest["items"] == told
        tag = api.get("/api/v1/performance").headers["etag"]
        assert api.get("/api/v1/performance", headers={"If-None-Match": tag}).status_code == 304


def test_differences(api: TestClient, newest: str) -> None:
    found = get(api, f"/checkpoints/{newest}/diff", measure=True)
    assert (found["old"]["step"], found["new"]["step"], found["same"]) == (6, 7, False)
    (change,) = [each for each in found["tensors"] if each["path"] == "model/w"]
    assert (change["max_abs"], change["changed"]) == (1.0, 40_000)
    first = get(api, "/checkpoint", ref="t1")["id"]
    assert get(api, f"/checkpoints/{first}/diff", 404)["kind"] == "parent"
    assert get(api, f"/checkpoints/{newest}/diff", old=newest)["same"] is True


def test_what_retention_would_do(api: TestClient) -> None:
    found = get(api, "/retention", experiment="digits", keep_last=2, keep_best=1, metric="loss", mode="max")
    assert {each["checkpoint"]["step"] for each in found["items"] if each["keep"]} == {1, 6, 7}
    assert all(each["reasons"] for each in found["items"])
    assert get(api, "/retention", 400, experiment="digits")["kind"] == "option"
    assert get(api, "/retention", 400, experiment="digits", keep_best=1)["kind"] == "metric"
    wrong = {"keep_best": 1, "metric": "los", "mode": "max"}  # keeps none: a typing error
    assert "it has loss" in get(api, "/retention", 404, experiment="digits", **wrong)["detail"]
    assert len(get(api, "/checkpoints", experiment="digits")["items"]) == 7


def test_of_no_checkpoints_retention_would_keep_none(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, experiment="logged") as manager:
        manager.log({"train": 0.5}, step=1)
    with closing(Workspace.open(tmp_path)) as workspace:
        api = client_of(workspace)
        for asked in ({"keep_last": 1}, {"keep_best": 1, "metric": "loss", "mode": "min"}):
            assert get(api, "/retention", experiment="logged", **asked) == {"items": []}
        assert get(api, "/retention", 404, experiment="nobody", keep_last=1)["kind"] == "experiment"


@pytest.mark.parametrize(
    "asked",
    [{"keep_last": 2}, {"keep_best": 1, "metric": "loss", "mode": "max"}, {"keep_every_steps": 3}, {"keep_every_minutes": 1e-320},
     {"keep_every_minutes": 1e9}, {"keep_tagged": "t[34]"}, {"keep_hourly": 1}, {"keep_daily": 2}, {"keep_weekly": 1},
     {"keep_within": "200 kB"}, {"keep_hourly": 1, "keep_weekly": 4, "keep_last": 1}],
    ids=lambda asked: " ".join(asked),
)  # fmt: skip
def test_retention_is_previewed_as_the_command_decides(
    api: TestClient, root: Path, asked: dict[str, Any]
) -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in asked.items()]
    line = ["forget", "--store", str(root), "-e", "digits", "--dry-run", "--json", *options]
    answer = CliRunner().invoke(program, line)
    decided = json.loads(answer.stdout)["data"]["decisions"]
    found = get(api, "/retention", experiment="digits", **asked)["items"]
    assert len(found) == 7
    assert [(each["checkpoint"]["id"], each["keep"], each["reasons"]) for each in found] == [
        (each["checkpoint"]["id"], each["keep"], each["reasons"]) for each in decided
    ]


def test_the_preview_has_every_policy_of_the_command(api: TestClient) -> None:
    (operation,) = get(api, "/openapi.json")["paths"]["/api/v1/retention"].values()
    previewed = {each["name"] for each in operation["parameters"]}
    command = program.get_command(Context(program), "forget")
    assert command is not None
    options = {each.name for each in command.params if str(each.name).startswith("keep_")}
    assert previewed == options | {"experiment", "metric", "mode"} > {"experiment"}
    assert previewed - {"experiment"} == set(inspect.signature(asked_policies).parameters)
    assert get(api, "/retention", 400, experiment="digits", keep_within="many")["kind"] == "size"


# -- bytes ----------------------------------------------------------------------------------------


def test_a_tensor_as_bytes_and_as_a_file_of_numpys(api: TestClient, newest: str) -> None:
    place = f"/api/v1/checkpoints/{newest}/tensor"
    raw = api.get(place, params={"path": "model/w"})
    assert raw.headers["x-ckpt-dtype"] == "F32"
    assert np.array_equal(np.frombuffer(raw.content, np.float32), state(7)["model"]["w"])
    file = api.get(place, params={"path": "model/b~1c", "format": "npy"})
    assert np.array_equal(np.load(io.BytesIO(file.content)), state(7)["model"]["b/c"])
    assert 'filename="model_b_1c.npy"' in file.headers["content-disposition"]
    assert api.get(place, params={"path": "config/lr"}).status_code == 404


def test_a_checkpoint_as_safetensors(api: TestClient, newest: str) -> None:
    whole = api.get(f"/api/v1/checkpoints/{newest}/safetensors")
    found = load_safetensors(whole.content)
    assert np.array_equal(found["model/w"], state(7)["model"]["w"])
    assert int(whole.headers["content-length"]) == len(whole.content)
    part = api.get(f"/api/v1/checkpoints/{newest}/safetensors", params={"include": ["model/w"]})
    assert load_safetensors(part.content).keys() == {"model/w"}
    assert get(api, f"/checkpoints/{newest}/safetensors", 404, include="nothing")["kind"] == "include"


@pytest.mark.parametrize("kind", ["tensor?path=model/w", "tensor?path=model/w&format=npy", "safetensors"])
def test_ranges(api: TestClient, newest: str, kind: str) -> None:
    place = f"/api/v1/checkpoints/{newest}/{kind}"
    whole = api.get(place)
    size = len(whole.content)
    assert whole.headers["accept-ranges"] == "bytes"
    for asked, (begin, end) in {
        "0-0": (0, 1), "0-": (0, size), "5-99": (5, 100), "100-70000": (100, 70_001), "65536-65600": (65_536, 65_601),
        f"{size - 1}-": (size - 1, size), "-7": (size - 7, size), f"-{size * 9}": (0, size), "9-99999999": (9, size),
    }.items():  # fmt: skip
        part = api.get(place, headers={"Range": f"bytes={asked}"})
        assert part.status_code == 206, asked
        assert part.content == whole.content[begin:end], asked
        assert part.headers["content-range"] == f"bytes {begin}-{end - 1}/{size}"
    for asked in (
        f"{size}-",
        "5-4",
        "-0",
        "x",
        "0-1,2-3",
        "0-" + ",0-" * 500,
        "٣-٤",
        "-",
        "",
        "1-2-3",
        "9" * 30 + "-",
    ):
        part = api.get(place, headers={"Range": f"bytes={asked}".encode()})
        assert part.status_code == 416, asked
        assert part.headers["content-range"] == f"bytes */{size}"
    assert api.get(place, headers={"Range": "furlongs=1-2"}).status_code == 200
    # A client goes on where it was, unless it is another file by now.
    more = {"Range": "bytes=10-19"}
    assert api.get(place, headers=more | {"If-Range": whole.headers["etag"]}).status_code == 206
    assert api.get(place, headers=more | {"If-Range": '"other"'}).status_code == 200


def test_what_a_client_has_is_not_sent_again(api: TestClient, newest: str) -> None:
    for place in (
        f"/checkpoints/{newest}/tensor?path=model/w",
        f"/checkpoints/{newest}/safetensors",
        f"/checkpoints/{newest}",
        f"/checkpoints/{newest}/manifest",
        "/experiments",
    ):
        first = api.get(f"/api/v1{place}")
        for given in (first.headers["etag"], f'"x", W/{first.headers["etag"]}', "*"):
            again = api.get(f"/api/v1{place}", headers={"If-None-Match": given})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == first.headers["etag"]
        assert api.get(f"/api/v1{place}", headers={"If-None-Match": '"x"'}).status_code == 200
        head = api.head(f"/api/v1{place}")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == first.headers["content-length"]
    assert "immutable" in api.get(f"/api/v1/checkpoints/{newest}/safetensors").headers["cache-control"]


def test_a_manifest_is_not_read_for_every_range(
    workspace: Workspace, api: TestClient, newest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "SETTLED", -1)
    place = f"/api/v1/checkpoints/{newest}/tensor"
    misses = []
    for begin in range(4):
        part = api.get(place, params={"path": "model/w"}, headers={"Range": f"bytes={begin}-9"})
        assert part.status_code == 206
        stats = workspace.figures.cache.stats().get("manifests")
        misses.append(None if stats is None else stats.misses)
    assert misses[-1] is not None
    assert misses[-1] == misses[1]


def test_damage_is_never_sent_as_data(tmp_path: Any, api: TestClient) -> None:
    fill(tmp_path / "store")
    workspace = Workspace.open(tmp_path / "store")
    try:
        newest = workspace.index.newest("digits")
        (pack,) = (tmp_path / "store").rglob(f"{newest.id}*.safetensors")
        data = bytearray(pack.read_bytes())
        data[-100_000] ^= 1
        pack.write_bytes(data)
        with client_of(workspace).stream(
            "GET", f"/api/v1/checkpoints/{newest.id}/tensor", params={"path": "model/w"}
        ) as answer:  # of a real server the connection breaks off
            assert len(answer.read()) < int(answer.headers["content-length"])
        report = (
            client_of(workspace, allow_write=True)
            .post(f"/api/v1/checkpoints/{newest.id}/verify", json={})
            .json()
        )
        assert (report["ok"], report["problems"][0]["kind"]) == (False, "digest")
    finally:
        workspace.close()


def test_a_damaged_manifest_is_that_of_the_mirror_or_none(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "store", experiment="x", mirror=tmp_path / "mirror") as manager:
        key = manager.save({"w": np.ones(3)}, step=1, wait=True).result().key
    good = (tmp_path / "store" / key).read_bytes()
    with closing(Workspace.open(tmp_path / "store")) as workspace:
        api = client_of(workspace)
        place = f"/api/v1/checkpoints/{workspace.index.newest('x').id}/manifest"
        assert api.get(place).content == good
        (tmp_path / "store" / key).write_bytes(good.replace(b'"step":1', b'"step":2'))
        assert api.get(place).content == good
        (tmp_path / "mirror" / key).unlink()
        assert api.get(place).json()["kind"] == "document"


def test_with_trusted_keys_only_what_they_signed_is_read(tmp_path: Path) -> None:
    new_key(tmp_path / "key.pem")
    with CheckpointManager(tmp_path / "store", experiment="x", signing_key=tmp_path / "key.pem") as manager:
        signed = manager.save({"w": np.ones(3)}, step=1, wait=True).result().id
    with CheckpointManager(tmp_path / "store", experiment="x") as manager:
        other = manager.save({"w": np.zeros(3)}, step=2, wait=True).result().id
    with closing(Workspace.open(tmp_path / "store")) as workspace:
        workspace.repository.trusted = TrustedKeys.load(tmp_path / "key.pem.pub")
        api = client_of(workspace)
        assert get(api, "/checkpoint", ref="latest")["id"] == signed
        for kind in ("leaves", "manifest", "tensor", "safetensors", "diff"):
            found = api.get(f"/api/v1/checkpoints/{other}/{kind}", params={"path": "w", "old": signed}).json()
            assert (found["status"], found["kind"]) == (403, "unsigned"), kind
        assert get(api, f"/checkpoints/{signed}/diff", 403, old=other)["kind"] == "unsigned"
        assert get(api, f"/checkpoints/{signed}/leaves")["items"][0]["path"] == "w"


# -- changes --------------------------------------------------------------------------------------


def test_tags_and_pins(writing: TestClient, api: TestClient, newest: str) -> None:
    place = f"/api/v1/checkpoints/{newest}"
    before = api.get(place).headers["etag"]
    assert "good" in writing.put(f"{place}/tags", json={"tag": "good"}).json()["tags"]
    assert api.get(place).headers["etag"] != before
    assert writing.put(f"{place}/pin", json={}).json()["pinned"] is True
    assert writing.delete(f"{place}/pin").json()["pinned"] is False
    assert writing.delete("/api/v1/tags", params={"experiment": "digits", "tag": "good"}).status_code == 204
    assert api.get(place).headers["etag"] == before
    for bad in ({"tag": "latest"}, {"tag": ""}, {"tag": "x" * 300}, {"tag": 1}, {}, {"tag": "x", "more": 1}):
        answer = writing.put(f"{place}/tags", json=bad)
        assert answer.status_code in (400, 422), bad
        assert answer.headers["content-type"] == "application/problem+json"
    assert writing.post(f"{place}/verify", json={}).json()["ok"] is True


def test_tags_of_an_experiment(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, experiment="größe π") as manager:
        manager.log({"train": 0.5}, step=1)
    with closing(Workspace.open(tmp_path)) as workspace:
        writing, api = client_of(workspace, allow_write=True), client_of(workspace)
        own = "/api/v1/experiments/größe π"
        before = api.get(own).headers["etag"]
        assert writing.put(f"{own}/tags", json={"tag": "good"}).json()["tags"] == ["good"]
        assert writing.put(f"{own}/tags", json={"tag": "latest"}).json()["tags"] == ["good", "latest"]
        assert [each["name"] for each in get(api, "/experiments", tag="good")["items"]] == ["größe π"]
        assert api.get(own).headers["etag"] != before
        for tag in ("good", "latest", "latest"):  # one that is not there is no error
            assert writing.delete(f"{own}/tags", params={"tag": tag}).status_code == 204
        assert api.get(own).headers["etag"] == before
        nobody = writing.put("/api/v1/experiments/nobody/tags", json={"tag": "good"})
        assert (nobody.status_code, nobody.json()["kind"]) == (404, "experiment")
        refused = [api.put(f"{own}/tags", json={"tag": "x"}), api.delete(f"{own}/tags", params={"tag": "x"})]
        assert [(each.status_code, each.json()["kind"]) for each in refused] == [(403, "read-only")] * 2
        assert get(api, "/experiments")["items"][0]["tags"] == []


# -- parts of others ------------------------------------------------------------------------------


def test_a_part_of_somebody_else(workspace: Workspace) -> None:
    from fastapi import APIRouter

    class Counting(BaseAPI):
        prefix = "/counting"

        def router(self) -> APIRouter:
            router = APIRouter()
            router.add_api_route("/checkpoints", self.count)
            return router

        def count(self) -> dict[str, int]:
            return {"count": len(self.workspace.index.checkpoints())}

    plain = APIRouter(prefix="/plain")
    plain.add_api_route("/hello", lambda: {"hello": "you"})
    api = client_of(workspace, parts=[Counting, plain])
    assert get(api, "/counting/checkpoints") == {"count": 8}
    assert get(api, "/plain/hello") == {"hello": "you"}
    assert get(api, "/store")["parts"] == ["part 0", "part 1"]
    assert "/api/v1/counting/checkpoints" in get(api, "/openapi.json")["paths"]


def test_the_example(workspace: Workspace) -> None:
    example = runpy.run_path(str(Path(__file__).parents[3] / "examples" / "custom_api.py"))
    api = client_of(workspace, parts=[example["Progress"]])
    assert get(api, "/progress/digits")["step"] == 7
    assert get(api, "/progress/nobody", 404)["title"] == "Not found"


def test_a_part_that_cannot_be_loaded_is_left_out(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import importlib.metadata

    from fastapi import APIRouter

    class Part(BaseAPI):
        def router(self) -> APIRouter:
            return APIRouter()

    class Relative(Part):
        prefix = "progress"

    class Empty(Part):
        def router(self) -> APIRouter:
            return None  # type: ignore[return-value]

    others = types.ModuleType("parts_of_others")
    others.Relative, others.Empty = Relative, Empty  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "parts_of_others", others)
    places = ["nowhere.at:all", "math:pi", "parts_of_others:Relative", "parts_of_others:Empty"]
    entries = [importlib.metadata.EntryPoint(place, place, "ckpt_core.api") for place in places]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: entries)
    assert list(installed(workspace)) == []
    for place in places:
        assert f"the API part '{place}'" in caplog.text


def test_the_page_loads_nothing(api: TestClient) -> None:
    page = api.get("/")
    assert page.status_code == 200
    assert "/api/v1/checkpoints/{id}/safetensors" in page.text
    for word in ("<script", "src=", "http:", "https:", "@import", "url("):
        assert word not in page.text
