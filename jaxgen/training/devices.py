"""Where a step runs: thin wrappers that put one step body on one or many devices.

:class:`Sharded` is ``jit`` over a mesh, in one process or in many. The arrays are global, so draws,
batch statistics and means are those of the whole batch and the result does not depend on the number
of devices. :class:`Pmapped` is ``pmap``: every device runs the body on its own share with its own
key, and the body averages over the named axis. Both take and return the same states and batches.

A state has two forms. *Placed* is what the compiled step takes and returns. *Stored* is what a
checkpoint holds: arrays without a device axis, which may be divided over devices and processes.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxgen.training.logging import console

AXIS = "batch"
MODEL_AXIS = "model"
YNN = "xla_cpu_experimental_ynn_fusion_type"  # what XLA on CPU leaves to YNNPACK
LARGE_STEP = 1e7  # elements of state and batch
Gather = Callable[[Any, Any], Any]  # (arrays, index) -> a batch, by a pure function
SMALLEST_SPLIT = 1024  # elements; dividing smaller arrays saves nothing and costs a message


class Placement(Protocol):
    """Compiles steps and moves states and batches for a set of devices.

    A batch is one for all processes; each reads and passes its ``rows`` of it alone.
    """

    @property
    def axis_name(self) -> str | None: ...

    def compile(self, step: Callable, *, donate: bool = True) -> Any:
        """The jitted (state, batch, key) -> (state, metrics), the state's buffers donated.

        Arrays that all steps share, placed as a state is, are passed by keyword.
        """
        ...

    def init(self, init: Callable[[Any], Any], key: Any) -> Any:
        """The placed state ``init(key)``, no device ever holding more than its part.

        ``key`` may come with arrays that the state is made of.
        """
        ...

    def stored(self, init: Callable[[Any], Any], key: Any) -> Any:
        """Shapes, types and shardings of the stored ``init(key)``, to restore a checkpoint to."""
        ...

    def put_state(self, state: Any) -> Any:
        """A stored state (or one on a single device), placed."""
        ...

    def get_state(self, state: Any) -> Any:
        """A placed state, as it is stored."""
        ...

    def rows(self, batch: int) -> slice:
        """Which rows of a batch of this size the devices of this process hold."""
        ...

    def put_batch(self, batch: Any, *, leading: int = 0) -> Any:
        """Host arrays with this process's rows at axis ``leading``, to its devices."""
        ...

    def resident(self, arrays: Any, gather: Gather) -> Callable[[Any], Any]:
        """Keeps arrays on the devices; answers a placed index with ``gather(arrays, index)``."""
        ...


def check_divisible(batch: int, devices: int) -> None:
    """Raises ValueError unless every device gets the same share of the batch."""
    if batch % devices:
        raise ValueError(
            f"batch ({batch}) is not divisible by the number of devices ({devices}): "
            f"use {max(1, batch // devices) * devices}."
        )


def scan_steps(step: Callable) -> Callable:
    """n steps in one dispatch: batches ``[n, B, ...]``; metrics are those of each step ``[n]``.

    For dense networks everywhere, and for any on accelerators; on CPU the weight gradient of a
    convolution is about 30 times slower inside a scan than outside, unless the network convolves
    by :func:`jaxgen.models.convolution.convolve`.
    """

    def steps(state, batches, key, **kwargs):
        return lax.scan(lambda state, batch: step(state, batch, key, **kwargs), state, batches)

    return steps


