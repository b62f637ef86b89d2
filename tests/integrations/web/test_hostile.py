"""Requests that mean no good: every one is refused with a problem document, and nothing comes of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from ckpt_core import Workspace
from ckpt_core.web.guard import BODY_LIMIT
from contract.web_case import NAME, TOKEN, client_of, fill

SECURITY = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
TEXTS = [
    "../../store.json", "..\\..\\x", "/etc/passwd", "%2e%2e%2f", "http://169.254.169.254/", "file:///etc/passwd", "\0", "a\0b",
    "x" * 9_000, "\U0001f4a3" * 100, "\u202e", "model/../../w", "~", "*" * 200, "[", "__proto__", "'; DROP TABLE tags; --",
]  # fmt: skip

EXPERIMENT = "/api/v1/experiments/digits"
MEANING = [b'{"tag": "latest"}', b'{"tag": "step=1"}']


def refused(answer: Any, *statuses: int) -> None:
    assert answer.status_code in statuses, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert found["status"] == answer.status_code
    assert found["title"]
    assert TOKEN not in answer.text
    for name, value in SECURITY.items():
        assert answer.headers[name] == value


@pytest.fixture
def stranger(workspace: Workspace) -> TestClient:
    """Knows no token."""
    client = client_of(workspace, allow_write=True)
    del client.headers["Authorization"]
    return client


# -- who asks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer tüt", TOKEN]
)
@pytest.mark.parametrize(
    "path", ["/", "/api/v1/experiments", "/api/v1/openapi.json", "/nowhere", "/../etc/passwd"]
)
def test_without_the_token_nothing_is_told(stranger: TestClient, given: str, path: str) -> None:
    refused(stranger.get(path, headers={"Authorization": given.encode()}), 401)


def test_the_token_counts_in_the_printed_address_alone(stranger: TestClient) -> None:
    refused(stranger.get("/api/v1/experiments", params={"token": TOKEN}), 401)
    refused(stranger.get("/", params={"token": "x"}), 401)
    refused(stranger.get("/?token=a&token=b"), 401)
    refused(stranger.post("/", params={"token": TOKEN}), 401)
    answer = stranger.get("/", params={"token": TOKEN})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert stranger.get("/").status_code == 200
    (own,) = stranger.cookies.items()
    stranger.cookies.clear()
    for other in (
        'jupyter={"a": 1}',
        "a b=c",
        "x=\xe9",
        "=",
        ";;",
        '"',
        'x="\\',
    ):  # of other servers on this host
        given = f"{other}; {own[0]}={own[1]}".encode("latin-1")
        assert stranger.get("/", headers={"Cookie": given}).status_code == 200, other
        refused(stranger.get("/", headers={"Cookie": f"{other}; {own[0]}=x".encode("latin-1")}), 401)
    stranger.cookies.set("ckpt", TOKEN)
    refused(stranger.get("/"), 401)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "evil.example:8000", "", "127.0.0.1/x",
     "127.0.0.1:99999", "[::1", "0.0.0.0", "2130706433", "LOCALHOST.", "127.0.0.1\\@evil"],
)  # fmt: skip
def test_a_name_that_leads_here_is_not_ours(api: TestClient, host: str) -> None:
    """DNS rebinding: the page of another site asks its own name, which by now is this machine's address."""
    refused(api.get("/api/v1/experiments", headers={"Host": host}), 400, 403)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1", "[::1]:8000", "LocalHost"])
def test_our_own_names(api: TestClient, host: str) -> None:
    assert api.get("/api/v1/experiments", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:9999"},
     {"Origin": "http://127.0.0.1:8000.evil.example"}, {"Origin": "file://127.0.0.1:8000"}, {"Sec-Fetch-Site": "cross-site"},
     {"Origin": "http://["}, {"Origin": "http://127.0.0.1:x"}, {"Origin": ""}],
)  # fmt: skip
def test_pages_of_other_sites(writing: TestClient, newest: str, headers: dict[str, str]) -> None:
    refused(writing.get("/api/v1/experiments", headers=headers), 403)
    refused(writing.put(f"/api/v1/checkpoints/{newest}/tags", json={"tag": "x"}, headers=headers), 403)
    refused(writing.request("OPTIONS", "/api/v1/experiments", headers=headers), 403)
    own = {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}
    assert writing.get("/api/v1/experiments", headers=own).status_code == 200


