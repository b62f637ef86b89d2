"""The states that are saved and loaded: shapes as people train them, values that no disk can compress.

No framework is imported before a state is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["STATES", "State", "embedding", "evenly", "flat", "halves", "make", "of_bytes", "touch_pages"]

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class State:
    """A nested dict of tensors, as a training loop has it, and how to speak of it."""

    name: str
    tree: dict[str, Any]

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by its path, as `model/h.0.ln_1.weight`."""
        return flat(self.tree)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def bytes_of(self) -> list[np.ndarray[Any, Any]]:
        """The bytes of every tensor, where they are."""
        import torch

        return [tensor.reshape(-1).view(torch.uint8).numpy() for tensor in self.tensors.values()]

    def step(self) -> None:
        """Changes every tensor a little, as a step of training does."""
        for tensor in self.tensors.values():
            tensor.add_(1) if tensor.ndim == 0 else tensor.mul_(1.01)

    def as_jax(self) -> dict[str, Any]:
        """The same tree of JAX arrays that share this memory. No step may be made while they are in use."""
        import jax

        return _mapped(self.tree, jax.dlpack.from_dlpack)

    def like(self) -> State:
        """Tensors of the same shapes, whose memory is there, for a load."""
        import torch

        return State(self.name, _mapped(self.tree, torch.ones_like))

    def check(self, loaded: Mapping[str, Any]) -> None:
        """Raises AssertionError where `loaded`, tensors or arrays by path, is not this state."""
        mine = self.tensors
        assert loaded.keys() == mine.keys(), f"{len(loaded)} tensors were loaded, and {len(mine)} saved"
        for name in [*mine][:: max(1, len(mine) // 20)]:
            assert _raw(loaded[name]) == _raw(mine[name]), f"{name} has other bytes than were saved"


def flat(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by path."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        found.update(flat(value, f"{path}/") if isinstance(value, Mapping) else {path: value})
    return found


def touch_pages(loaded: Any) -> Any:
    """Reads one byte of every page: what is only mapped from a file is not loaded yet. Returns `loaded`."""
    for value in loaded.values() if isinstance(loaded, Mapping) else loaded:
        _bytes(value)[::4096].sum()
    return loaded


def _bytes(value: Any) -> np.ndarray[Any, Any]:
    if hasattr(value, "untyped_storage"):
        import torch

        return value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()  # type: ignore[no-any-return]
    return np.ascontiguousarray(np.asarray(value)).reshape(-1).view(np.uint8)


def _raw(value: Any) -> bytes:
    return _bytes(value).tobytes()


def _mapped(tree: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    return {k: _mapped(v, change) if isinstance(v, Mapping) else change(v) for k, v in tree.items()}


# -- shapes and values --------------------------------------------------------------------------------


def gpt(vocabulary: int, context: int, width: int, layers: int) -> Shapes:
    """The parameters of a GPT-2 of this size."""
    shapes: Shapes = {"wte.weight": (vocabulary, width), "wpe.weight": (context, width)}
    for layer in range(layers):
        block: Shapes = {
            "ln_1.weight": (width,), "ln_1.bias": (width,),
            "attn.c_attn.weight": (width, 3 * width), "attn.c_attn.bias": (3 * width,),
            "attn.c_proj.weight": (width, width), "attn.c_proj.bias": (width,),
            "ln_2.weight": (width,), "ln_2.bias": (width,),
            "mlp.c_fc.weight": (width, 4 * width), "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (4 * width, width), "mlp.c_proj.bias": (width,),
        }  # fmt: skip
        shapes.update({f"h.{layer}.{name}": shape for name, shape in block.items()})
    return shapes | {"ln_f.weight": (width,), "ln_f.bias": (width,)}


GPT2_SMALL = gpt(50257, 1024, 768, 12)
GPT2_TINY = gpt(8000, 256, 128, 5)


class _Values:
    """Random tensors, the same ones each time."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(7)

    def tensor(self, shape: tuple[int, ...], dtype: str = "float32") -> torch.Tensor:
        import torch

        made = torch.empty(shape)  # torch's own memory, which begins where torch lets tensors begin
        self._random.standard_normal(dtype=np.float32, out=made.numpy())
        return made.to(getattr(torch, dtype))


def _adamw(shapes: Shapes, weights: str = "float32") -> dict[str, Any]:
    """A model, and what AdamW keeps of it: two moments in fp32 and a step, for each parameter."""
    import torch

    values = _Values()
    model = {name: values.tensor(shape, weights) for name, shape in shapes.items()}
    moments = {
        name: {
            "step": torch.tensor(100.0),
            "exp_avg": values.tensor(shape),
            "exp_avg_sq": values.tensor(shape),
        }
        for name, shape in shapes.items()
    }
    return {"model": model, "optimizer": moments}


def _tiny_tensors() -> dict[str, Any]:
    values = _Values()
    return {"model": {f"layer.{number}": values.tensor((64,)) for number in range(5000)}}


def _lora(shapes: Shapes, rank: int) -> dict[str, Any]:
    """A frozen base, and adapters with their optimizer's state: what changes is a hundredth."""
    values = _Values()
    attention = {name: shape for name, shape in shapes.items() if name.endswith("c_attn.weight")}
    adapters: Shapes = {}
    for name, (rows, columns) in attention.items():
        adapters |= {f"{name}.lora_A": (rank, rows), f"{name}.lora_B": (columns, rank)}
    base = {name: values.tensor(shape) for name, shape in shapes.items()}
    return {"base": base, "adapters": _adamw(adapters)}


def embedding(rows: int, width: int = 256) -> State:
    """One embedding of `rows` rows of `width` values."""
    return State("embedding", {"model": {"embedding.weight": _Values().tensor((rows, width))}})


def of_bytes(nbytes: int) -> State:
    """A GPT-2 with AdamW of about so many bytes, in fp32."""
    width = 128
    while _size(gpt(60 * width, 256, width, 8)) < nbytes:
        width += 32
    return State(f"{nbytes >> 20} MB", _adamw(gpt(60 * width, 256, width, 8)))


def _size(shapes: Shapes) -> int:
    return sum(12 * int(np.prod(shape)) for shape in shapes.values())


def evenly(count: int, nbytes: int) -> State:
    """`count` tensors of one length, of `nbytes` together."""
    values = _Values()
    length = max(1, nbytes // 4 // count)
    return State(
        f"{count} tensors", {"model": {f"layer.{n}": values.tensor((length,)) for n in range(count)}}
    )


STATES: dict[str, Callable[[], dict[str, Any]]] = {
    "standard": lambda: _adamw(GPT2_SMALL),
    "small": lambda: _adamw(GPT2_TINY),
    "bf16": lambda: _adamw(GPT2_SMALL, "bfloat16"),
    "small bf16": lambda: _adamw(GPT2_TINY, "bfloat16"),
    "5,000 tiny tensors": _tiny_tensors,
    "one tensor": lambda: {"model": {"weight": _Values().tensor((375, 1 << 20))}},
    "one small tensor": lambda: {"model": {"weight": _Values().tensor((6, 1 << 20))}},
    "LoRA": lambda: _lora(GPT2_SMALL, 8),
    "small LoRA": lambda: _lora(GPT2_TINY, 8),
}
"""By name; those with `small` are for `--quick`."""


def make(name: str) -> State:
    """The state of this name."""
    return State(name, STATES[name]())


def halves(state: State) -> Iterator[torch.Tensor]:
    """The tensors of the upper half of a GPT-2's layers and their optimizer's state: the rest is frozen."""
    layers = sorted({name.split(".")[1] for name in state.tree["model"] if name.startswith("h.")}, key=int)
    upper = tuple(f"h.{layer}." for layer in layers[len(layers) // 2 :])
    for path, tensor in state.tensors.items():
        if any(part.startswith(upper) for part in path.split("/")):
            yield tensor
