"""A trained diffusion model put to use: restoring what was spoilt, and judging it by the bound."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax import Array

from jaxgen import runner
from jaxgen.diffusion.guidance import clip_x_0
from jaxgen.diffusion.inverse_problems import Problem
from jaxgen.diffusion.parameterization import Denoiser, x_0_of
from jaxgen.losses.classification import Estimates, label_estimates
from jaxgen.losses.denoising import discretized_decoder
from jaxgen.systems.diffusion import Diffusion


def hides(system: Diffusion) -> bool:
    """Whether the model was trained with hidden classes, and so need not be told any."""
    return system.labelled and system.network.guidable


def told(system: Diffusion) -> str:
    """What the model is told of the class, for protocols."""
    if hides(system):
        return "class hidden"
    return "class given" if system.labelled else "no classes"


def without_classes(system: Diffusion, labels: np.ndarray) -> np.ndarray:
    """What the model is told in place of labels ``[N]``: that they are hidden, if it can be."""
    return np.asarray(system.network.null({"label": labels})["label"]) if hides(system) else labels


def restore(
    trained: runner.Trained[Diffusion],
    problem: Problem,
    y: np.ndarray,
    labels: np.ndarray,
    draws: int,
    activity: str = "restoring",
) -> np.ndarray:
    """Draws ``[N, draws, ...]`` from p(x_0|y), for measurements ``y [N, ...]``.

    ``labels [N]`` are what the model is told of each.
    """
    system = trained.system.discrete()
    network = system.network.in_loops()  # gradients of it are taken in a scan

    def solve(weights: Any, key: Array, rows: Any) -> Array:
        key_start, key = jax.random.split(key)
        denoise = x_0_of(system.denoiser_of(network.given(weights.params, rows)))
        denoised = problem._replace(condition=lambda d, y: clip_x_0(problem.condition(d, y)))
        x_T = system.start(key_start, rows)
        return denoised.solve(key, denoise, system.schedule, rows["y"], x_T)

    rows = {"y": np.asarray(y).repeat(draws, axis=0), "label": labels.repeat(draws, axis=0)}
    x = trained.over(activity, solve, rows, key=21)
    return x.reshape(len(y), draws, *trained.data.shape)


def estimates(
    trained: runner.Trained[Diffusion],
    x_0: np.ndarray,
    labels: np.ndarray,
    draws: int,
    activity: str = "judging",
) -> Estimates:
    """How ill images ``[N, ...]`` fit each of ``labels [N, C]``, from so many draws of (t, eps)."""
    system, decoder = trained.system.discrete(), discretized_decoder(trained.data.levels)

    def measured(weights: Any, key: Array, rows: Any) -> Estimates:

        def denoise(labels: Array) -> Denoiser:
            return x_0_of(system.denoise(weights.params, {"label": labels}))

        schedule, x_0 = system.schedule, rows["x_0"]
        return label_estimates(key, denoise, schedule, x_0, rows["labels"], draws, decoder)

    return trained.over(activity, measured, {"x_0": x_0, "labels": labels}, key=22)
