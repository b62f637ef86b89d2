"""The address of a checkpoint for other systems: `ckpt://<store>/<experiment>/<id>`, each part percent-encoded."""

from __future__ import annotations

from urllib.parse import quote, unquote, urlsplit

from ckpt_core import Checkpoint, CheckpointManager, UsageError

__all__ = ["place_of", "split_place"]


def place_of(manager: CheckpointManager, checkpoint: Checkpoint) -> str:
    """Where a checkpoint of this manager is."""
    parts = (manager.workspace.repository.store.url, checkpoint.experiment, checkpoint.id)
    return "ckpt://" + "/".join(quote(part, safe="") for part in parts)


def split_place(address: str) -> tuple[str, str, str]:
    """(store, experiment, reference) of an address. The reference may be `latest` or a tag, too.

    Raises UsageError.
    """
    parts = [unquote(part) for part in address.removeprefix("ckpt://").rstrip("/").split("/")]
    if urlsplit(address).scheme != "ckpt" or len(parts) != 3 or not all(parts):
        raise UsageError(
            f"{address!r} is no address of a checkpoint: ckpt://<store>/<experiment>/<id, latest or a tag>, each "
            "part percent-encoded",
            kind="address",
        )
    return parts[0], parts[1], parts[2]
