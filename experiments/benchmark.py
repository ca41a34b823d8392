"""How fast this machine trains and samples a U-Net, as ratios to its matrix products.

    python -m experiments.benchmark                   # the digits model on CPU, else CIFAR-10's
    python -m experiments.benchmark --model cifar10 --dtype bfloat16 --json out.json
    python -m experiments.benchmark --torch           # against PyTorch and diffusers, on CPU

It needs jax, flax, optax and numpy only (and the two libraries it compares with for --torch), so it
also runs on a bare accelerator machine. Everything is measured in one process, in turns, and quoted
as medians: on a shared machine only ratios hold.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import time
import types
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

try:
    import chex  # noqa: F401
except ImportError:  # a bare machine: do without the checks of shapes
    stand_in: Any = types.ModuleType("chex")
    stand_in.__getattr__ = lambda name: lambda *args, **kwargs: None
    sys.modules["chex"] = stand_in

from jaxgen.data.order import ShuffledBatches
from jaxgen.data.records import Arrays, to_signed
from jaxgen.diffusion.guidance import clip_x_0
from jaxgen.diffusion.parameterization import denoiser
from jaxgen.diffusion.samplers import ancestral, evaluations, sample
from jaxgen.diffusion.schedules import (
    CosineLogSNR,
    from_betas,
    linear_betas,
    respaced_times,
    uniform_grid,
)
from jaxgen.diffusion.solvers import SOLVERS
from jaxgen.losses.denoising import simple_loss
from jaxgen.models.unet import UNet
from jaxgen.training.devices import Sharded, compile_lowered, tune_cpu
from jaxgen.training.loop import fit
from jaxgen.training.step import adam, init_state, make_step

Image = tuple[int, int, int]
MODELS: dict[str, tuple[UNet, Image, int]] = {  # the network, its images, the batch a device
    "tiny": (UNet(8, (1, 1), blocks=1, attention=(), groups=4), (8, 8, 1), 8),
    "digits": (UNet(32, (1, 1), blocks=1, attention=(4,), groups=8), (8, 8, 1), 64),
    "medium": (UNet(64, (1, 2, 2), blocks=2, attention=(16,)), (32, 32, 3), 16),
    "cifar10": (UNet(dropout=0.1), (32, 32, 3), 128),
}


def interleaved(
    tasks: dict[str, Callable[[], Any]], rounds: int, calls: int = 1, settle: float = 0.0
) -> dict[str, float]:
    """Median seconds of each task over ``rounds`` in which all take turns of so many ``calls``.

    A task may return a list of things to wait for; the first, uncounted round compiles. Before
    each turn the process sleeps ``settle`` seconds, for threads that wait by spinning to stop.
    """
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for i in range(rounds + 1):
        for name, task in tasks.items():
            time.sleep(settle)
            for _ in range(calls if i > 0 else 1):
                begun = time.perf_counter()
                jax.block_until_ready(task())
                if i > 0:
                    times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def host_seconds(rounds: int = 5, steps: int = 200) -> float:
    """Seconds a step that the training loop takes itself: with a step that computes nothing."""
    names = ("loss", "grad_norm", "update_norm", "param_norm", "skipped")
    nothing = jax.jit(lambda state, batch, key: (state, dict.fromkeys(names, batch)))
    batch, key = jnp.zeros(()), jax.random.key(0)

    class NoLog:
        def write(self, step: int, metrics: dict[str, Any]) -> None: ...

    def run() -> Any:
        return fit(
            batch,
            nothing,
            itertools.repeat(batch),
            key,
            start=0,
            stop=steps,
            log=NoLog(),
            log_every=50,
            checkpoint=lambda done, state: None,
            checkpoint_every=steps,
            advance=lambda *args, **kwargs: None,
        )

    return interleaved({"loop": run}, rounds)["loop"] / steps


def flops(compiled: Any) -> float:
    """Floating-point operations of a compiled program, as XLA counts them (0 where it does not)."""
    analysis = compiled.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    return float((analysis or {}).get("flops", 0.0))


def measure(model: str, dtype: str, batch: int | None, sample_steps: int, rounds: int) -> dict:
    """Runs the benchmark; returns its numbers, each named with its unit."""
    unet, shape, per_device = MODELS[model]
    unet = unet.clone(dtype=jnp.dtype(dtype))
    apply: Any = unet.apply
    schedule = from_betas(linear_betas())
    devices = tuple(jax.devices())
    placement = Sharded(devices)
    batch = batch or per_device * len(devices)
    optimizer = adam(2e-4, warmup=5000, clip=1.0)

    def init(key: jax.Array) -> Any:
        return init_state(unet.init(key, jnp.zeros((1, *shape)), jnp.zeros((1,))), optimizer)

    def loss_fn(params, batch, key):
        key_loss, key_dropout = jax.random.split(key)
        network = partial(apply, {"params": params}, train=True, rngs={"dropout": key_dropout})
        return simple_loss(key_loss, network, schedule, to_signed(batch["x"], 256)).mean(), {}

    images = np.random.default_rng(0).integers(256, size=(4096, *shape), dtype=np.uint8)
    source = Arrays({"x": images, "label": np.zeros(len(images), np.int32)})
    order = ShuffledBatches(len(source), batch, seed=0)
    gather = placement.resident(source.arrays, source.gather)
    key = jax.random.key(0)
    begun = time.perf_counter()
    state = placement.put_state(jax.jit(init)(key))
    resident = gather(placement.put_batch(order[0]))
    jitted: Any = placement.compile(make_step(loss_fn, optimizer, 0.9999))
    step = compile_lowered(jitted.lower(state, resident, key))
    compile_seconds = time.perf_counter() - begun
    held = [state]

    def train() -> Any:
        held[0], metrics = step(held[0], resident, key)
        return metrics

    params = jax.tree.map(jnp.copy, state.params)  # the state's own are donated
    x_T = jax.random.normal(key, (batch, *shape))
    x_T = placement.put_batch(x_T) if len(devices) == 1 else jax.device_put(x_T, devices[0])
    params = jax.device_put(params, devices[0])
    times = respaced_times(schedule.steps, sample_steps)

    @jax.jit
    def forward(params, x, t):
        return apply({"params": params}, x, jnp.full(x.shape[:1], t))

    @jax.jit
    def draw(key, params, x_T):
        denoise = denoiser(lambda x, t: apply({"params": params}, x, t), schedule)
        return sample(key, clip_x_0(denoise), schedule, x_T, times, ancestral())

    n = 8192 if devices[0].platform != "cpu" else 2048
    square = jnp.ones((n, n), dtype)
    product = jax.jit(lambda a: a @ a)
    steps_on_device = [jnp.asarray(t) for t in times[:-1]]

    seconds = interleaved(
        {
            "train": train,
            "sample": lambda: draw(key, params, x_T),
            "forward": lambda: [forward(params, x_T, t) for t in steps_on_device],
            "product": lambda: product(square),
            "resident": lambda: [gather(placement.put_batch(order[i])) for i in range(20)],
            "stream": lambda: [placement.put_batch(source.fetch(order[i])) for i in range(20)],
        },
        rounds,
    )
    host = host_seconds()
    step_flops, forward_flops = flops(step), flops(forward.lower(params, x_T, 1).compile())
    rate = 2 * n**3 / seconds["product"]
    forward_seconds = seconds["forward"] / sample_steps
    return {
        "device": devices[0].device_kind,
        "devices": len(devices),
        "jax": jax.__version__,
        "model": model,
        "dtype": dtype,
        "parameters": sum(p.size for p in jax.tree.leaves(params)),
        "batch": batch,
        "compile_s": compile_seconds,
        "matmul_tflops_per_s": rate / 1e12,
        "train_step_ms": 1e3 * seconds["train"],
        "train_images_per_s": batch / seconds["train"],
        "train_gflops": step_flops / 1e9,
        "train_share_of_matmul_rate": step_flops / seconds["train"] / rate,
        "forward_ms": 1e3 * forward_seconds,
        "forward_gflops": forward_flops / 1e9,
        "forward_share_of_matmul_rate": forward_flops / forward_seconds / rate,
        "sample_steps": sample_steps,
        "sample_images_per_s": batch / seconds["sample"],
        "sample_over_forward_passes": seconds["sample"] / seconds["forward"],
        "host_ms_a_step": 1e3 * host,
        "host_share_of_train_step": host / seconds["train"],
        "data_resident_images_per_s": 20 * batch / seconds["resident"],
        "data_streamed_images_per_s": 20 * batch / seconds["stream"],
        "data_share_of_train_step": seconds["resident"] / 20 / seconds["train"],
    }


def measure_solvers(model: str, batch: int | None, steps: int, rounds: int) -> dict:
    """Each solver's time over that of as many separate forward passes as it makes evaluations."""
    unet, shape, per_device = MODELS[model]
    apply: Any = unet.apply
    schedule, key = CosineLogSNR(12.0, -12.0), jax.random.key(0)
    x_T = jax.random.normal(key, (batch or per_device, *shape))
    params = jax.jit(unet.init)(key, x_T[:1], jnp.zeros((1,)))["params"]
    times = uniform_grid(steps)

    @jax.jit
    def forward(params, x, t):
        return apply({"params": params}, x, jnp.full(x.shape[:1], t))

    @partial(jax.jit, static_argnames=("name",))
    def draw(key, params, x_T, name):
        denoise = denoiser(lambda x, t: apply({"params": params}, x, 1000 * t), schedule, "v")
        return sample(key, clip_x_0(denoise), schedule, x_T, times, SOLVERS[name])

    tasks: dict[str, Callable[[], Any]] = {
        name: partial(draw, key, params, x_T, name) for name in SOLVERS
    }
    at = [jnp.asarray(1000 * t) for t in times[:-1]]
    tasks["forward"] = lambda: [forward(params, x_T, t) for t in at]
    seconds = interleaved(tasks, rounds)
    one = seconds.pop("forward") / steps
    numbers: dict[str, Any] = {"forward_ms": 1e3 * one, "steps": steps}
    for name, value in seconds.items():
        cost = evaluations(SOLVERS[name], schedule, times)
        numbers[f"{name}_evaluations"] = cost
        numbers[f"{name}_over_forward_passes"] = value / (cost * one)
    return numbers


