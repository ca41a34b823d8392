"""What the verb ``diagnose`` says of a trained model."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.linen import summary
from jax import Array

from experiments.sweep import fold
from experiments.system import Mistake, System, Train
from jaxgen.data.pipeline import index_batches, read_batches
from jaxgen.data.sources import DataSet
from jaxgen.evaluation.report import Number
from jaxgen.plotting import save_bars
from jaxgen.training.diagnosis import gradient_noise, loss_by_time
from jaxgen.training.logging import console, progress

DIAGNOSED = 16  # batches that are looked at


def diagnose(
    system: System, data: DataSet, options: Train, key: Array, state: Any, directory: Path
) -> list[Number]:
    """Prints the networks by module; measures the gradient's noise and the loss by time.

    Raises:
      Mistake: for an experiment that has nothing to diagnose, or a sweep.
    """
    probe = system.probe
    if probe is None:
        raise Mistake("diagnose takes one run of ddpm, score_sde, vae or gan.")
    for name, (network, args, kwargs) in probe.networks.items():
        make_table = summary.tabulate(
            network,
            jax.random.key(0),
            depth=1,
            compute_flops=True,
            console_kwargs={"width": 120, "force_terminal": False},
        )
        print(f"{name}, for one example{make_table(*args, **kwargs).rstrip()}\n")
    params, numbers = probe.params(state), []
    index = index_batches(len(data.train), options.batch, seed=options.seed)
    seen = list(itertools.islice(read_batches(data.train, index), DIAGNOSED))
    examples = f"{DIAGNOSED} batches of {options.batch} training images"
    if probe.loss is not None:
        with progress("gradients", 1) as advance:
            found = gradient_noise(probe.loss, params, seen, fold(key, 0))
            advance(1)
        how = f"{examples} in 8 parts each, McCandlish et al. 2018"
        numbers += [
            Number("gradient_signal", found.signal, f"|E g|^2, {how}"),
            Number("gradient_noise", found.noise, f"tr cov(g) of an example, {how}"),
            Number("gradient_noise_scale", found.scale, f"noise / signal, in examples, {how}"),
        ]
    if probe.losses is not None:
        losses_of = jax.jit(probe.losses)
        with progress("losses", len(seen)) as advance:
            pairs = []
            for i, batch in enumerate(seen):
                pairs.append(jax.device_get(losses_of(fold(key, i + 1), params, batch)))
                advance(1)
        t, losses = np.concatenate(pairs, axis=1)
        by_time = loss_by_time(t, losses)
        for at, mean, std in zip(*by_time, strict=True):
            protocol = f"of {len(t) // len(by_time.time)} examples, mean time {at:.4g}"
            numbers.append(Number(f"loss, t = {at:.3g}", mean, protocol, std))
        save_bars(directory / "loss_by_time.png", *by_time, labels=("t", "loss of an example"))
        console.print("pictures: loss_by_time.png")
    return numbers
