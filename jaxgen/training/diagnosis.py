"""How a model trains: how noisy its gradient is, and where in time its loss lies."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.linen import summary
from jax import Array

from jaxgen.training.logging import console


class NoiseScale(NamedTuple):
    """The gradient g of one example: |E g|^2, tr cov(g), and their ratio.

    ``scale`` = noise / signal is the batch, in examples, whose gradient is as much noise as signal:
    far smaller batches waste no example, far larger ones hardly lower the number of steps.
    """

    signal: float
    noise: float

    @property
    def scale(self) -> float:
        return self.noise / self.signal


def noise_scale(small_square: float, large_square: float, small: int, large: int) -> NoiseScale:
    """Unbiased estimates from E|G|^2 of batches of two sizes, since E|G_B|^2 = signal + noise / B.

    McCandlish et al. 2018, appendix A.1.

    Raises:
      ValueError: unless ``small`` < ``large``.
    """
    if small >= large:
        raise ValueError(f"the two batches must differ in size, small first: {small}, {large}.")
    signal = (large * large_square - small * small_square) / (large - small)
    noise = (small_square - large_square) / (1 / small - 1 / large)
    return NoiseScale(signal, noise)


def gradient_noise(
    loss_fn: Callable[[Any, Any, Array], tuple[Array, Any]],
    params: Any,
    batches: Iterable[Any],
    key: Array,
    parts: int,
) -> NoiseScale:
    """The noise scale of a loss ``(params, batch, key) -> (scalar, metrics)``.

    Each batch is compared with its ``parts``, each with draws of its own; |G|^2 is averaged over
    parts and over batches before the ratio is taken.
    """

    gradient = jax.jit(lambda *args: jax.grad(loss_fn, has_aux=True)(*args)[0])
    square = jax.jit(lambda g: optax.tree.norm(g, squared=True))
    found, size = [], 0
    for i, batch in enumerate(batches):
        size = jax.tree.leaves(batch)[0].shape[0]
        divided = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
        of_parts = [
            gradient(
                params,
                jax.tree.map(lambda x, j=j: x[j], divided),
                jax.random.fold_in(jax.random.fold_in(key, i), j),
            )
            for j in range(parts)
        ]
        mean = jax.tree.map(lambda *g: sum(g) / parts, *of_parts)
        found.append((np.mean([square(g) for g in of_parts]), float(square(mean))))
    small, large = np.mean(found, axis=0)
    return noise_scale(small, large, size // parts, size)


class LossByTime(NamedTuple):
    """Mean and standard deviation of the loss of one example in each bin of time."""

    time: np.ndarray  # [bins], the mean time in the bin
    mean: np.ndarray  # [bins]
    std: np.ndarray  # [bins]


def loss_by_time(times: np.ndarray, losses: np.ndarray, bins: int = 10) -> LossByTime:
    """Sorts examples ``[N]`` by time into bins of equal number."""
    order = np.array_split(np.argsort(times, kind="stable"), bins)
    rows = [(times[i].mean(), losses[i].mean(), losses[i].std()) for i in order]
    return LossByTime(*np.asarray(rows).T)


class Called(NamedTuple):
    """A network and the arguments that it was called with, of the same shapes."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def called_networks(function: Callable[..., Any], *args: Any) -> dict[str, Called]:
    """The Flax networks that a function calls with arrays, by the names of their types.

    The function is traced alone.
    """
    found: dict[str, Called] = {}

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        arrays = all(hasattr(x, "dtype") for x in jax.tree.leaves(args))
        if context.method_name == "__call__" and not module.path and arrays:
            zeros = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.result_type(x)), args)
            found.setdefault(type(module).__name__, Called(module.clone(), zeros, kwargs))
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        jax.eval_shape(lambda *args: function(*args)[0], *args)
    return found


def network_table(network: Called) -> str:
    """Parameters and operations of a network by module."""
    make = summary.tabulate(
        network.module,
        {"params": jax.random.key(0), "dropout": jax.random.key(1)},
        depth=1,
        compute_flops=True,
        console_kwargs={"width": 120, "force_terminal": False},
    )
    return make(*network.args, **network.kwargs).rstrip()


def profiled(step: Callable, directory: Path, calls: int) -> Callable:
    """The step, of whose ``calls`` ten are traced: ``tensorboard --logdir`` or ui.perfetto.dev.

    The first ten are passed over, or half of them in a run of less than twenty.
    """
    first = min(10, calls // 2)
    last = min(first + 10, calls) - 1
    count = itertools.count()

    def traced(state: Any, batch: Any, key: Array) -> Any:
        call = next(count)
        if call == first:
            jax.profiler.start_trace(directory, create_perfetto_trace=True)
        state, metrics = step(state, batch, key)
        if call == last:
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            console.print(f"profile of {last - first + 1} calls in {directory}")
        return state, metrics

    return traced