OURS = ("train", "forward")


def torch_tasks(batch: int) -> tuple[dict[str, Callable[[], Any]], int]:
    """diffusers' U-Net of "medium"'s widths, trained by PyTorch; and its number of parameters.

    Eager, on all cores, in both of PyTorch's memory layouts: ``torch_train``, ``torch_forward`` and
    the same names with ``_channels_last``.
    """
    import torch  # pyright: ignore[reportMissingImports]
    from diffusers import UNet2DModel  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(os.cpu_count() or 1)
    tasks: dict[str, Callable[[], Any]] = {}
    size = 0
    for suffix, layout in (("", torch.contiguous_format), ("_channels_last", torch.channels_last)):
        model: Any = UNet2DModel(
            sample_size=32,
            in_channels=3,
            out_channels=3,
            block_out_channels=(64, 128, 128),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )
        model = model.train().to(memory_format=layout)
        size = sum(p.numel() for p in model.parameters())
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
        x = torch.rand(batch, 3, 32, 32).to(memory_format=layout)

        def train(model=model, optimizer=optimizer, x=x) -> None:
            noise = torch.randn_like(x)
            t = torch.randint(1000, (batch,))
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(x + noise, t).sample, noise).backward()
            optimizer.step()

        @torch.no_grad()
        def forward(model=model, x=x) -> None:
            model(x, torch.ones(batch))

        tasks |= {f"torch_train{suffix}": train, f"torch_forward{suffix}": forward}
    return tasks, size