def split_longest(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    """Divides the longest axis that ``parts`` divides over the model axis of the mesh.

    Arrays of fewer than ``SMALLEST_SPLIT`` elements, or without such an axis, stay whole.
    """
    axes = [i for i, n in enumerate(shape) if n % parts == 0]
    if parts == 1 or not axes or np.prod(shape) < SMALLEST_SPLIT:
        return PartitionSpec()
    longest = max(axes, key=lambda i: shape[i])
    return PartitionSpec(*[MODEL_AXIS if i == longest else None for i in range(len(shape))])


@dataclass(frozen=True)
class Sharded:
    """``jit`` over a mesh (data x model), in one process or in many.

    The batch is divided over all devices. Every ``model`` neighbours divide parameters, averages
    and optimizer state among them (Zhao et al. 2023, FSDP; with ``model`` = 1 each device holds
    all of it), and XLA gathers each array where the step needs it whole.
    """

    devices: tuple[Any, ...]
    model: int = 1

    @property
    def axis_name(self) -> str | None:
        return None

    @property
    def _mesh(self) -> Mesh:
        return Mesh(np.asarray(self.devices).reshape(-1, self.model), (AXIS, MODEL_AXIS))

    def _sharding(self, *axes: Any) -> NamedSharding:
        return NamedSharding(self._mesh, PartitionSpec(*axes))

    def _divided(self, leading: int) -> NamedSharding:
        return self._sharding(*[None] * leading, (AXIS, MODEL_AXIS))

    def _of_state(self, state: Any) -> Any:
        mesh = self._mesh
        return jax.tree.map(
            lambda x: NamedSharding(mesh, split_longest(x.shape, self.model)), state
        )

    def compile(self, step: Callable, *, donate: bool = True) -> Any:
        def kept_in_place(state, batch, key, **shared):
            state, metrics = step(state, batch, key, **shared)
            state = lax.with_sharding_constraint(state, self._of_state(state))
            return state, lax.with_sharding_constraint(metrics, self._sharding())

        return jax.jit(kept_in_place, donate_argnums=0 if donate else ())

    def init(self, init: Callable[[Any], Any], key: Any) -> Any:
        shardings = self._of_state(jax.eval_shape(init, key))
        return run_once(jax.jit(init, out_shardings=shardings), key)

    def stored(self, init: Callable[[Any], Any], key: Any) -> Any:
        shapes = jax.eval_shape(init, key)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes,
            self._of_state(shapes),
        )

    def put_state(self, state: Any) -> Any:
        return jax.device_put(state, self._of_state(state))

    def get_state(self, state: Any) -> Any:
        return state

    def rows(self, batch: int) -> slice:
        check_divisible(batch, len(self.devices))
        held = self._divided(0).addressable_devices_indices_map((batch,)).values()
        parts = [index[0].indices(batch) for index in held if index]
        return slice(min(part[0] for part in parts), max(part[1] for part in parts))

    def put_batch(self, batch: Any, *, leading: int = 0) -> Any:
        sharding = self._divided(leading)

        def put(x):
            check_divisible(x.shape[leading], len(sharding.addressable_devices))
            return jax.make_array_from_process_local_data(sharding, x)

        return jax.tree.map(put, batch)

    def resident(self, arrays: Any, gather: Gather) -> Callable[[Any], Any]:
        whole = self._sharding()
        arrays = jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, whole, lambda index: x[index]), arrays
        )
        gathers = [jax.jit(gather, out_shardings=self._divided(leading)) for leading in range(3)]
        return lambda index: gathers[index.ndim - 1](arrays, index)


@dataclass(frozen=True)
class Pmapped:
    """``pmap`` over the devices: everything has a leading device axis, hidden behind this class."""

    devices: tuple[Any, ...]

    @property
    def axis_name(self) -> str | None:
        return AXIS

    def compile(self, step: Callable, *, donate: bool = True) -> Any:
        return jax.pmap(
            partial(step, axis_name=AXIS),
            axis_name=AXIS,
            in_axes=(0, 0, None),
            out_axes=(0, None),  # metrics are equal on all, by pmean
            devices=self.devices,
            donate_argnums=0 if donate else (),
        )

    def init(self, init: Callable[[Any], Any], key: Any) -> Any:
        return self.put_state(run_once(jax.jit(init), key))

    def stored(self, init: Callable[[Any], Any], key: Any) -> Any:
        one = SingleDeviceSharding(self.devices[0])
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one),
            jax.eval_shape(init, key),
        )

    def _split(self, x: Any, axis: int) -> Any:
        n = len(self.devices)
        check_divisible(x.shape[axis], n)
        x = x.reshape(*x.shape[:axis], n, x.shape[axis] // n, *x.shape[axis + 1 :])
        return np.moveaxis(x, axis, 0)

    def _put(self, tree: Any) -> Any:
        sharding = NamedSharding(Mesh(np.asarray(self.devices), (AXIS,)), PartitionSpec(AXIS))
        return jax.device_put(tree, sharding)

    def put_state(self, state: Any) -> Any:
        n = len(self.devices)
        return self._put(jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *jnp.shape(x))), state))

    def get_state(self, state: Any) -> Any:
        return jax.tree.map(lambda x: x[0], state)

    def rows(self, batch: int) -> slice:
        return slice(0, batch)

    def put_batch(self, batch: Any, *, leading: int = 0) -> Any:
        return self._put(jax.tree.map(lambda x: self._split(np.asarray(x), leading), batch))

    def resident(self, arrays: Any, gather: Gather) -> Callable[[Any], Any]:
        copies = self.put_state(arrays)
        gathered = jax.pmap(gather, axis_name=AXIS, devices=self.devices)
        return lambda index: gathered(copies, index)


def on_one_device(state: Any) -> Any:
    """The whole of a stored state on the first device of this process, for evaluation.

    Every process must call it: what they divide among them is gathered.
    """

    def whole(x: jax.Array) -> jax.Array:
        if not isinstance(x.sharding, NamedSharding):
            return x
        replicated = NamedSharding(x.sharding.mesh, PartitionSpec())
        return jax.device_put(x, replicated).addressable_data(0)

    return jax.tree.map(whole, state)


def tune_cpu() -> None:
    """What makes XLA on CPU faster for image networks; to be called before JAX's first use.

    Both were measured on two cores; on an accelerator neither changes anything.
    """
    keep_freed_memory()
    leave_out_ynn_convolutions()