def test_headers_that_say_two_things(api: TestClient) -> None:
    for pair in (
        [("Host", "localhost"), ("Host", "localhost")],
        [("Content-Length", "3"), ("Transfer-Encoding", "chunked")],
    ):
        request = api.build_request("GET", "/api/v1/experiments")
        request.headers = type(request.headers)([*request.headers.multi_items(), *pair])
        refused(api.send(request), 400, 403)


# -- what is asked --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%5c..%5cwindows", "/api/v1/checkpoints/..%2f..%2fstore.json",
     "/api/v1/checkpoints/..\\..\\store.json", "/api/v1/checkpoints/%00", "/api/v1/checkpoints/%ff%fe", "//evil.example/x",
     "/api/v1/checkpoints/01M8ADC0EPFGH86MAQH88PVG7V%0d%0aX: y", "/api/v1/checkpoints/file:///etc/passwd"],
)  # fmt: skip
def test_paths_lead_nowhere(api: TestClient, path: str) -> None:
    refused(api.get(path), 404, 422)


@pytest.mark.parametrize("value", TEXTS)
def test_texts_name_nothing_else(api: TestClient, newest: str, value: str) -> None:
    refused(api.get(f"/api/v1/checkpoints/{newest}/tensor", params={"path": value}), 404, 422)
    refused(api.get("/api/v1/checkpoint", params={"ref": value}), 400, 404, 422)
    refused(api.get("/api/v1/metrics", params={"experiment": value}), 400, 404, 422)
    refused(api.get("/api/v1/comparison", params={"experiment": ["digits", value]}), 400, 404, 422)
    refused(api.get("/api/v1/retention", params={"experiment": value, "keep_last": 1}), 400, 404, 422)
    refused(api.get(f"/api/v1/checkpoints/{newest}/diff", params={"old": value}), 422)
    answer = api.get(f"/api/v1/checkpoints/{newest}/safetensors", params={"include": value})
    if not value.startswith("*"):
        refused(answer, 404, 422)


def test_a_tag_that_is_none_is_taken_off_nothing(writing: TestClient) -> None:
    for value in (text for text in TEXTS if "/" not in text):
        for place, tag in ((f"/api/v1/experiments/{quote(value)}/tags", "x"), (f"{EXPERIMENT}/tags", value)):
            answer = writing.delete(place, params={"tag": tag})
            if answer.status_code != 204:
                refused(answer, 400, 404, 422)
            refused(writing.put(f"/api/v1/experiments/{quote(value)}/tags", json={"tag": "x"}), 400, 404, 422)
    assert [each["name"] for each in writing.get("/api/v1/experiments").json()["items"]] == ["digits", NAME]
    assert writing.get(EXPERIMENT).json()["tags"] == []


def test_more_experiments_than_anybody_compares(api: TestClient) -> None:
    refused(api.get("/api/v1/comparison", params={"experiment": ["digits"] * 101}), 422)
    refused(api.get("/api/v1/comparison", params={"experiment": "digits"}), 400)


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "1e3", "NaN", "99999999999999999999", "x", ""])
def test_limits(api: TestClient, limit: str) -> None:
    refused(api.get("/api/v1/checkpoints", params={"limit": limit}), 422)


# -- changes --------------------------------------------------------------------------------------


