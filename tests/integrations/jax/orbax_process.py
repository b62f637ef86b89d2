"""One of two processes that save and restore a sharded array through Orbax; see `test_orbax_processes.py`.

    python orbax_process.py RANK PORT FOLDER v0|v1

Prints the first value that this process holds, and the events that it heard.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def main() -> None:
    rank, port, folder, version = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
    jax.distributed.initialize(f"localhost:{port}", 2, rank)

    import orbax.checkpoint as v0
    import orbax.checkpoint.experimental.v1 as v1

    from ckpt_core import HookEvent, hook
    from ckpt_jax import OrbaxHandler

    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("all",)), P("all"))
    host = np.arange(64, dtype=np.float32).reshape(8, 8)
    array = jax.make_array_from_callback((8, 8), sharding, lambda index: host[index])
    heard: list[Any] = []
    note = hook(*HookEvent)(lambda context: heard.append([context.event.name, context.step]))
    with OrbaxHandler(folder / "ledger", experiment="e", hooks=[note]) as watch:
        if version == "v0":
            with v0.CheckpointManager(folder / "orbax", handler_registry=watch.registry()) as manager:
                for step in (1, 2):
                    manager.save(step, args=v0.args.StandardSave({"x": array}))
                manager.wait_until_finished()
                loaded = manager.restore(2, args=v0.args.StandardRestore({"x": array}))
        else:
            with v1.training.Checkpointer(folder / "orbax", context=watch.context()) as checkpointer:
                for step in (1, 2):
                    checkpointer.save(step, {"x": array}, force=True)
                loaded = checkpointer.load(2, {"x": array})
        watch.wait()
        first = float(np.asarray(loaded["x"].addressable_data(0))[0, 0])
        steps = [checkpoint.step for checkpoint in watch.manager.checkpoints()]
        print(json.dumps({"first": first, "heard": heard, "failures": len(watch.failures), "steps": steps}))


if __name__ == "__main__":
    main()
