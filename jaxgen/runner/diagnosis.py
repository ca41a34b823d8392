"""What the verb ``diagnose`` says of a trained run, whatever its system."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.data.pipeline import index_batches, read_batches
from jaxgen.evaluation.report import Number
from jaxgen.plotting import save_bars
from jaxgen.runner.system import END, ONLY, Weights
from jaxgen.runner.trained import Trained
from jaxgen.training.diagnosis import called_networks, gradient_noise, loss_by_time, network_table
from jaxgen.training.logging import console, progress
from jaxgen.training.step import Now, TrainState, Turn

DIAGNOSED = 16  # batches that are looked at
PARTS = 8  # of a batch, whose gradients are compared


def diagnose(trained: Trained) -> list[Number]:
    """Prints the networks by module; measures the gradient's noise and the loss over time."""
    system, options = trained.system, trained.config.train
    whole = max(options.batch // PARTS, 1) * PARTS
    index = index_batches(len(trained.data.train), whole, seed=options.seed)
    batches = list(itertools.islice(read_batches(trained.data.train, index), DIAGNOSED))
    weights = trained.weights
    weights = {ONLY: weights} if isinstance(weights, Weights) else weights
    states = {
        name: TrainState(jnp.asarray(END), w.params, (), w.params, w.memory)
        for name, w in weights.items()
    }
    one = jax.tree.map(lambda x: x[:1], batches[0])
    numbers, shown = [], set()
    for turn in system.turns():
        now = Now(END, states[turn.player].memory, states, train=False)
        loss = partial(turn.loss, batch=one, key=jax.random.key(0), now=now)
        for name, network in called_networks(loss, states[turn.player].params).items():
            if name not in shown:  # by the turn of another player
                print(f"{name}, for one example{network_table(network)}\n")
            shown.add(name)
        numbers += noise(trained, turn, states, batches)
    return numbers + over_time(trained, batches)


def noise(
    trained: Trained, turn: Turn, states: dict[str, TrainState], batches: list[Any]
) -> list[Number]:
    """The scale of the noise in one player's gradient."""
    now = Now(END, states[turn.player].memory, states)

    def loss(params: Any, batch: Any, key: Any) -> Any:
        values, told = turn.loss(params, batch, key, now)
        return jnp.mean(values), told

    with progress("gradients", 1) as advance:
        key = jax.random.fold_in(trained.key, 10)
        found = gradient_noise(loss, states[turn.player].params, batches, key, PARTS)
        advance(1)
    size = len(jax.tree.leaves(batches[0])[0])
    how = f"{len(batches)} batches of {size} in {PARTS} parts each, McCandlish et al. 2018"
    prefix = "" if turn.player == ONLY else f"{turn.player}/"
    return [
        Number(f"{prefix}gradient_signal", found.signal, f"|E g|^2, {how}"),
        Number(f"{prefix}gradient_noise", found.noise, f"tr cov(g) of an example, {how}"),
        Number(f"{prefix}gradient_noise_scale", found.scale, f"noise / signal, in examples, {how}"),
    ]


def over_time(trained: Trained, batches: list[Any]) -> list[Number]:
    """The loss over ``t``, where the loss of the system has such, and its picture."""
    rows = jax.tree.map(lambda *x: np.concatenate(x), *batches)
    weights = trained.weights
    if not isinstance(weights, Weights):
        return []
    losses, metrics = trained.system.losses(
        weights, jax.random.fold_in(trained.key, 11), rows, len(batches[0]["x"]), activity="losses"
    )
    if "t" not in metrics:
        return []
    by_time = loss_by_time(metrics["t"], losses)
    save_bars(trained.results / "loss_by_time.png", *by_time, labels=("t", "loss of an example"))
    console.print("pictures: loss_by_time.png")
    each = len(losses) // len(by_time.time)
    return [
        Number(f"loss, t = {at:.3g}", float(mean), f"of {each} examples, mean time {at:.4g}")
        for at, mean, _ in zip(*by_time, strict=True)
    ]
