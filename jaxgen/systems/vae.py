"""An encoder and a decoder: q(z|x), p(x|z) and the bound between them (Kingma & Welling 2014).

``experiments.vae`` is its options; studies and cascades vary its parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.scipy.stats import norm

from jaxgen import runner
from jaxgen.data.records import Batch, DataSet, Image, Points, some
from jaxgen.distributions import Normal, kl_normal, standard_normal
from jaxgen.evaluation.annealing import adapted_sizes, anneal, sigmoid_temperatures
from jaxgen.evaluation.latents import active_units, spherical_path
from jaxgen.evaluation.probes import probe
from jaxgen.evaluation.report import Number, measured
from jaxgen.losses import elbo
from jaxgen.losses.latents import information_by_latent, kl_parts
from jaxgen.plotting import save_grid, save_pairs, save_rows, save_together
from jaxgen.runner.system import CHUNK, END, SCORED
from jaxgen.systems.autoencoder import FITTED, some_of
from jaxgen.systems.bounds import (
    Model,
    NegativeElbo,
    Objective,
    binarized,
    center,
    in_bits,
    prepared,
    shown,
)
from jaxgen.systems.conditions import count_of
from jaxgen.training.logging import console
from jaxgen.training.rows import OverRows
from jaxgen.training.step import Metrics, Now

DIAGONAL = ("normal", "committed")  # posteriors that are diagonal normals
FEW = 50  # examples by which latents are said to be unused


@dataclass(frozen=True)
class Likelihoods:
    """How well to measure the likelihood."""

    importance_samples: runner.Count = 500  # K of the importance-sampled log-likelihood.
    likelihood_images: runner.Count = 1000  # Test examples whose log-likelihood is estimated.
    annealed_images: runner.Natural = 0  # And by annealed importance sampling, which takes long.
    annealing_steps: runner.Count = 1000  # Temperatures of it.
    annealing_chains: runner.Count = 16  # Chains of it for each example.


@dataclass(frozen=True, eq=False)
class Vae(runner.System):
    """q(z|x), p(x|z) and p(z); images are binarized at random where the likelihood is of bits.

    With ``classes`` encoder and decoder are told the class y: q(z|x, y) and p(x|z, y) (Kingma et
    al. 2014; Sohn et al. 2015).
    """

    encoder: nn.Module
    decoder: nn.Module
    prior: nn.Module
    likelihood: elbo.Likelihood
    latents: int
    binary: bool
    objective: Objective
    classes: int | None = None

    def told(self, labels: Array) -> tuple[Array, ...]:
        """What the networks are told of ``labels [B]``: y ``[B, classes]``, or nothing."""
        return (jax.nn.one_hot(labels, self.classes),) if self.classes else ()

    @property
    def labelled(self) -> bool:
        return self.classes is not None

    def init(self, key: Array) -> Any:
        key_encoder, key_decoder, key_prior = jax.random.split(key, 3)
        x, z = jnp.zeros((1, *self.data.shape)), jnp.zeros((1, self.latents))
        y = self.told(jnp.zeros(1, jnp.int32))
        encoder = self.encoder.init(key_encoder, x, *y)
        decoder = self.decoder.init(key_decoder, z, *y)
        encode = lambda x: self.encoder.apply(encoder, x, *y)  # noqa: E731
        prior = self.prior.init(key_prior, encode)
        found = {"encoder": encoder, "decoder": decoder, "prior": prior}
        return {"params": {name: v["params"] for name, v in found.items() if "params" in v}}

    def model(self, params: Any, labels: Array) -> Model:
        """Its densities with these parameters, of examples with ``labels [B]``."""
        y = self.told(labels)

        def encode(x: Array) -> Any:
            return self.encoder.apply({"params": params["encoder"]}, x, *y)

        def decode(z: Array) -> Any:
            maps: Any = self.decoder.apply({"params": params["decoder"]}, z, *y)
            return self.likelihood.density(maps)

        prior: Any = self.prior.apply({"params": params.get("prior", {})}, encode)
        return Model(encode, decode, prior)

    def prepare(self, key: Array, x: Any) -> Array:
        """Examples at the scale of the likelihood: bits drawn at random, or as models see them."""
        return prepared(self.data, self.binary, key, x)

    def shown(self, x: Any) -> Array:
        """The scale of the likelihood as that of models."""
        return shown(self.binary, x)

    def seen(self, key: Array, p_x: Any) -> Array:
        """What is looked at of p(x|z): its mean, or where that looks like no x, a draw."""
        return p_x.mean if self.likelihood.independent else p_x.sample(key)

    @property
    def looks(self) -> str:
        """What :meth:`seen` answers, for protocols."""
        return "mean" if self.likelihood.independent else "draw"

    def loss(self, params: Any, batch: Any, key: Array, now: Now) -> tuple[Array, Metrics]:
        """The objective in training, and -ELBO by one draw where it is measured."""
        key_data, key_z = jax.random.split(key)
        x, model = self.prepare(key_data, batch["x"]), self.model(params, batch["label"])
        if now.train:
            return self.objective(key_z, model, x, now.step)
        return NegativeElbo()(key_z, model, x, now.step)

    def sample(self, key: Array, weights: Any, given: Any) -> Array:
        key_z, key_x = jax.random.split(key)
        model = self.model(weights.params, given["label"])
        p_x = model.decode(model.prior.sample(key_z, count_of(given)))
        if isinstance(self.data.kind, Points):
            return p_x.sample(key_x)
        return self.shown(self.seen(key_x, p_x))

    def likened(self) -> DataSet:
        return in_bits(self.data, self.binary and not self.likelihood.independent)

    def score(self, weights: Any, step: Any = END) -> float:
        """The bound in validation; latents that are not used are told."""
        batch = some(self.data.validation, SCORED)
        means = self._codes(weights, jax.random.key(0), batch, CHUNK)
        dead = self.latents - int(active_units(means).sum()) if len(means) >= FEW else 0
        if dead:
            console.print(
                f"warning: {dead} of {self.latents} latents are unused (the mean of q(z|x) varies "
                "by less than 0.01 over the data): see --free-bits, --kl-warmup and --beta."
            )
        return super().score(weights, step)

    @cached_property
    def _codes(self) -> OverRows:
        return OverRows(partial(codes, self), jax.local_devices()[:1])

    def decode(self, weights: Any, z: Array, labels: Array) -> Any:
        """p(x|z)."""
        return self.model(weights.params, labels).decode(z)

    def how(self) -> str:
        points = isinstance(self.data.kind, Points)
        return "p(x|z)" if points else f"{self.looks}s of p(x|z), z of the prior"


# --- pictures of images ------------------------------------------------------------------------


def reconstruct(system: Vae, weights: Any, key: Array, batch: Any) -> tuple[Array, Array]:
    """Examples and what is seen of p(x|mean of z), at the scale of the likelihood."""
    key_x, key_z, key = jax.random.split(key, 3)
    x, model = system.prepare(key_x, batch["x"]), system.model(weights.params, batch["label"])
    p_x = model.decode(center(key_z, model.encode(x)))
    return x, system.seen(key, p_x)


def codes(system: Vae, weights: Any, key: Array, batch: Any) -> Array:
    """The means of q(z|x), ``[B, Z]``."""
    key_x, key_z = jax.random.split(key)
    x = system.prepare(key_x, batch["x"])
    return center(key_z, system.model(weights.params, batch["label"]).encode(x))


def reconstructions(trained: runner.Trained[Vae]) -> list[Path]:
    """``reconstructions.png``: original, reconstruction, original, ..."""
    if not isinstance(trained.data.kind, Image):
        return []
    rows = partial(reconstruct, trained.system)
    x, y = trained.over("reconstructions", rows, trained.test(50), key=1)
    x, y = (np.asarray(trained.system.shown(values)) for values in (x, y))
    return [save_pairs(trained.results / "reconstructions.png", x, y)]


def decoded(
    trained: runner.Trained[Vae], z: Array | np.ndarray, labels: np.ndarray | None = None
) -> np.ndarray:
    """Pictures of z ``[N, Z]``, told ``labels [N]``; where None, all classes in turn."""
    system = trained.system
    labels = trained.data.given(len(z))["label"] if labels is None else labels

    def look(weights: Any, key: Array, rows: Any) -> Array:
        return system.shown(system.seen(key, system.decode(weights, rows["z"], rows["label"])))

    return trained.over("decoding", look, {"z": np.asarray(z), "label": labels}, size=100)


def interpolations(trained: runner.Trained[Vae]) -> list[Path]:
    """``interpolations.png``: the arcs between the codes of test images; the latent manifold."""
    if not isinstance(trained.data.kind, Image):
        return []
    system, batch = trained.system, trained.test(20)
    means = trained.over("codes", partial(codes, system), batch, key=7)
    half = len(means) // 2
    if not half:  # a single test image
        return []
    ends = jnp.asarray(means[:half]), jnp.asarray(means[half : 2 * half])
    path = spherical_path(*ends, 10).swapaxes(0, 1)
    labels = np.repeat(batch["label"][:half], 10)
    between = decoded(trained, path.reshape(-1, system.latents), labels)
    files = [save_grid(trained.results / "interpolations.png", between, 10)]
    if system.latents == 2:  # K&W 2014, figure 4: the prior's quantiles, decoded
        quantiles = norm.ppf(jnp.linspace(0.025, 0.975, 20))
        z = jnp.stack(jnp.meshgrid(quantiles, -quantiles), axis=-1).reshape(-1, 2)
        files.append(save_grid(trained.results / "manifold.png", decoded(trained, z), 20))
    return files


def conditionals(trained: runner.Trained[Vae]) -> list[Path]:
    """``conditionals.png``: what is seen of p(x|z) for ten z of the prior, and four draws of each.

    ``classes.png``, of a model that is told classes: a z in each row, a class in each column.
    """
    if not isinstance(trained.data.kind, Image):
        return []
    system, labels = trained.system, trained.data.given(10)["label"]
    prior = system.model(trained.weights.params, labels).prior
    z = np.asarray(prior.sample(jax.random.fold_in(trained.key, 6), 10))

    def draw(weights: Any, key: Array, rows: Any) -> Array:
        return system.shown(system.decode(weights, rows["z"], rows["label"]).sample(key))

    rows = {"z": np.tile(z, (4, 1)), "label": np.tile(labels, 4)}
    x = trained.over("p(x|z)", draw, rows, key=6, size=40)
    rows = np.concatenate([decoded(trained, z, labels), x])
    files = [save_grid(trained.results / "conditionals.png", rows, 10)]
    if system.classes:  # Kingma et al. 2014, figure 1: what is left to z is the style
        each = np.repeat(z, system.classes, axis=0), np.tile(np.arange(system.classes), len(z))
        path = trained.results / "classes.png"
        files.append(save_grid(path, decoded(trained, *each), system.classes))
    return files


# --- measures ----------------------------------------------------------------------------------


def bound(trained: runner.Trained[Vae]) -> list[Number]:
    """The ELBO of the test set, its terms, and the error of reconstructions."""
    batch, system = trained.test(), trained.system
    scale = binarized(trained.data, True) if system.binary else ", at models' scale"
    _, terms = trained.over("bound", system.measured, batch, key=2, size=250)
    elbos = terms["reconstruction"] - terms["kl"]
    tested = f"nats an example, {len(elbos)} test examples{scale}, one draw of z, {trained.ema}"

    def error(weights: Any, key: Array, batch: Any) -> Array:
        x, again = reconstruct(system, weights, key, batch)
        return jnp.mean((x - again) ** 2, axis=tuple(range(1, x.ndim)))

    errors = trained.over("reconstructions", error, batch, key=3, size=250)
    how = f"mean squared error an entry, {system.looks} of p(x|mean of z), {len(errors)} test"
    return [
        Number("elbo", float(elbos.mean()), tested),
        Number("reconstruction", float(terms["reconstruction"].mean()), tested),
        Number("kl", float(terms["kl"].mean()), tested),
        Number("reconstruction_error", float(errors.mean()), f"{how} examples, {trained.ema}"),
    ]


def use_of_latents(trained: runner.Trained[Vae]) -> list[Number]:
    """How many latents are used, and how much they tell of x."""
    system, batch = trained.system, trained.test()
    means = trained.over("codes", partial(codes, system), batch, key=7, size=250)
    how = f"of {system.latents}: variance of the mean of q(z|x) above 0.01, {len(means)} test"
    used = lambda: float(active_units(means).sum())  # noqa: E731
    found = measured("active_units", used, f"{how} examples, {trained.ema}")
    few = trained.test(500)
    key_x, key_z = jax.random.split(jax.random.fold_in(trained.key, 8))
    model = system.model(trained.weights.params, few["label"])
    q: Any = model.encode(system.prepare(key_x, few["x"]))
    if not isinstance(q, Normal):
        return found
    size = len(q.mean)

    def information() -> float:
        return float(kl_parts(q, q.sample(key_z), size).mutual_information.mean())

    how = (
        f"nats, of z and which of {size} test examples (at most {np.log(size):.2f}), {trained.ema}"
    )
    return found + measured("mutual_information", information, how)


def tested(trained: runner.Trained[Vae], count: int) -> Batch:
    """Test examples at the scale of the likelihood: what is binarized is so once, for all estimates
    of log p(x) to be of the same bits."""
    prepare = lambda weights, key, batch: trained.system.prepare(key, batch["x"])  # noqa: E731
    batch = trained.test(count)
    return {**batch, "x": trained.over("test examples", prepare, batch, key=4, size=250)}


def annealed(trained: runner.Trained[Vae]) -> list[Number]:
    """log p(x) of test examples by annealed importance sampling from the prior."""
    system, options = trained.system, trained.config.measured
    images, chains, steps = (
        options.annealed_images,
        options.annealing_chains,
        options.annealing_steps,
    )
    if not images:
        return []
    temperatures = sigmoid_temperatures(steps)

    def estimate(weights: Any, key: Array, batch: Any) -> Array:
        key_z, key_sizes, key_pilot, key = jax.random.split(key, 4)
        x, labels = (jnp.repeat(batch[name], chains, axis=0) for name in ("x", "label"))
        model = system.model(weights.params, labels)
        joint, start = elbo.log_joint(model.decode, x, model.prior), model.prior.log_prob
        z, pilot = (model.prior.sample(k, len(x)) for k in (key_z, key_pilot))
        sizes = adapted_sizes(key_sizes, start, joint, pilot, temperatures)
        log_w = anneal(key, start, joint, z, temperatures, sizes).log_weight
        return jax.nn.logsumexp(log_w.reshape(-1, chains), axis=1) - jnp.log(chains)

    batch = tested(trained, images)
    nats = trained.over("annealing", estimate, batch, key=8, size=min(images, 50))
    how = f"nats an example, {chains} chains of {steps} temperatures from p(z), {len(nats)} test"
    return [
        Number(
            "annealed_log_likelihood",
            float(nats.mean()),
            f"{how} examples, {trained.ema}",
        )
    ]


def log_likelihood(trained: runner.Trained[Vae]) -> list[Number]:
    """log p(x) of test examples by importance sampling."""
    system, options = trained.system, trained.config.measured
    k = options.importance_samples

    def estimate(weights: Any, key: Array, batch: Any) -> Array:
        encode, decode, prior = system.model(weights.params, batch["label"])
        how = {"samples": k, "chunk": math.gcd(k, 10), "prior": prior}
        return elbo.importance_log_likelihood(key, encode, decode, batch["x"], **how)

    batch = tested(trained, options.likelihood_images)
    nats = trained.over("likelihood", estimate, batch, key=5, size=250)
    how = f"nats an example, {k} importance samples, {len(nats)} test examples"
    return [Number("log_likelihood", float(nats.mean()), f"{how}, {trained.ema}")]


def probe_of_means(trained: runner.Trained[Vae]) -> list[Number]:
    """How well a linear classifier does on the means of q(z|x), of data with classes."""
    data, train, test = trained.data, some_of(trained.data, FITTED), trained.test()
    if trained.system.labelled or data.classes < 2 or len(np.unique(train["label"])) < 2:
        return []
    means = lambda b: trained.over("codes", partial(codes, trained.system), b, key=7, size=250)  # noqa: E731
    found = probe(means, train, test)
    how = f"means of q(z|x), {found.protocol}, {trained.ema}"
    return [Number("probe_accuracy", found.accuracy, how)]


def latents(trained: runner.Trained[Vae]) -> list[Path]:
    """``latents.png``: KL and mutual information of each latent, in falling order of the KL.

    Of diagonal normals q(z|x), over test examples.
    """
    system, batch = trained.system, trained.test(500)
    key_x, key_z = jax.random.split(jax.random.fold_in(trained.key, 8))
    q = system.model(trained.weights.params, batch["label"]).encode(
        system.prepare(key_x, batch["x"])
    )
    if not isinstance(q, Normal):
        return []
    kl = np.asarray(kl_normal(q, standard_normal(q.mean.shape)).mean(axis=0))
    told = np.asarray(information_by_latent(q, q.sample(key_z)))
    order = np.argsort(-kl)
    lines = {
        "KL(q(z|x) || N(0, 1))": [*enumerate(kl[order].tolist(), 1)],
        f"information, of {len(q.mean)} examples": [*enumerate(told[order].tolist(), 1)],
    }
    path = trained.results / "latents.png"
    return [save_together(path, lines, "latents in falling order of their KL", "nats")]


# --- of several runs -----------------------------------------------------------------------------


def kl_by_latent(trained: runner.Trained[Vae]) -> np.ndarray:
    """The KL of q(z_j|x) to N(0, 1) over test examples, nats in falling order ``[Z]``.

    Of diagonal normals q(z|x).
    """
    system = trained.system

    def kl(weights: Any, key: Array, batch: Any) -> Array:
        key_x, _ = jax.random.split(key)
        q: Any = system.model(weights.params, batch["label"]).encode(
            system.prepare(key_x, batch["x"])
        )
        return kl_normal(q, standard_normal(q.mean.shape))

    each = trained.over("latents", kl, trained.test(1000), key=9, size=250).mean(axis=0)
    return np.sort(each)[::-1]


def collapse(runs: Mapping[str, runner.Trained[Vae]], directory: Path | None = None) -> list[Path]:
    """``collapse.png``: the KL of each latent of several runs, such as the members of a sweep.

    ``collapse-samples.png``: their samples. The files are in ``directory``, or beside the runs.
    """
    (first, *_) = runs.values()
    place, files = directory or first.directory.parent, []
    if all(run.config.posterior in DIAGONAL for run in runs.values()):
        lines = {name: [*enumerate(kl_by_latent(run).tolist(), 1)] for name, run in runs.items()}
        label = "latents in falling order"
        files.append(save_together(place / "collapse.png", lines, label, "KL, nats"))
    if isinstance(first.data.kind, Image):
        rows = {name: run.draw(10) for name, run in runs.items()}
        files.append(save_rows(place / "collapse-samples.png", rows))
    return files
