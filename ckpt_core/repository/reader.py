"""Reading one checkpoint: its chunks by tensor or by range of bytes, each checked before it is handed out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from ckpt_core.config import cores
from ckpt_core.errors import CkptError, CorruptionError, NotFoundError, ObjectNotFoundError, StoreError
from ckpt_core.format.compression import expand, require
from ckpt_core.format.documents import Chunk, Forward, Manifest, PackRecord
from ckpt_core.format.hashing import Hasher, digest_of
from ckpt_core.format.header import read_header
from ckpt_core.format.sealed import FORMAT, unseal
from ckpt_core.model import Buffer, TensorSpec
from ckpt_core.pages import PAGE, address
from ckpt_core.repository import layout
from ckpt_core.repository.spare import Spare
from ckpt_core.stores import ObjectReader, Store
from ckpt_core.tree import dtypes

__all__ = ["ChunkReader", "Verify", "open_pack", "read_forward"]

Verify = Literal["full", "lazy", "off"]
"""`full`: every byte read, and the headers of the packs it is in; `lazy`: every byte read; `off`: none."""

_PARALLEL = 4 << 20
_LOOKS = 3
_AHEAD = 3
_FORWARDS = 100  # a chain of rewritten packs that is longer leads nowhere
_SMALL = 64 << 10
_PIECE = 512 << 10  # read and hashed at once: what a core's own cache holds
_THREADS = min(16, 2 * cores() + 4)  # while some check, others wait for the disk
_EXPANDING = 8
_LINE = 64


def read_forward(store: Store, pack: str) -> Forward:
    """Where the chunks of a rewritten pack have gone. Raises ObjectNotFoundError, CorruptionError."""
    key = layout.forward_key(pack)
    document = unseal(store.get(key, limit=layout.DOCUMENT_LIMIT), Forward, key)
    if document.pack != pack:
        raise CorruptionError(
            f"{key} is that of another pack: it was moved or copied", kind="document", key=key
        )
    return document


@contextmanager
def open_pack(store: Store, name: str) -> Iterator[ObjectReader]:
    """A pack, also one that a prune has taken out of circulation, and may put back. Raises ObjectNotFoundError."""
    key = layout.pack_key(name)
    with ExitStack() as stack:
        reader: ObjectReader | None = None
        for place in (key, layout.withdrawn_key(name)):
            with suppress(ObjectNotFoundError):
                reader = stack.enter_context(store.open(place))
                break
        if reader is None:  # it may have been put back between the two looks
            reader = stack.enter_context(store.open(key))
        yield reader


class ChunkReader:
    """The bytes of one checkpoint's tensors, by index. Thread-safe. Holds its packs open until `close`.

    Raises MissingExtraError where it has compressed chunks and they cannot be expanded here.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        verify: Verify = "full",
        algorithm: str = "sha256",
        spare: Spare | None = None,
        forwarded: Callable[[str], Forward] | None = None,
    ) -> None:
        if manifest.format != FORMAT:
            require()
        self.manifest = manifest
        self._store = store
        self._verify = verify
        self._algorithm = algorithm
        self._spare = spare
        self._forwarded = forwarded or partial(read_forward, store)
        self._second: ChunkReader | None = None
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._open: dict[str, ObjectReader | None] = {}
        self._forwards: dict[str, dict[int, tuple[str, int]]] = {}

    def close(self) -> None:
        """Closes the packs."""
        with self._lock:
            self._stack.close()
            self._open.clear()
            second, self._second = self._second, None
        if second is not None:
            second.close()

    def spec(self, index: int) -> TensorSpec:
        """Element type and shape of a tensor."""
        record = self.manifest.tensors[index]
        return TensorSpec(record.dtype, record.shape)

    def fresh(self, index: int) -> Buffer:
        """Memory for the whole of a tensor, which lies in its pages as the tensor does in its pack's: then a
        store can read straight into it."""
        size = dtypes.nbytes(self.spec(index))
        if size < _PARALLEL:
            return np.empty(size, np.uint8)
        return self._memory(index, 0, size)

    def _memory(self, index: int, begin: int, end: int) -> Buffer:
        """Memory for a range of a tensor, which lies in its pages as the range does in its pack."""
        offset = self.manifest.tensors[index].shards[0].chunks[begin // self.manifest.chunk_bytes].offset
        offset += begin % self.manifest.chunk_bytes
        memory = np.empty(end - begin + PAGE, np.uint8)
        start = (offset - address(memory)) % PAGE if offset % _LINE == 0 else 0
        return memory[start : start + end - begin]

    def read_all(self, wanted: Iterable[tuple[int, Buffer]]) -> None:
        """Fills each buffer with the whole of a tensor, several chunks at a time.

        Raises CorruptionError at the first chunk that is not what was written; what the buffers hold
        then is not data.
        """
        self._run([job for index, out in wanted for job in self._jobs(index, 0, out.nbytes, out)])

    def _run(self, jobs: list[tuple[int, int, Buffer]]) -> None:
        total = sum(out.nbytes for _, _, out in jobs)
        if total < _PARALLEL:
            for job in jobs:
                self._read_chunk(*job)
            return
        # Each thread holds a compressed chunk as it is stored, beside what it becomes.
        threads = _THREADS if self.manifest.format == FORMAT else min(_THREADS, _EXPANDING)
        few = total < threads * self.manifest.chunk_bytes  # then each chunk is read by several, too
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(threads, thread_name_prefix="ckpt-read"))
            ahead = stack.enter_context(ThreadPoolExecutor(_AHEAD, "ckpt-ahead")) if few else None
            futures = [pool.submit(self._read_group, group, ahead) for group in _groups(jobs)]
            try:
                for future in futures:
                    future.result()
            finally:
                for future in futures:
                    future.cancel()

    def read_range(self, index: int, begin: int, end: int) -> Buffer:
        """Bytes `begin` to `end` of a tensor. Whole chunks are read, since a digest covers a whole chunk,
        unless verification is off and they are not compressed."""
        size = dtypes.nbytes(self.spec(index))
        begin, end = max(0, min(begin, size)), max(0, min(end, size))
        if end <= begin:
            return np.empty(0, np.uint8)
        chunk_bytes = self.manifest.chunk_bytes
        first = begin if self._verify == "off" else begin // chunk_bytes * chunk_bytes
        last = end if self._verify == "off" else min(-(-end // chunk_bytes) * chunk_bytes, size)
        out = self._memory(index, first, last)
        self._run(list(self._jobs(index, first, last, out)))
        return out[begin - first : end - first]

    def check_headers(self, indices: Iterable[int] | None = None) -> None:
        """Checks the headers of the packs that these tensors (or all) lie in. Raises CorruptionError."""
        tensors = self.manifest.tensors
        chosen = tensors if indices is None else [tensors[i] for i in set(indices)]
        chunks = [chunk for tensor in chosen for shard in tensor.shards for chunk in shard.chunks]
        by_pack: dict[int, list[Chunk]] = {}
        for chunk in chunks:
            by_pack.setdefault(chunk.pack, []).append(chunk)
        for number in sorted(by_pack, key=lambda number: self.manifest.packs[number].name):
            own = by_pack[number]
            try:
                self._check_headers_of(own)
            except (CorruptionError, NotFoundError, StoreError) as error:
                self._instead(error, lambda reader, own=own: reader._check_headers_of(own))  # type: ignore[misc]

    def _check_headers_of(self, chunks: Sequence[Chunk]) -> None:
        """Checks the headers of the packs in which the chunks of one pack of the manifest are now."""
        for name, number in sorted({(self._locate(chunk)[0], chunk.pack) for chunk in chunks}):
            self._check_header(name, self.manifest.packs[number])

    def _check_header(self, name: str, record: PackRecord) -> None:
        pack = self._required(name)
        if name != record.name:  # rewritten since: the manifest knows nothing of where its chunks have gone
            read_header(pack.read, pack.size, layout.pack_key(name))
        elif pack.size != record.size or digest_of(pack.read(0, record.header_size)) != record.header:
            raise self._corrupt(
                "header",
                f"the header or size of pack {name} is not what was written",
                key=layout.pack_key(name),
            )

    def _jobs(self, index: int, begin: int, end: int, out: Buffer) -> Iterator[tuple[int, int, Buffer]]:
        """(tensor, offset in it, buffer) for each chunk of a range; `begin` and `end` bound the range."""
        chunk_bytes = self.manifest.chunk_bytes
        position = begin
        while position < end:
            stop = min((position // chunk_bytes + 1) * chunk_bytes, end)
            yield index, position, out[position - begin : stop - begin]
            position = stop

    def _read_group(self, group: Sequence[tuple[int, int, Buffer]], ahead: Executor | None) -> None:
        for job in group:
            self._read_chunk(*job, ahead)

    def _read_chunk(self, index: int, position: int, out: Buffer, ahead: Executor | None = None) -> None:
        try:
            self._read_own(index, position, out, ahead)
        except (CorruptionError, NotFoundError, StoreError) as error:
            self._instead(error, lambda reader: reader._read_own(index, position, out))

    def _instead(self, error: CkptError, read: Callable[[ChunkReader], None]) -> None:
        """Reads from the spare store what cannot be had here. Raises `error` where it is not there either."""
        spare = self._spare
        if spare is None:
            raise error

        def there(store: Store) -> None:
            with self._lock:
                if self._second is None:
                    self._second = ChunkReader(store, self.manifest, self._verify, self._algorithm)
                second = self._second
            read(second)

        spare.instead(error, there)

    def _read_own(self, index: int, position: int, out: Buffer, ahead: Executor | None = None) -> None:
        number = position // self.manifest.chunk_bytes
        chunk = self.manifest.tensors[index].shards[0].chunks[number]
        for _ in range(_LOOKS):
            pack, offset = self._locate(chunk)
            try:
                self._read_at(pack, offset, index, position, out, ahead)
                return
            except ObjectNotFoundError:  # an open object does not outlive its deletion in every store
                self._look_anew(pack)
        raise self._missing(pack, f"pack {pack} is missing from the store")

    def _read_at(
        self, pack: str, offset: int, index: int, position: int, out: Buffer, ahead: Executor | None
    ) -> None:
        number, skipped = divmod(position, self.manifest.chunk_bytes)
        shard = self.manifest.tensors[index].shards[0]
        chunk, stored = shard.chunks[number], shard.stored_length(number)
        facts = {"key": layout.pack_key(pack), "offset": offset, "digest": chunk.digest, "tensor": index}
        reader = self._required(pack)
        if stored:
            whole = self._expanded(reader.read(offset, stored), stored, index, number, out, facts)
            digest = "" if self._verify == "off" else digest_of(whole, self._algorithm)
        else:
            whole, digest = out, self._read_pieces(reader, offset + skipped, out, facts, ahead)
        if self._verify != "off" and digest != chunk.digest:
            raise self._corrupt(
                "digest", f"the bytes at {offset} of pack {pack} are not those that were written", **facts
            )
        if whole is not out:
            out[:] = whole[skipped : skipped + out.nbytes]

    def _read_pieces(
        self, reader: ObjectReader, begin: int, out: Buffer, facts: dict[str, Any], ahead: Executor | None
    ) -> str:
        """Fills `out`, in pieces that end where a page of the file does; the digest of all, if it is wanted.

        Where there is somebody to read `ahead`, a piece is hashed while the next ones are being read.
        """
        if out.nbytes <= _SMALL:
            if reader.read_into(begin, out) != out.nbytes:
                raise self._truncated(facts)
            return "" if self._verify == "off" else digest_of(out, self._algorithm)
        starts = [0, *range(_PIECE - begin % _PIECE, out.nbytes, _PIECE)]
        pieces = [out[start:end] for start, end in pairwise([*starts, out.nbytes])]
        counts = (map if ahead is None else ahead.map)(
            reader.read_into, [begin + start for start in starts], pieces
        )
        hasher = Hasher(self._algorithm)
        for piece, count in zip(pieces, counts, strict=True):
            if count != piece.nbytes:
                raise self._truncated(facts)
            if self._verify != "off":
                hasher.update(piece)
        return hasher.digest()

    def _truncated(self, facts: dict[str, Any]) -> CorruptionError:
        return self._corrupt(
            "truncated", f"{facts['key']} ends inside the chunk at {facts['offset']}", **facts
        )

    def _expanded(
        self, data: Buffer, stored: int, index: int, number: int, out: Buffer, facts: dict[str, Any]
    ) -> Buffer:
        """The whole of a compressed chunk, in `out` if that is where it fits."""
        if data.nbytes != stored:
            raise self._truncated(facts)
        begin = number * self.manifest.chunk_bytes
        length = min(self.manifest.chunk_bytes, dtypes.nbytes(self.spec(index)) - begin)
        whole = out if out.nbytes == length else np.empty(length, np.uint8)
        try:
            expand(data, whole)
        except CorruptionError as error:
            raise self._corrupt(
                error.kind, f"{error}, at {facts['offset']} of {facts['key']}", **facts
            ) from error
        return whole

    def _locate(self, chunk: Chunk) -> tuple[str, int]:
        for _ in range(_LOOKS):
            name, offset = self.manifest.packs[chunk.pack].name, chunk.offset
            for _ in range(_FORWARDS):
                if self._pack(name) is not None:
                    return name, offset
                moved = self._forward(name).get(offset)
                if moved is None:
                    break
                name, offset = moved
            self._look_anew()  # a prune may have moved things about while we looked
        what = (
            f"no longer holds the bytes at {offset}" if self._forward(name) else "is missing from the store"
        )
        raise self._missing(name, f"pack {name} {what}")

    def _pack(self, name: str) -> ObjectReader | None:
        """An open pack; None for one that is missing, which is found out once."""
        with self._lock:
            if name not in self._open:
                self._open[name] = self._opened(name)
            return self._open[name]

    def _opened(self, name: str) -> ObjectReader | None:
        with suppress(ObjectNotFoundError):
            return self._stack.enter_context(open_pack(self._store, name))
        return None

    def _look_anew(self, gone: str | None = None) -> None:
        """Forgets what was missing, and a pack that is `gone` although it is open."""
        with self._lock:
            for name in [name for name, reader in self._open.items() if reader is None or name == gone]:
                del self._open[name]
            self._forwards.clear()

    def _required(self, name: str) -> ObjectReader:
        reader = self._pack(name)
        if reader is None:
            raise self._missing(name, f"pack {name} is missing from the store")
        return reader

    def _forward(self, name: str) -> dict[int, tuple[str, int]]:
        with self._lock:
            if name not in self._forwards:
                try:
                    rows = self._forwarded(name).rows
                except ObjectNotFoundError:
                    rows = ()
                self._forwards[name] = {row.offset: (row.pack, row.new_offset) for row in rows}
            return self._forwards[name]

    def _missing(self, name: str, what: str) -> CkptError:
        """Damage, unless the checkpoint was forgotten and pruned while it was being read."""
        manifest = self.manifest
        if self._store.exists(layout.manifest_key(manifest.experiment, manifest.step, manifest.id)):
            return self._corrupt("missing", what, key=layout.pack_key(name))
        return NotFoundError(
            f"checkpoint {manifest.id} (step {manifest.step}) was forgotten and its bytes were reclaimed while "
            "it was being read; `ckpt ls` lists those that are there",
            kind="forgotten",
            checkpoint=manifest.id,
            step=manifest.step,
        )

    def _corrupt(self, kind: str, what: str, **facts: object) -> CorruptionError:
        return CorruptionError(
            f"checkpoint {self.manifest.id} (step {self.manifest.step}) is damaged: {what}; "
            "`ckpt verify` lists what is hurt, `ckpt ls` other checkpoints to load",
            kind=kind,
            checkpoint=self.manifest.id,
            step=self.manifest.step,
            **facts,
        )


def _groups(jobs: list[tuple[int, int, Buffer]]) -> Iterator[list[tuple[int, int, Buffer]]]:
    """Jobs in bundles of at least some megabytes, so that tiny tensors do not each cost a task."""
    group: list[tuple[int, int, Buffer]] = []
    weight = 0
    for job in jobs:
        group.append(job)
        weight += job[2].nbytes
        if weight >= _PARALLEL:
            yield group
            group, weight = [], 0
    if group:
        yield group