def test_a_server_that_reads_changes_nothing(api: TestClient, newest: str) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "MKCOL"):
        for path in (f"/api/v1/checkpoints/{newest}/pin", "/api/v1/tags", f"{EXPERIMENT}/tags", "/"):
            refused(api.request(method, path, content=b"{}"), 403)


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp", "text/plain; application/json"]
)  # fmt: skip
def test_a_change_that_a_form_could_send(writing: TestClient, newest: str, kind: str) -> None:
    for place in (f"/api/v1/checkpoints/{newest}", EXPERIMENT):
        refused(writing.put(f"{place}/tags", content=b'{"tag": "x"}', headers={"Content-Type": kind}), 415)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"NaN", b'{"tag": NaN}', b'{"tag": Infinity}', b'{"tag": "a\\u0000b"}', b'{"tag": "\\ud800"}',
     b'{"tag": "\\u202e"}', b'{"tag": ["x"]}', b'{"tag": {"$ref": "x"}}', b"\xff\xfe{", b"[" * 30_000, b'{"tag": "a/../b"}',
     b'{"tag":"x","tag":1}', *MEANING],
)  # fmt: skip
def test_bodies_that_are_no_tag(writing: TestClient, newest: str, body: bytes) -> None:
    # What means something in a reference may be a tag of an experiment, which is none.
    for place in (f"/api/v1/checkpoints/{newest}", *([] if body in MEANING else [EXPERIMENT])):
        before = writing.get(place).json()["tags"]
        answer = writing.put(f"{place}/tags", content=body, headers={"Content-Type": "application/json"})
        refused(answer, 400, 422)
        assert writing.get(place).json()["tags"] == before


def test_bodies_that_are_too_long(writing: TestClient, newest: str) -> None:
    place = f"/api/v1/checkpoints/{newest}/tags"
    refused(writing.put(place, json={"tag": "x" * BODY_LIMIT}), 413)

    def endless() -> Iterator[bytes]:
        yield b'{"tag": "'
        for _ in range(100):
            yield b"x" * 4096

    refused(writing.put(place, content=endless(), headers={"Content-Type": "application/json"}), 413)
    refused(
        writing.put(
            place, content=b"{}", headers={"Content-Type": "application/json", "Content-Length": "1x"}
        ),
        400,
    )


def test_nothing_of_the_token_is_logged(
    workspace: Workspace, newest: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "ckpt_core")
    api = client_of(workspace)
    api.get("/", params={"token": TOKEN})
    api.get("/nowhere")
    api.get(f"/api/v1/checkpoints/{newest}/tensor", params={"path": "x"})
    assert TOKEN not in caplog.text


# -- what is left of it ---------------------------------------------------------------------------


def test_the_store_is_as_it_was(tmp_path: Path) -> None:
    """Whatever is asked of a server that reads, and however: each file has the bytes that it had."""
    fill(tmp_path / "store")
    with closing(Workspace.open(tmp_path / "store")) as workspace:
        api = client_of(workspace)
        newest = workspace.index.checkpoints("digits")[-1].id
        before = files(tmp_path / "store")
        paths = api.get("/api/v1/openapi.json").json()["paths"]
        right: dict[str, Any] = {
            "experiment": "digits", "name": "train", "ref": "digits@latest", "path": "model/w", "keep_last": "1", "measure": "true",
        }  # fmt: skip
        for path, methods in paths.items():
            for method, operation in methods.items():
                asked = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "query"}
                for value in (None, *(TEXTS[::3] if asked else ())):
                    query = {n: v if value is None else value for n, v in right.items() if n in asked}
                    if path.endswith("/comparison") and value is None:
                        query["experiment"] = ["digits", NAME]
                    place = path.format(id=newest, name="digits")
                    answer = api.request(method, place, params=query, json=None if method == "get" else {})
                    if value is None:
                        assert answer.status_code == (200 if method == "get" else 403), (place, answer.text)
        after = files(tmp_path / "store")
        assert [k for k in before.keys() | after.keys() if before.get(k) != after.get(k)] == []


def files(root: Path) -> dict[str, bytes]:
    """Every file of a store with its bytes; not the memory that SQLite's processes share."""
    found = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".db-shm")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}