def leave_out_ynn_convolutions() -> bool:
    """Has XLA on CPU take its older convolutions, by ``XLA_FLAGS``; whether it was asked to.

    Those of YNNPACK, the default of JAX 0.10 to 0.12, run on one thread up to 64 output channels
    (0.10), and their kernel's gradient takes up to 2.5 times as long. Matrix products and
    reductions are left to YNNPACK, as by default. Nothing is asked where ``XLA_FLAGS`` has the
    option already, nor of a JAX for which it was not tried: XLA ends at a flag that it lacks.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if not _ynn_was_tried() or YNN in flags:
        return False
    kept = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    os.environ["XLA_FLAGS"] = f"{flags} --{YNN}={kept}".strip()
    return True


def compile_lowered(lowered: Any) -> Any:
    """Compiles a lowered step; on CPU, a large one of convolutions with YNNPACK's arithmetic.

    A U-Net's training step of 145 GFLOP took 0.69 seconds by it in place of 0.83, a quarter less
    compilation, and 40 % more memory; its gradient differs by 1e-7. Small steps do not gain: one of
    2 GFLOP took as long, a small GAN's 9 % and dense layers in a scan 150 % longer. This holds for
    the one program, over what ``XLA_FLAGS`` says of YNNPACK.
    """
    on_cpu = jax.default_backend() == "cpu" and _ynn_was_tried()
    # the size of state and batch stands for that of the step: XLA takes half a second to count it
    size = sum(math.prod(x.shape) for x in jax.tree.leaves(lowered.args_info))
    if not on_cpu or size < LARGE_STEP or "stablehlo.convolution" not in lowered.as_text():
        return lowered.compile()
    fused = "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_ELTWISE,LIBRARY_FUSION_TYPE_REDUCE"
    return lowered.compile({YNN: fused})


def run_once(jitted: Any, *args: Any) -> Any:
    """Calls a jitted function that is called only once: on CPU, compiled with no optimization.

    The draws of a small U-Net's parameters took 8.6 seconds to compile, and 2.0 so.
    """
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jitted.lower(*args).compile(options)(*args)


def _ynn_was_tried() -> bool:
    return (0, 10) <= jax.__version_info__[:2] < (0, 13)


def keep_freed_memory() -> bool:
    """Has the C library keep what is freed for the next allocation; whether it does.

    XLA on CPU allocates the buffers of a program anew at every call, and glibc returns large ones
    to the system and asks for them again, a page fault for every 4 KiB. Without that, a U-Net's
    training step (590 MiB of buffers) took 0.85 seconds in place of 0.94, and 0.98 in place of 1.42
    in a process that had loaded other libraries (two CPU cores, JAX 0.10). To be called before the
    first array is made. With another C library nothing happens.
    """
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # the names of glibc's malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    never = 2**31 - 1
    return all(
        mallopt(parameter, value)
        for parameter, value in ((arena_max, 1), (mmap_threshold, never), (trim_threshold, never))
    )


class OutOfMemory(RuntimeError):
    """Raised where a step does not fit into the memory of a device; says how it may."""


def compile_to_fit(compiled: Any, *args: Any, **shared: Any) -> Any:
    """The program of a jitted step for these arguments, which says what it needs of a device.

    Raises:
      OutOfMemory: if a device has less.
    """
    device = jax.local_devices()[0]
    program, needed, available = None, None, memory_available(device)
    try:
        program = compile_lowered(compiled.lower(*args, **shared))
        needed = memory_needed(program)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
    if needed is not None:
        count = len(jax.tree.leaves(args)[0].sharding.device_set)
        console.print(
            f"memory: a step needs {needed / 2**20:,.0f} MiB of {available / 2**20:,.0f} MiB "
            f"on each of {count} devices"
        )
    if program is None or (needed is not None and needed > available):
        raise OutOfMemory(
            f"a step does not fit into the {available / 2**30:.1f} GiB of a {device.device_kind}: "
            "lower --image-size or --batch, or try --accumulate 2, --remat, --bfloat16 or more "
            "--model-devices."
        )
    return program


def placement_of(kind: str, count: int | None, model: int, batch: int) -> Placement:
    """The placement on so many devices (all where None), of which ``model`` divide the state.

    Raises:
      ValueError: for too many devices, a kind that cannot, or a batch or state they cannot share.
    """
    available = jax.devices()
    count = count or len(available)
    if count > len(available):
        raise ValueError(f"there are {len(available)} devices, not {count}: lower --devices.")
    if jax.process_count() > 1 and (kind != "jit" or count < len(available)):
        raise ValueError(
            "several processes use jit and all devices: drop --parallel and --devices."
        )
    if kind != "jit" and model > 1:
        raise ValueError("pmap keeps the state whole on every device: use --parallel jit.")
    if count % model:
        raise ValueError(f"--model-devices ({model}) does not divide the {count} devices.")
    check_divisible(batch, count)
    devices = tuple(available[:count])
    return Pmapped(devices) if kind == "pmap" else Sharded(devices, model)


def memory_needed(program: Any) -> int | None:
    """Bytes a device holds while a compiled program runs, by XLA's plan; None where it has none."""
    plan = program.memory_analysis()
    plan = plan[0] if isinstance(plan, (list, tuple)) else plan
    if plan is None:
        return None
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes
    )


def memory_available(device: Any) -> int:
    """Bytes of one device; on CPU its share of the machine's memory."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit:
        return int(limit)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total // jax.local_device_count()
