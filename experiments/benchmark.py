"""How fast this machine trains and samples a U-Net, as ratios to its matrix products.

    python -m experiments.benchmark                   # the digits model on CPU, else CIFAR-10's
    python -m experiments.benchmark --model cifar10 --dtype bfloat16 --json out.json
    python -m experiments.benchmark --solvers         # every solver against its evaluations
    python -m experiments.benchmark --torch           # a U-Net against diffusers', on CPU
    python -m experiments.benchmark --torch vae       # the MNIST VAE against PyTorch's
    python -m experiments.benchmark --torch gpt       # a transformer: its steps and its tokens
    python -m experiments.benchmark --torch gan       # both players of a DCGAN on 28x28

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
import optax

try:
    import chex  # noqa: F401
except ImportError:  # a bare machine: do without the checks of shapes
    stand_in: Any = types.ModuleType("chex")
    stand_in.__getattr__ = lambda name: lambda *args, **kwargs: None
    sys.modules["chex"] = stand_in

from jaxgen.data.order import ShuffledBatches
from jaxgen.data.records import Arrays, binarize, to_signed, windows
from jaxgen.decoding import continued
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
from jaxgen.losses import elbo, importance
from jaxgen.losses.adversarial import discriminator_loss, non_saturating_generator_loss
from jaxgen.losses.denoising import simple_loss
from jaxgen.models.dcgan import Body, Generator
from jaxgen.models.discriminator import Discriminator, Linear
from jaxgen.models.transformer import Transformer
from jaxgen.models.unet import UNet
from jaxgen.models.vae import MLPDecoder, MLPEncoder
from jaxgen.training.devices import Sharded, compile_lowered, scan_steps, tune_cpu
from jaxgen.training.loop import fit
from jaxgen.training.step import (
    Aux,
    Now,
    Turn,
    adam,
    init_players,
    init_state,
    make_step,
    make_turns,
)

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


# --- against PyTorch ---------------------------------------------------------------------------


def unet_in_torch() -> dict[str, Callable[[], Any]]:
    """diffusers' U-Net of "medium"'s widths: its training step and its forward pass.

    Eager, on all cores, in both of PyTorch's memory layouts: ``train``, ``forward`` and the same
    names with ``_channels_last``.
    """
    import torch  # pyright: ignore[reportMissingImports]
    from diffusers import UNet2DModel  # pyright: ignore[reportMissingImports]

    tasks: dict[str, Callable[[], Any]] = {}
    _, _, batch = MODELS["medium"]
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

        tasks |= {f"train{suffix}": train, f"forward{suffix}": forward}
    return tasks


def vae_in_torch() -> dict[str, Callable[[], Any]]:
    """The VAE of MNIST (784-400-20), eager: 20 steps of the ELBO, 2 of the IWAE with 50 samples.

    A batch is gathered from bytes and binarized at random, as ours is.
    """
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]
    from torch.nn import functional  # pyright: ignore[reportMissingImports]

    images = torch.randint(0, 256, (4096, 784), dtype=torch.uint8)

    def steps(samples: int, count: int) -> Callable[[], Any]:
        encoder = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40))
        decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784))
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)

        def loss(x: Any) -> Any:
            mean, log_std = encoder(x).chunk(2, -1)
            eps = torch.randn(samples, *mean.shape)
            logits = decoder(mean + log_std.exp() * eps)
            cross_entropy = functional.binary_cross_entropy_with_logits
            log_p = -cross_entropy(logits, x.expand_as(logits), reduction="none").sum(-1)
            if samples == 1:
                kl = 0.5 * (mean**2 + (2 * log_std).exp() - 1 - 2 * log_std).sum(-1)
                return (kl - log_p).mean()
            z = mean + log_std.exp() * eps
            log_ratio = (0.5 * (eps**2 - z**2) + log_std).sum(-1)
            return -(log_p + log_ratio).logsumexp(0).mean()

        def run() -> None:
            for _ in range(count):
                x = torch.bernoulli(images[torch.randint(4096, (128,))].float() / 255)
                optimizer.zero_grad()
                loss(x).backward()
                optimizer.step()

        return run

    return {"vae": steps(1, VAE_STEPS), "iwae": steps(50, IWAE_STEPS)}


VAE_STEPS, IWAE_STEPS = 20, 2  # in a call


def gpt_in_torch() -> dict[str, Callable[[], Any]]:
    """The transformer of ``experiments.gpt``, eager: its training step, and its tokens by a cache.

    Attention is PyTorch's fused one; the cache is written in place.
    """
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]
    from torch.nn import functional  # pyright: ignore[reportMissingImports]

    heads, size = GPT.heads, GPT.width // GPT.heads
    frequency = 10_000.0 ** (-torch.arange(size // 2) / (size // 2))
    angle = torch.arange(GPT.length)[:, None] * frequency
    cos, sin = angle.cos(), angle.sin()

    def turned(x: Any, at: int) -> Any:
        a, b = x.chunk(2, -1)
        c, s = cos[at : at + x.shape[-2]], sin[at : at + x.shape[-2]]
        return torch.cat([a * c - b * s, a * s + b * c], -1)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            dense = partial(nn.Linear, bias=False)
            self.before, self.between = nn.RMSNorm(GPT.width), nn.RMSNorm(GPT.width)
            self.qkv, self.out = dense(GPT.width, 3 * GPT.width), dense(GPT.width, GPT.width)
            self.up, self.down = dense(GPT.width, 4 * GPT.width), dense(4 * GPT.width, GPT.width)

        def forward(self, h: Any, cache: Any = None, at: int = 0) -> Any:
            qkv = self.qkv(self.before(h)).chunk(3, -1)
            q, k, v = (x.unflatten(-1, (heads, size)).transpose(1, 2) for x in qkv)
            q, k = turned(q, at), turned(k, at)
            if cache is not None:
                for old, new in zip(cache, (k, v), strict=True):
                    old[:, :, at : at + 1] = new
                k, v = (old[:, :, : at + 1] for old in cache)
            attend = functional.scaled_dot_product_attention
            found = attend(q, k, v, is_causal=cache is None).transpose(1, 2).flatten(2)
            h = h + self.out(found)
            return h + self.down(functional.gelu(self.up(self.between(h)), approximate="tanh"))

    embedding = nn.Embedding(GPT.vocabulary, GPT.width)
    blocks, norm = nn.ModuleList([Block() for _ in range(GPT.layers)]), nn.RMSNorm(GPT.width)
    parameters = [*embedding.parameters(), *blocks.parameters(), *norm.parameters()]
    for p in parameters:
        if p.ndim > 1:
            nn.init.normal_(p, std=0.02)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1)
    text = torch.randint(256, (100_000,))

    def train() -> None:
        starts = torch.randint(len(text) - GPT.length, (GPT_BATCH, 1))
        x = text[starts + torch.arange(GPT.length)]
        before = functional.pad(x[:, :-1], (1, 0), value=GPT.vocabulary - 1)
        h = embedding(before)
        for block in blocks:
            h = block(h)
        logits = norm(h) @ embedding.weight.T
        optimizer.zero_grad()
        functional.cross_entropy(logits.flatten(0, 1), x.flatten()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    @torch.no_grad()
    def draw(count: int) -> None:
        empty = torch.zeros(GPT.layers, 2, count, heads, GPT.length, size)
        token = torch.full((count, 1), GPT.vocabulary - 1)
        for at in range(GPT.length):
            h = embedding(token)
            for block, cache in zip(blocks, empty, strict=True):
                h = block(h, cache, at)
            logits = norm(h)[:, 0] @ embedding.weight.T
            token = torch.multinomial(logits[:, :-1].softmax(-1), 1)

    return {"train": train, "draw_16": partial(draw, GPT_BATCH), "draw_1": partial(draw, 1)}


GPT, GPT_BATCH = Transformer(257, 256), 16
GAN_BATCH, LATENTS = 128, 100


def gan_in_torch() -> dict[str, Callable[[], Any]]:
    """A step of both players of DCGAN on MNIST's shape, in the faster of its layouts."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]
    from torch.nn.functional import softplus  # pyright: ignore[reportMissingImports]

    images = torch.randint(0, 256, (4096, 1, 28, 28), dtype=torch.uint8)

    def training(layout: Any) -> Callable[[], None]:
        generator = nn.Sequential(
            nn.Linear(LATENTS, 128 * 7 * 7, bias=False), nn.Unflatten(1, (128, 7, 7)),
            nn.BatchNorm2d(128), nn.ReLU(),
            nn.ConvTranspose2d(128, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.ConvTranspose2d(64, 1, 4, 2, 1), nn.Tanh(),
        ).to(memory_format=layout)  # fmt: skip
        discriminator = nn.Sequential(
            nn.Conv2d(1, 64, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(64, 128, 4, 2, 1, bias=False), nn.BatchNorm2d(128), nn.LeakyReLU(0.2),
            nn.Flatten(), nn.Linear(128 * 7 * 7, 1),
        ).to(memory_format=layout)  # fmt: skip
        adams = [
            torch.optim.Adam(player.parameters(), lr=2e-4, betas=(0.5, 0.999))
            for player in (discriminator, generator)
        ]

        def made() -> Any:
            return generator(torch.randn(GAN_BATCH, LATENTS))

        def train() -> None:
            x = images[torch.randint(4096, (GAN_BATCH,))].to(memory_format=layout) / 127.5 - 1
            with torch.no_grad():
                fake = made()
            loss = softplus(-discriminator(x)).mean() + softplus(discriminator(fake)).mean()
            adams[0].zero_grad()
            loss.backward()
            adams[0].step()
            adams[1].zero_grad()
            softplus(-discriminator(made())).mean().backward(inputs=[*generator.parameters()])
            adams[1].step()

        return train

    layouts = {"train": torch.contiguous_format, "train_channels_last": torch.channels_last}
    return {name: training(layout) for name, layout in layouts.items()}


IN_TORCH = {"unet": unet_in_torch, "vae": vae_in_torch, "gpt": gpt_in_torch, "gan": gan_in_torch}


def torch_worker(which: str, pipe: Any) -> None:
    """Sends the names of its tasks, and then runs each whose name it receives."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(os.cpu_count() or 1)
    tasks = IN_TORCH[which]()
    pipe.send(list(tasks))
    with suppress(EOFError):  # the other end is closed
        while True:
            tasks[pipe.recv()]()
            pipe.send(None)


def check_installed(which: str) -> None:
    """Raises SystemExit where a library that is compared with is not installed."""
    for library in ("torch", "diffusers")[: 2 if which == "unet" else 1]:
        if importlib.util.find_spec(library) is None:
            raise SystemExit(
                f"--torch compares with libraries that are not installed ({library}): "
                "pip install torch diffusers"
            )


def in_turns_with_torch(which: str, ours: dict[str, Any], rounds: int, calls: int) -> dict:
    """Median seconds of our tasks, and by ``torch_NAME`` of PyTorch's.

    PyTorch works in a process of its own, which waits while ours works: in one process the two
    disturb each other's memory.
    """
    spawn = multiprocessing.get_context("spawn")
    pipe, end = spawn.Pipe()
    spawn.Process(target=torch_worker, args=(which, end), daemon=True).start()

    def elsewhere(name: str) -> Any:
        pipe.send(name)
        return pipe.recv()

    theirs = {f"torch_{name}": partial(elsewhere, name) for name in pipe.recv()}
    return interleaved({**ours, **theirs}, rounds, calls=calls, settle=0.3)


def unet_against_torch(rounds: int) -> dict:
    """The training step and the forward pass of "medium", float32, over PyTorch's times.

    Ours also clips the gradient, keeps an EMA and checks for what is not finite. PyTorch's time is
    that of its faster layout.
    """
    unet, shape, batch = MODELS["medium"]
    apply: Any = unet.apply
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
    ours = {"train": train, "forward": lambda: forward(params, x)}
    seconds = in_turns_with_torch("unet", ours, rounds, 4)
    over = {}
    for name in ours:
        fastest = min(seconds[f"torch_{name}"], seconds[f"torch_{name}_channels_last"])
        over[f"{name}_over_torch"] = seconds[name] / fastest
    return {
        "jax": jax.__version__,
        "parameters": sum(p.size for p in jax.tree.leaves(params)),
        **{f"{name}_ms": 1e3 * value for name, value in seconds.items()},
        **over,
    }


def vae_against_torch(rounds: int) -> dict:
    """Steps a second of the VAE of MNIST (784-400-20, batch 128) and of its IWAE, over PyTorch's.

    Ours also keep an EMA, check for what is not finite and report the norms of gradient, update and
    parameters.
    """
    encoder, decoder = MLPEncoder(20, hidden=400), MLPDecoder((28, 28, 1), hidden=400)
    likelihood, optimizer, key = elbo.bernoulli(), adam(1e-3), jax.random.key(0)
    images = np.random.default_rng(0).integers(256, size=(4096, 28, 28, 1), dtype=np.uint8)
    z, x = jnp.zeros((1, 20)), jnp.zeros((1, 28, 28, 1))
    variables = {"encoder": encoder.init(key, x), "decoder": decoder.init(key, z)}

    def steps(loss: Callable[..., Any], count: int) -> Callable[[], Any]:
        def loss_fn(params, batch, key):
            key_x, key_z = jax.random.split(key)
            encode: Any = partial(encoder.apply, params["encoder"])
            maps: Any = partial(decoder.apply, params["decoder"])
            decode = lambda z: likelihood.density(maps(z))  # noqa: E731
            return loss(key_z, encode, decode, binarize(key_x, batch["x"], 256)), {}

        held = [init_state({"params": jax.tree.map(jnp.copy, variables)}, optimizer)]
        placement = Sharded((jax.devices()[0],))
        gather = placement.resident({"x": images}, lambda arrays, i: {"x": arrays["x"][i]})
        step = placement.compile(scan_steps(make_step(loss_fn, optimizer, 0.999)))
        rng = np.random.default_rng(1)

        def run() -> Any:
            batches = gather(placement.put_batch(rng.integers(4096, size=(count, 128)), leading=1))
            held[0], metrics = step(held[0], batches, key)
            return metrics

        return run

    iwae = partial(importance.iwae_loss, samples=50)
    ours = {"vae": steps(elbo.negative_elbo, VAE_STEPS), "iwae": steps(iwae, IWAE_STEPS)}
    seconds = in_turns_with_torch("vae", ours, rounds, 4)
    made = {"vae": VAE_STEPS, "iwae": IWAE_STEPS}
    rates = {
        f"{name}_steps_per_s": made[name.removeprefix("torch_")] / s for name, s in seconds.items()
    }
    over = {f"{name}_over_torch": seconds[f"torch_{name}"] / seconds[name] for name in ours}
    return {"jax": jax.__version__, **rates, **over}


def gpt_against_torch(rounds: int) -> dict:
    """The training step of a transformer over PyTorch's, and the tokens a second that each draws of
    16 sequences at once, and of one.

    Ours also keeps an EMA, checks for what is not finite and reports norms.
    """
    apply, optimizer = GPT.apply, adam(1e-3, weight_decay=0.1, clip=1.0)
    begin, key = GPT.vocabulary - 1, jax.random.key(0)

    def loss_fn(params, batch, key):
        before = jnp.pad(batch["x"][:, :-1], ((0, 0), (1, 0)), constant_values=begin)
        logits: Any = apply({"params": params}, before, train=True, rngs={"dropout": key})
        x = batch["x"].astype(jnp.int32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, x).mean(), {}

    params = jax.jit(GPT.init)(key, jnp.zeros((1, GPT.length), jnp.int32))["params"]
    held = [init_state({"params": jax.tree.map(jnp.copy, params)}, optimizer)]
    placement, rng = Sharded((jax.devices()[0],)), np.random.default_rng(0)
    text = windows(rng.integers(256, size=100_000, dtype=np.uint8), GPT.length)
    gather = placement.resident(text.arrays, text.gather)
    step: Any = placement.compile(make_step(loss_fn, optimizer, 0.99))

    def train() -> Any:
        batch = gather(placement.put_batch(rng.integers(len(text), size=GPT_BATCH)))
        held[0], metrics = step(held[0], batch, key)
        return metrics

    @partial(jax.jit, static_argnums=2)
    def draw(params, key, count):
        def extend(tokens, cache, at):
            found: Any = apply({"params": params}, tokens, cache, at, nobody, method="extend")
            return found[0].at[..., begin].set(-jnp.inf), found[1]

        nobody, begun = jnp.zeros(count, jnp.int32), jnp.full((count, 1), begin)
        return continued(key, extend, GPT.empty(count), begun, GPT.length)

    ours: dict[str, Any] = {"train": train}
    ours |= {f"draw_{n}": partial(draw, params, key, n) for n in (GPT_BATCH, 1)}
    seconds = in_turns_with_torch("gpt", ours, rounds, 4)
    drawn = {n: n * GPT.length for n in (GPT_BATCH, 1)}
    return {
        "jax": jax.__version__,
        "parameters": sum(p.size for p in jax.tree.leaves(params)),
        "train_ms": 1e3 * seconds["train"],
        "torch_train_ms": 1e3 * seconds["torch_train"],
        **{f"tokens_per_s_{n}": size / seconds[f"draw_{n}"] for n, size in drawn.items()},
        **{f"torch_tokens_per_s_{n}": s / seconds[f"torch_draw_{n}"] for n, s in drawn.items()},
        "train_over_torch": seconds["train"] / seconds["torch_train"],
        **{
            f"tokens_over_torch_{n}": seconds[f"torch_draw_{n}"] / seconds[f"draw_{n}"]
            for n in drawn
        },
    }


def gan_against_torch(rounds: int) -> dict:
    """A step of both players of DCGAN on 28x28, batch 128, over PyTorch's time (faster layout).

    Ours also keeps EMAs, checks for what is not finite and reports norms.
    """
    shape, key, optimizer = (28, 28, 1), jax.random.key(0), adam(2e-4, b1=0.5)
    networks = {"discriminator": Discriminator(Body(), Linear()), "generator": Generator(shape)}
    keys = dict(zip(networks, jax.random.split(key), strict=True))
    inputs = {"discriminator": jnp.zeros((1, *shape)), "generator": jnp.zeros((1, LATENTS))}

    def apply(name: str, params: Any, memory: Any, x: jax.Array) -> Any:
        variables = {"params": params, **memory}
        return networks[name].apply(variables, x, train=True, mutable=list(memory))

    def judging(params: Any, batch: Any, key: jax.Array, now: Now) -> Any:
        g, x = now.players["generator"], to_signed(batch["x"], 256)
        fake, _ = apply("generator", g.params, g.memory, jax.random.normal(key, (len(x), LATENTS)))
        real, memory = apply("discriminator", params, now.memory, x)
        fake, memory = apply("discriminator", params, memory, fake)
        return discriminator_loss(real.logits, fake.logits), Aux({}, memory)

    def deceiving(params: Any, batch: Any, key: jax.Array, now: Now) -> Any:
        d, z = now.players["discriminator"], jax.random.normal(key, (len(batch["x"]), LATENTS))
        fake, memory = apply("generator", params, now.memory, z)
        judged, _ = apply("discriminator", d.params, d.memory, fake)
        return non_saturating_generator_loss(judged.logits), Aux({}, memory)

    turns = (
        Turn("discriminator", judging, optimizer),
        Turn("generator", deceiving, optimizer),
    )
    variables = {
        name: jax.jit(partial(network.init, train=False))(keys[name], inputs[name])
        for name, network in networks.items()
    }
    placement, rng = Sharded((jax.devices()[0],)), np.random.default_rng(0)
    images = rng.integers(256, size=(4096, *shape), dtype=np.uint8)
    gather = placement.resident({"x": images}, lambda arrays, i: {"x": arrays["x"][i]})
    held = [placement.put_state(init_players(variables, turns))]
    step: Any = placement.compile(make_turns(turns, 0.999))

    def train() -> Any:
        batch = gather(placement.put_batch(rng.integers(4096, size=GAN_BATCH)))
        held[0], metrics = step(held[0], batch, key)
        return metrics

    seconds = in_turns_with_torch("gan", {"train": train}, rounds, 4)
    fastest = min(seconds["torch_train"], seconds["torch_train_channels_last"])
    times = {f"{name}_ms": 1e3 * value for name, value in seconds.items()}
    return {"jax": jax.__version__, **times, "train_over_torch": seconds["train"] / fastest}


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
        "--torch",
        choices=tuple(IN_TORCH),
        nargs="?",
        const="unet",
        help="compare \"medium\" with diffusers' U-Net, or another model with PyTorch's",
    )
    parser.add_argument("--json", help="also write the numbers to this file")
    options = parser.parse_args(argv)
    against = {"unet": unet_against_torch, "vae": vae_against_torch, "gpt": gpt_against_torch}
    against["gan"] = gan_against_torch
    what = options.torch or options.model
    if options.torch:
        check_installed(options.torch)
    print(f"measuring {what} on {jax.devices()[0].device_kind}: compiling ...", flush=True)
    if options.torch:
        numbers = against[options.torch](options.rounds)
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