def torch_worker(batch: int, pipe: Any) -> None:
    """Sends the number of parameters, and then runs each task whose name it receives."""
    tasks, size = torch_tasks(batch)
    pipe.send(size)
    with suppress(EOFError):  # the other end is closed
        while True:
            tasks[pipe.recv()]()
            pipe.send(None)


def measure_against_torch(rounds: int) -> dict:
    """The training step and the forward pass of "medium", float32, over PyTorch's times.

    Ours also clips the gradient, keeps an EMA and checks for what is not finite. PyTorch's time is
    that of its faster layout, in a process of its own, which waits while ours works: in one process
    the two disturb each other's memory.

    Raises:
      SystemExit: if the libraries are not installed.
    """
    for library in ("torch", "diffusers"):
        if importlib.util.find_spec(library) is None:
            raise SystemExit(
                f"--torch compares with libraries that are not installed ({library}): "
                "pip install torch diffusers"
            )
    unet, shape, batch = MODELS["medium"]
    apply: Any = unet.apply
    spawn = multiprocessing.get_context("spawn")
    pipe, end = spawn.Pipe()
    spawn.Process(target=torch_worker, args=(batch, end), daemon=True).start()
    their_size = pipe.recv()

    def elsewhere(name: str) -> Any:
        pipe.send(name)
        return pipe.recv()

    names = [f"torch_{task}{layout}" for task in OURS for layout in ("", "_channels_last")]
    theirs = {name: partial(elsewhere, name) for name in names}
    schedule, optimizer = from_betas(linear_betas()), adam(2e-4, warmup=5000, clip=1.0)

    def loss_fn(params, batch, key):
        network = partial(apply, {"params": params}, train=True)
        return simple_loss(key, network, schedule, to_signed(batch["x"], 256)).mean(), {}

    key = jax.random.key(0)
    x = jax.random.normal(key, (batch, *shape))
    params = jax.jit(unet.init)(key, x[:1], jnp.zeros((1,)))["params"]
    held = [init_state({"params": jax.tree.map(jnp.copy, params)}, optimizer)]
    images = {"x": np.random.default_rng(0).integers(256, size=x.shape, dtype=np.uint8)}
    step: Any = Sharded((jax.devices()[0],)).compile(make_step(loss_fn, optimizer, 0.9999))
    step = compile_lowered(step.lower(held[0], images, key))

    def train() -> Any:
        held[0], metrics = step(held[0], images, key)
        return metrics

    forward = jax.jit(lambda params, x: apply({"params": params}, x, jnp.ones(x.shape[:1])))
    ours = dict(zip(OURS, (train, lambda: forward(params, x)), strict=True))
    seconds = interleaved({**ours, **theirs}, rounds, calls=4, settle=0.3)
    fastest = {
        name: min(seconds[f"torch_{name}"], seconds[f"torch_{name}_channels_last"]) for name in ours
    }
    return {
        "jax": jax.__version__,
        "parameters": sum(p.size for p in jax.tree.leaves(params)),
        "torch_parameters": their_size,
        **{f"{name}_ms": 1e3 * value for name, value in seconds.items()},
        "train_step_over_torch": seconds["train"] / fastest["train"],
        "forward_over_torch": seconds["forward"] / fastest["forward"],
    }


def main(argv: list[str] | None = None) -> int:
    tune_cpu()
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmark", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", choices=MODELS, default="digits" if on_cpu else "cifar10")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, help="over all devices (default: the model's)")
    parser.add_argument("--sample-steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--solvers", action="store_true", help="measure every solver instead, against its cost"
    )
    parser.add_argument(
        "--torch", action="store_true", help='compare "medium" with diffusers\' U-Net instead'
    )
    parser.add_argument("--json", help="also write the numbers to this file")
    options = parser.parse_args(argv)
    if options.torch:
        options.model = "medium"
    print(f"measuring {options.model} on {jax.devices()[0].device_kind}: compiling ...", flush=True)
    if options.torch:
        numbers = measure_against_torch(options.rounds)
    elif options.solvers:
        numbers = measure_solvers(
            options.model, options.batch, options.sample_steps, options.rounds
        )
    else:
        numbers = measure(
            options.model, options.dtype, options.batch, options.sample_steps, options.rounds
        )
    for name, value in numbers.items():
        print(f"{name:32} {value:,.4g}" if isinstance(value, float) else f"{name:32} {value}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(numbers, file, indent=2)
        print(f"written to {options.json}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
