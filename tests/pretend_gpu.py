"""A GPU that is none: tensors that say they are on cuda:0, computed on the CPU.

For tests of code that is to run on a GPU, on machines without one. What a real GPU refuses is
refused: operations on tensors of both devices, generators of another device than what they fill,
numpy() of a tensor on the GPU. Nothing is known here of its speed, of its memory or of its digits.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from time import perf_counter
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo  # before it is patched
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda", 0)
_COPIES = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}
_INDEXED = {  # take indices on the CPU, too
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
}


class OnGPU(Tensor):
    """A tensor on the pretended GPU; `inner` holds its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> "OnGPU":
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device="meta",  # to PyTorch's own code, which would ask for a GPU
            requires_grad=requires_grad,
        )
        made.inner = inner
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> "OnGPU":
        return OnGPU(inner["inner"])

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGPU({self.inner})"

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __array__(self, *_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def item(self) -> Any:
        return self.inner.item()

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __bool__(self) -> bool:
        return bool(self.inner)

    def __float__(self) -> float:
        return float(self.inner)

    def __int__(self) -> int:
        return int(self.inner)

    __index__ = __int__

    def pin_memory(self, *_: Any) -> Any:
        raise RuntimeError("only dense CPU tensors can be pinned")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Generator(torch.Generator):
    """One that knows of the pretended GPU; draws on the CPU."""

    _device: torch.device

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        made = super().__new__(cls)
        made._device = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self._device


class _Mode(TorchDispatchMode):
    """What makes tensors on the GPU from none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Numbered(TorchFunctionMode):
    """`cuda` is `cuda:0`: to find that out, PyTorch would ask for the GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))

        def numbered(x: Any) -> Any:
            return CUDA if isinstance(x, str | torch.device) and str(x) == "cuda" else x

        kwargs = {name: numbered(x) for name, x in (kwargs or {}).items()}
        if func is Tensor.new_tensor and isinstance(args[0], OnGPU):
            return torch.tensor(args[1], **{"dtype": args[0].dtype, **kwargs}).to(CUDA)
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == CUDA:
            del kwargs["device"]
            return func(*args, **kwargs).to(CUDA)
        found = func(*map(numbered, args), **kwargs)
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != found.device.type:
            raise RuntimeError(f"{func} on {found.device}: generator of {generator.device}")
        return found


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given, _ = tree_flatten((args, kwargs))
    tensors = [x for x in given if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, OnGPU)]
    asked = kwargs.get("device")
    asked = None if asked is None else torch.device(asked)
    on_gpu = bool(there) if asked is None else asked.type != "cpu"
    if func in _COPIES:
        on_gpu = isinstance(args[0], OnGPU) if asked is None else on_gpu
    elif there and func not in _INDEXED:
        for x in tensors:
            if not isinstance(x, OnGPU) and x.dim():
                raise RuntimeError(f"{func}: tensors on cuda:0 and cpu")

    def unwrap(x: Any) -> Any:
        if isinstance(x, OnGPU):
            return x.inner
        return torch.device("cpu") if isinstance(x, torch.device) else x

    with torch.utils._python_dispatch._disable_current_modes():
        inner_args, inner_kwargs = tree_map(unwrap, (args, kwargs))
        found = func(*inner_args, **inner_kwargs)
    if torch.Tag.inplace_view in func.tags and there:  # PyTorch's own view of the shape
        with no_dispatch():
            func(*args, **kwargs)
        return args[0]
    if not on_gpu:
        return found
    known = {id(x.inner): x for x in there}

    def wrap(x: Any) -> Any:
        if not isinstance(x, Tensor) or isinstance(x, OnGPU):
            return x
        return known.get(id(x)) if id(x) in known else OnGPU(x)

    return tree_map(wrap, found)


class _Event:
    """A moment on the pretended GPU, which has done all that it was asked to."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.seconds = 0.0

    def record(self, stream: Any = None) -> None:
        self.seconds = perf_counter()

    def synchronize(self) -> None:
        """Nothing is left to wait for."""

    def elapsed_time(self, end: "_Event") -> float:
        return 1000 * (end.seconds - self.seconds)


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """Within, PyTorch has one GPU.

    Its optimizers must not find it: where PyTorch is built with CUDA, they would ask the driver.
    """
    properties = SimpleNamespace(total_memory=80 * 2**30, name="pretended", major=9, minor=0)
    changes = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "device": lambda device: nullcontext(),
        "default_generators": (torch.default_generator,),
        "Event": _Event,
        "current_stream": lambda device=None: None,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device=None: None,
        "memory_allocated": lambda device=None: 2**29,
        "memory_reserved": lambda device=None: 2**30,
        "max_memory_reserved": lambda device=None: 2**30,
        "get_device_properties": lambda device=None: properties,
        "get_device_name": lambda device=None: properties.name,
    }
    with (
        patch.multiple(torch.cuda, **changes),
        patch.object(torch.accelerator, "current_accelerator", lambda check_available=False: None),
        patch.object(torch, "Generator", _Generator),
        patch.object(torch, "compile", lambda model, **_: model),
        patch.object(Tensor, "pin_memory", lambda self, *_: self),
        _swapping(),
        _Numbered(),
        _Mode(),
    ):
        yield CUDA


@contextmanager
def _swapping() -> Iterator[None]:
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
