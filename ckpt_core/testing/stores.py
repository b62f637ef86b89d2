"""What a store is, wherever it lives: the suite that each of them inherits.

A concrete class gives `store`, and `raw`, which reads an object going around the store.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ckpt_core.errors import CorruptionError, ObjectExistsError, ObjectNotFoundError, UsageError
from ckpt_core.stores import Store

BAD_KEYS = [
    "", "/", "a/", "/a", "a//b", ".", "..", "../x", "a/../b", "a/./b", "a\\b", "a/..\\b", "a\0b", "a b", "a\nb",
    "a\x7fb", "a\x1b[31m", "ä", "\udcff", ".tmp-0123456789abcdef", "a/.tmp-x", ".tmp-x/a", "x" * 256,
]  # fmt: skip
GOOD_KEYS = ["a", "a/b", ".a", "..a", "...", "-", "~", "a%20b/%2E/c..d", "x" * 255, "a:b*c?<>|\"'", ".tmp"]


def tick() -> None:
    """Lets the clock of any file system that tests run on go on."""
    time.sleep(0.02)


class StoreContract(ABC):
    """The whole suite."""

    @pytest.fixture
    @abstractmethod
    def store(self) -> Store:
        """An empty store."""

    @abstractmethod
    def raw(self, store: Store, key: str) -> bytes | None:
        """What an object holds, not asked of the store; None where there is none."""

    # -- writing and reading

    def test_what_is_put_is_what_is_got(self, store: Store) -> None:
        for data in (b"", b"x", bytes(range(256)) * 5000):
            store.put("a/b", data)
            assert store.get("a/b") == data
            assert self.raw(store, "a/b") == data

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, "array"])
    def test_every_kind_of_bytes_can_be_written(self, store: Store, kind: type | str) -> None:
        data = np.frombuffer(b"abc", np.uint8) if kind == "array" else kind(b"abc")  # type: ignore[operator]
        empty = np.empty(0, np.uint8) if kind == "array" else kind(b"")  # type: ignore[operator]
        store.put("put", data)
        store.put_new("new", data)
        with store.create("piecewise") as writer:
            writer.write(0, data)
            writer.write(3, empty)
            writer.write(3, data)
            writer.commit()
        assert (store.get("put"), store.get("new"), store.get("piecewise")) == (b"abc", b"abc", b"abcabc")

    @pytest.mark.parametrize("first", [0, 1, 4096, 300_000])
    @pytest.mark.parametrize("last", [1, 4096, 400_000])
    def test_a_large_piece_may_come_after_what_stands_behind_it(
        self, store: Store, first: int, last: int
    ) -> None:
        """As a header comes after its data, and the parity of a large pack before what tells of it."""
        data = np.random.default_rng(0).integers(0, 255, first + 600_000 + last, np.uint8)
        with store.create("k") as writer:
            for begin in range(first + 600_000, data.size, 20_480):
                writer.write(begin, data[begin : begin + 20_480])
            writer.write(first, data[first : first + 600_000])
            writer.write(0, data[:first])
            writer.commit()
        assert store.get("k") == data.tobytes()

    def test_pieces_may_be_written_in_any_order(self, store: Store) -> None:
        with store.create("k") as writer:
            writer.write(6, b"gh")
            writer.write(0, b"abc")
            writer.write(3, b"def")
            writer.commit()
        assert store.get("k") == b"abcdefgh"

    def test_put_replaces(self, store: Store) -> None:
        store.put("k", b"long ago")
        store.put("k", b"now")
        assert store.get("k") == b"now"

    def test_what_need_not_be_durable_is_seen_and_gone_at_once(self, store: Store) -> None:
        store.put("a/k", b"long ago")
        store.put("a/k", b"now", durable=False)
        assert self.raw(store, "a/k") == b"now"
        assert [info.key for info in store.list("a")] == ["a/k"]
        for _ in range(2):
            store.delete("a/k", durable=False)
            assert not store.exists("a/k")

    def test_a_key_that_is_taken_is_not_overwritten(self, store: Store) -> None:
        store.put_new("a/k", b"first")
        with pytest.raises(ObjectExistsError) as caught:
            store.put_new("a/k", b"second")
        assert isinstance(caught.value, FileExistsError)
        assert caught.value.key == "a/k"
        assert caught.value.kind == "exists"
        assert store.get("a/k") == b"first"
        assert [info.key for info in store.list("a")] == ["a/k"]

    def test_an_object_is_seen_from_its_commit_on(self, store: Store) -> None:
        with store.create("a/k") as writer:
            writer.write(0, b"data")
            assert not store.exists("a/k")
            assert list(store.list("a")) == []
            assert self.raw(store, "a/k") is None
            writer.commit()
            assert store.get("a/k") == b"data"
        assert store.get("a/k") == b"data"

    def test_what_is_discarded_was_never_there(self, store: Store) -> None:
        with store.create("a/k") as writer:
            writer.write(0, b"data")
        writer.discard()
        with pytest.raises(ZeroDivisionError), store.create("a/k") as writer:
            writer.write(0, b"data")
            raise ZeroDivisionError
        assert not store.exists("a/k")
        assert list(store.list("a")) == []

    def test_of_many_writers_of_one_key_one_wins(self, store: Store) -> None:
        barrier = threading.Barrier(8)

        def write(number: int) -> bool:
            with store.create("a/k") as writer:
                writer.write(0, bytes([number]) * 10_000)
                barrier.wait()
                try:
                    writer.commit()
                except ObjectExistsError:
                    return False
                return True

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(write, range(8)))
        assert sum(won) == 1
        assert store.get("a/k") == bytes([won.index(True)]) * 10_000
        assert len(list(store.list("a"))) == 1

    def test_a_reader_sees_the_old_object_or_the_new_one(self, store: Store) -> None:
        versions = {bytes([n]) * 100_000 for n in range(4)}
        store.put("k", bytes(100_000))
        done = threading.Event()

        def read() -> bool:
            seen = True
            while not done.is_set():
                seen = seen and store.get("k") in versions
            return seen

        with ThreadPoolExecutor(2) as pool:
            readers = [pool.submit(read) for _ in range(2)]
            for _ in range(8):
                for version in sorted(versions):
                    store.put("k", version)
            done.set()
            assert all(reader.result() for reader in readers)

    # -- ranges

    def test_ranges_are_read_at_any_offset(self, store: Store) -> None:
        data = bytes(range(256)) * 40
        store.put("k", data)
        with store.open("k") as reader:
            assert reader.size == len(data)
            for offset, length in [(0, 0), (0, 1), (5, 1000), (len(data) - 3, 3), (0, len(data))]:
                assert reader.read(offset, length).tobytes() == data[offset : offset + length]

    def test_a_range_ends_where_the_object_does(self, store: Store) -> None:
        store.put("k", b"abcdef")
        with store.open("k") as reader:
            assert reader.read(4, 100).tobytes() == b"ef"
            assert reader.read(6, 1).tobytes() == b""
            assert reader.read(100, 1).tobytes() == b""
            assert reader.read(0, 1 << 62).tobytes() == b"abcdef"
            out = np.full(4, 255, np.uint8)
            assert reader.read_into(4, out) == 2
            assert out[:2].tobytes() == b"ef"

    def test_threads_share_a_reader(self, store: Store) -> None:
        data = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8)
        store.put("k", data)
        with store.open("k") as reader, ThreadPoolExecutor(8) as pool:
            offsets = range(0, 1 << 20, 1 << 14)
            found = pool.map(lambda at: reader.read(at, 1 << 14), offsets)
            assert b"".join(part.tobytes() for part in found) == data.tobytes()

    def test_a_get_has_a_limit(self, store: Store) -> None:
        store.put("a/k", b"12345")
        assert store.get("a/k", limit=5) == b"12345"
        with pytest.raises(CorruptionError) as caught:
            store.get("a/k", limit=4)
        assert (caught.value.kind, caught.value.key) == ("size", "a/k")

    # -- what is not there

    @pytest.mark.parametrize("key", ["k", "a/b/c", "there/k", "there/object/below"])
    def test_what_is_not_there_is_not_found(self, store: Store, key: str) -> None:
        store.put("there/other", b"")
        store.put("k2", b"")
        for ask in (store.get, store.info, lambda k: store.move(k, "x")):
            with pytest.raises(ObjectNotFoundError) as caught:
                ask(key)
            assert isinstance(caught.value, FileNotFoundError)
            assert caught.value.key == key
        with pytest.raises(ObjectNotFoundError), store.open(key):
            pass
        assert not store.exists(key)
        store.delete(key)

    def test_an_empty_store_has_nothing(self, store: Store) -> None:
        assert not store.exists("k")
        assert list(store.list("packs")) == []
        assert store.sweep(0.0) == 0
        store.delete("packs/k")

    # -- keys

    @pytest.mark.parametrize("key", BAD_KEYS, ids=ascii)
    def test_what_is_no_key_is_refused(self, store: Store, key: str) -> None:
        asks: list[Callable[[str], object]] = [
            store.get, store.info, store.exists, store.delete, store.create, lambda k: list(store.list(k)),
            lambda k: store.put(k, b""), lambda k: store.put_new(k, b""), lambda k: store.move(k, "x"),
            lambda k: store.move("x", k),
        ]  # fmt: skip
        for ask in asks:
            with pytest.raises(UsageError) as caught:
                ask(key)
            assert caught.value.kind == "key"
            assert str(caught.value).isprintable()

    @pytest.mark.parametrize("key", GOOD_KEYS, ids=ascii)
    def test_what_is_a_key_is_one(self, store: Store, key: str) -> None:
        store.put_new(key, b"data")
        assert store.get(key) == b"data"
        store.put("below/" + key, b"data")
        assert [info.key for info in store.list("below")] == ["below/" + key]

    # -- listing

    def test_a_listing_has_every_object_below_in_order(self, store: Store) -> None:
        keys = ["p/b", "p/a-b/y", "p/a/z", "p/a/x", "p/a.b/x", "p/B", "p2/x", "p/c/d/e/f", "q"]
        for number, key in enumerate(keys):
            store.put(key, bytes(number))
        found = list(store.list("p"))
        assert [info.key for info in found] == sorted(
            (key for key in keys if key.startswith("p/")), key=lambda key: key.split("/")
        )
        assert [info.size for info in found] == [keys.index(info.key) for info in found]
        assert [info.key for info in store.list("p/a")] == ["p/a/x", "p/a/z"]
        assert list(store.list("p/nothing")) == []

    def test_a_listing_lives_with_deletions(self, store: Store) -> None:
        for number in range(50):
            store.put(f"p/{number:02d}", b"")
        seen = []
        for info in store.list("p"):
            seen.append(info.key)
            if not int(info.key[2:]) % 2:
                store.delete(f"p/{int(info.key[2:]) + 1:02d}")
        assert set(seen) >= {f"p/{number:02d}" for number in range(0, 50, 2)}
        assert [info.key for info in store.list("p")] == [f"p/{number:02d}" for number in range(0, 50, 2)]

    def test_info_says_what_the_listing_says(self, store: Store) -> None:
        store.put("p/k", b"12345")
        assert [store.info("p/k")] == list(store.list("p"))
        assert store.info("p/k").size == 5

    # -- names without a look at the objects

    def test_names_and_folders_are_those_right_in_a_folder(self, store: Store) -> None:
        for key in ("a/k", "a/l", "a/b/k", "a/b/c/k", "ab/k", "top"):
            store.put(key, b"x")
        assert sorted(store.names("a")) == ["k", "l"]
        assert sorted(store.names("a/b")) == ["k"]
        assert sorted(store.folders("a")) == ["b"]
        assert list(store.names("none")) == []
        assert list(store.folders("none")) == []

    def test_what_is_being_written_has_no_name_yet(self, store: Store) -> None:
        with store.create("a/k") as writer:
            writer.write(0, b"x")
            assert list(store.names("a")) == []
            writer.commit()
        assert list(store.names("a")) == ["k"]

    @pytest.mark.parametrize("change", ["put", "replace", "create", "delete", "move in", "move out"])
    def test_a_generation_changes_with_the_names_of_a_folder(self, store: Store, change: str) -> None:
        store.put("a/k", b"x")
        store.put("other/k", b"x")
        before = store.generation("a")
        if before is None:
            pytest.skip("this store cannot tell")
        tick()
        assert store.get("a/k") == b"x"
        store.put("other/l", b"x")
        assert store.generation("a") == before
        {
            "put": lambda: store.put("a/l", b"x"),
            "replace": lambda: store.put("a/k", b"y"),
            "create": lambda: store.put_new("a/l", b"x"),
            "delete": lambda: store.delete("a/k"),
            "move in": lambda: store.move("other/k", "a/m"),
            "move out": lambda: store.move("a/k", "other/m"),
        }[change]()
        after = store.generation("a")
        assert after is not None
        assert after.word != before.word
        assert after.since >= before.since

    def test_a_folder_that_is_made_later_has_another_generation(self, store: Store) -> None:
        before = store.generation("a")
        store.put("a/k", b"x")
        assert before is None or store.generation("a") != before

    # -- moving and deleting

    def test_move_renames(self, store: Store) -> None:
        store.put("a/k", b"data")
        store.move("a/k", "b/c/l")
        assert not store.exists("a/k")
        assert store.get("b/c/l") == b"data"

    def test_move_replaces(self, store: Store) -> None:
        store.put("a", b"new")
        store.put("b", b"old")
        store.move("a", "b")
        assert (store.exists("a"), store.get("b")) == (False, b"new")

    def test_move_to_itself_is_nothing(self, store: Store) -> None:
        store.put("a/k", b"data")
        store.move("a/k", "a/k")
        assert store.get("a/k") == b"data"

    def test_move_keeps_the_age(self, store: Store) -> None:
        store.put("a/k", b"data")
        before = store.info("a/k").modified
        store.move("a/k", "b/k")
        assert store.info("b/k").modified == before

    def test_deleting_may_be_repeated(self, store: Store) -> None:
        store.put("a/k", b"data")
        store.delete("a/k")
        store.delete("a/k")
        assert not store.exists("a/k")
        assert self.raw(store, "a/k") is None
        store.put_new("a/k", b"again")

    # -- the clock

    def test_now_is_by_the_clock_that_dates_objects(self, store: Store) -> None:
        before = store.now()
        store.put("a/k", b"data")
        after = store.now()
        assert before - 0.1 <= store.info("a/k").modified <= after + 0.1
        assert [info.key for info in store.list("a")] == ["a/k"]

    def test_free_bytes_are_a_number_or_not_known(self, store: Store) -> None:
        free = store.free_bytes()
        assert free is None or free > 0
