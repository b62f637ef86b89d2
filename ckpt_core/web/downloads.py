"""Tensors and whole checkpoints as bytes: streamed piece by piece, any range, each byte checked on its way."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from numpy.lib import format as npy
from starlette.responses import Response, StreamingResponse

from ckpt_core.errors import FormatError, NotFoundError, UsageError
from ckpt_core.format.documents import Manifest
from ckpt_core.maintenance.leaves import tensor_specs
from ckpt_core.maintenance.plainfile import PlainFile
from ckpt_core.model import Buffer, Checkpoint, TensorSpec
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.repository import ChunkReader
from ckpt_core.tree import Selection, backend_files, dtypes
from ckpt_core.web import documents as say
from ckpt_core.web.base import BaseAPI
from ckpt_core.web.choosing import Choosing
from ckpt_core.web.etags import HEAD, matches, tag_of
from ckpt_core.web.problems import problem

__all__ = ["DownloadsAPI"]

Read = Callable[[ChunkReader, int, int], Iterator[bytes | Buffer]]
_PIECE = 8 << 20
_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {}}, "description": "All of it"},
    206: {"content": {"application/octet-stream": {}}, "description": "The range that was asked for"},
}


class DownloadsAPI(BaseAPI):
    """The routes whose answers are bytes. A checkpoint never changes, so they may be kept for ever."""

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace)
        self._choosing = Choosing(workspace)

    def router(self) -> APIRouter:
        router = APIRouter()
        for path, endpoint in (
            ("/checkpoints/{id}/tensor", self.tensor),
            ("/checkpoints/{id}/safetensors", self.safetensors),
        ):
            router.add_api_route(
                path, endpoint, methods=["GET"], operation_id=endpoint.__name__,
                response_class=StreamingResponse, responses=_BYTES,
            )  # fmt: skip
        return router

    def tensor(
        self,
        id: say.Id,  # noqa: A002
        request: Request,
        path: Annotated[str, Query(min_length=1, max_length=10_000)],
        format: Literal["raw", "npy"] = "raw",  # noqa: A002
    ) -> Response:
        """The tensor at a path of the state: its bytes in C order, or a file for `numpy.load`."""
        checkpoint, manifest = self._packed(id)
        specs = tensor_specs(manifest)
        if path not in specs:
            raise NotFoundError(
                f"the checkpoint has no tensor at {path!r}: /leaves lists what it has", kind="path"
            )
        index, spec = specs[path]
        head = _npy_head(spec) if format == "npy" else b""
        size = len(head) + dtypes.nbytes(spec)

        def read(chunks: ChunkReader, begin: int, end: int) -> Iterator[bytes | Buffer]:
            if begin < len(head):
                yield head[begin:end]
            stop = end - len(head)
            for at in range(max(begin - len(head), 0), stop, _PIECE):
                yield chunks.read_range(index, at, min(at + _PIECE, stop))

        name = re.sub(r"[^A-Za-z0-9._-]", "_", path)[-100:] + (".npy" if format == "npy" else ".bin")
        more = {"X-Ckpt-Dtype": spec.dtype, "X-Ckpt-Shape": ",".join(map(str, spec.shape))}
        tag = tag_of(checkpoint.digest, "tensor", path, format)
        return self._bytes(request, manifest, size, read, tag, name, more)

    def safetensors(
        self,
        id: say.Id,  # noqa: A002
        request: Request,
        include: Annotated[list[str] | None, Query(max_length=100)] = None,
    ) -> Response:
        """The tensors of the checkpoint (or those of some paths, subtrees or patterns) as a file that plain
        safetensors opens."""
        checkpoint, manifest = self._packed(id)
        selection = Selection(include or None)
        selection.check(manifest.state)
        tensors = {path: found for path, found in tensor_specs(manifest).items() if path in selection}
        facts = {
            "ckpt.checkpoint": checkpoint.id,
            "ckpt.experiment": checkpoint.experiment,
            "ckpt.step": str(checkpoint.step),
        }
        file = PlainFile(tensors, facts)
        tag = tag_of(checkpoint.digest, "safetensors", *sorted(tensors))
        return self._bytes(request, manifest, file.size, file.read, tag, f"{checkpoint.id}.safetensors", {})

    def _packed(self, identity: str) -> tuple[Checkpoint, Manifest]:
        checkpoint, manifest = self._choosing.readable(identity)
        made = backend_files(manifest.state)
        if made is not None:
            raise UsageError(
                f"the checkpoint is files of the storage backend {made.name!r}: load it with CheckpointManager.load()",
                kind="backend",
            )
        return checkpoint, manifest

    def _bytes(
        self,
        request: Request,
        manifest: Manifest,
        size: int,
        read: Read,
        tag: str,
        name: str,
        more: dict[str, str],
    ) -> Response:
        headers = {
            "ETag": tag,
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, max-age=31536000, immutable",
            "Content-Disposition": f'attachment; filename="{name}"',
            **more,
        }
        if matches(request.headers.get("if-none-match"), tag):
            return Response(status_code=304, headers=headers)
        asked = request.headers.get("range")
        if request.headers.get("if-range", tag) != tag:
            asked = None
        try:
            part = None if asked is None else range_of(asked, size)
        except ValueError:
            detail = "one range of bytes, as bytes=0-1023, that begins within the file"
            return problem(416, detail, "range", headers={"Content-Range": f"bytes */{size}"})
        begin, end = (0, size) if part is None else part
        headers["Content-Length"] = str(end - begin)
        if part is not None:
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        status = 200 if part is None else 206
        if request.scope.get(HEAD):
            return Response(status_code=status, headers=headers, media_type="application/octet-stream")
        body = self._stream(manifest, read, begin, end)
        return StreamingResponse(body, status, headers, media_type="application/octet-stream")

    def _stream(self, manifest: Manifest, read: Read, begin: int, end: int) -> Iterator[bytes]:
        with closing(self.workspace.repository.reader(manifest, "lazy")) as chunks:
            for piece in read(chunks, begin, end):
                yield bytes(piece)


def range_of(text: str, size: int) -> tuple[int, int] | None:
    """Begin and end of a Range header; None for a unit that is not ours, which is to be passed over (RFC 9110).
    Raises ValueError for several ranges, and for one that begins behind the end."""
    if not text.startswith("bytes="):
        return None
    found = re.fullmatch(r"bytes=[ ]?(?:(\d{1,20})-(\d{0,20})|-(\d{1,20}))[ ]?", text, re.ASCII)
    if found is None:
        raise ValueError(text)
    first, last, suffix = found.groups()
    begin = max(size - int(suffix), 0) if suffix is not None else int(first)
    end = min(int(last) + 1, size) if last else size
    if begin >= end:
        raise ValueError(text)
    return begin, end


def _npy_head(spec: TensorSpec) -> bytes:
    """What stands before the data in a .npy file. Raises UsageError for a dtype that numpy has no name for."""
    try:
        dtype: np.dtype[Any] | None = dtypes.numpy_dtype(spec.dtype)
    except FormatError:
        dtype = None
    if dtype is None or dtype.isbuiltin == 2:  # one that a package adds to numpy, as bfloat16
        raise UsageError(f"numpy's files have no {spec.dtype}: ask for format=raw", kind="format")
    out = io.BytesIO()
    npy.write_array_header_1_0(
        out, {"descr": npy.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": spec.shape}
    )
    return out.getvalue()
