"""A conditional VAE whose class is a latent where it is not known (Kingma et al. 2014, M2).

``experiments.semi_supervised`` is its options.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxgen import runner
from jaxgen.data.records import Arrays, DataError, DataSet, product, some, spread
from jaxgen.evaluation.report import Number
from jaxgen.losses.semi_supervised import Bound, labelled_loss, unlabelled_bound
from jaxgen.systems.vae import Vae, conditionals, use_of_latents
from jaxgen.training.step import Metrics, Now


def with_few_labels(data: DataSet, labels: int) -> DataSet:
    """A data set whose training examples are pairs: one of ``labels`` known ones, and any other.

    The known ones are as many of each class, spread over it. A pair is ``x`` with its ``label``,
    and ``y``, whose class is hidden.

    Raises:
      DataError: for data without classes, or whose classes have too few examples.
    """
    batch = some(data.train, max(len(data.train), 1))
    of_each, rest = divmod(labels, data.classes)
    if data.classes < 2 or rest:
        raise DataError(
            f"--labels ({labels}) are as many of each class, and {data.name} has {data.classes}."
        )
    members = [np.flatnonzero(batch["label"] == c) for c in range(data.classes)]
    if min(map(len, members)) < of_each:
        raise DataError(f"a class of {data.name} has less than {of_each} examples: lower --labels.")
    known = np.concatenate([rows[spread(len(rows), of_each)] for rows in members])
    told = Arrays({name: batch[name][known] for name in ("x", "label")})
    return replace(data, train=product(told, Arrays({"x": batch["x"]})))


@dataclass(frozen=True, eq=False)
class SemiSupervised(runner.System):
    """A conditional ``vae`` and q(y|x), the ``classifier``, x ``[B, D]`` -> logits."""

    vae: Vae
    classifier: nn.Module
    alpha: float = 1.0  # weight of the classifier's cross-entropy

    def init(self, key: Array) -> Any:
        key_vae, key_classifier = jax.random.split(key)
        x = jnp.zeros((1, int(np.prod(self.data.shape))))
        classifier = self.classifier.init(key_classifier, x)
        params = {"vae": self.vae.init(key_vae)["params"], "classifier": classifier["params"]}
        return {"params": params}

    def logits(self, params: Any, x: Any) -> Array:
        """Of q(y|x), ``[B, classes]``, of examples as they are: bits drawn of them tell less."""
        flat = self.data.kind.values(x).reshape(len(x), -1)
        found: Any = self.classifier.apply({"params": params["classifier"]}, flat)
        return found

    def bound(self, params: Any, x: Array) -> Bound:
        """The ELBO on log p(x|y)."""
        return lambda key, y: self.vae.model(params["vae"], y).terms(key, x).elbo()

    def loss(self, params: Any, batch: Any, key: Array, now: Now) -> tuple[Array, Metrics]:
        key_x, key_y, key_told, key_z = jax.random.split(key, 4)
        x = self.vae.prepare(key_x, batch["x"])
        logits = self.logits(params, batch["x"])
        right = jnp.argmax(logits, axis=1) == batch["label"]
        if not now.train:
            found = -unlabelled_bound(key_z, self.bound(params, x), logits)
            return found, {"accuracy": right.astype(jnp.float32)}
        other = self.vae.prepare(key_y, batch["y"])
        told = labelled_loss(key_told, self.bound(params, x), logits, batch["label"], self.alpha)
        of_other = self.logits(params, batch["y"])
        hidden = -unlabelled_bound(key_z, self.bound(params, other), of_other)
        return told + hidden, {"labelled": told, "unlabelled": hidden}

    @property
    def labelled(self) -> bool:
        return True

    def of_vae(self, weights: Any) -> Any:
        """The weights of the VAE alone."""
        return weights._replace(params=weights.params["vae"])

    def sample(self, key: Array, weights: Any, given: Any) -> Array:
        return self.vae.sample(key, self.of_vae(weights), given)

    def how(self) -> str:
        return self.vae.how()


def of_vae(trained: runner.Trained[SemiSupervised]) -> runner.Trained[Vae]:
    """The VAE of a run, as one that is told the classes."""
    system = trained.system
    return trained.with_weights(system.of_vae(trained.weights), system.vae)


def classes(trained: runner.Trained[SemiSupervised]) -> list[Path]:
    """``classes.png``: a z in each row, a class in each column; ``conditionals.png``."""
    return conditionals(of_vae(trained))


def latents_used(trained: runner.Trained[SemiSupervised]) -> list[Number]:
    """How many latents are used, and how much they tell of x."""
    return use_of_latents(of_vae(trained))


def accuracy(trained: runner.Trained[SemiSupervised]) -> list[Number]:
    """How many test examples q(y|x) classifies right, and a classifier of the labelled alone."""
    from sklearn.svm import SVC

    system, data, batch = trained.system, trained.data, trained.test()

    def right(weights: Any, key: Array, batch: Any) -> Array:
        logits = system.logits(weights.params, batch["x"])
        return (jnp.argmax(logits, axis=1) == batch["label"]).astype(jnp.float32)

    share = float(trained.over("classes", right, batch, key=5, size=250).mean())
    source: Any = data.train
    x, label = source["x/x"], source["x/label"]
    judge = SVC().fit(data.vectors(x), label)
    alone = float(judge.score(data.vectors(batch["x"]), batch["label"]))
    how = f"share right of {len(batch['label'])} test examples, {len(label)} labels"
    return [
        Number("accuracy", share, f"{how}, q(y|x), {trained.ema}"),
        Number("accuracy_of_labels_alone", alone, f"{how}, scikit-learn's SVC of these alone"),
    ]
