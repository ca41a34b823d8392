"""Truths in closed form that the library is held to.

Data whose exact denoiser E[x_0|x_t], marginals and likelihood are known: a normal, a mixture of
normals, and a finite set of points. All are written from the definitions, in NumPy float64 where
they are not traced, and share no formula with the library.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

# Of programs that run long: tests compile without optimization, see conftest.
WELL = {"xla_backend_optimization_level": 1}


@dataclass(frozen=True)
class Gaussian:
    """x_0 ~ N(mean [D], cov [D, D])."""

    mean: np.ndarray
    cov: np.ndarray

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        return rng.multivariate_normal(self.mean, self.cov, n).astype(np.float32)

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        d = x - self.mean
        _, logdet = np.linalg.slogdet(2 * np.pi * self.cov)
        return -0.5 * (np.einsum("bi,ij,bj->b", d, np.linalg.inv(self.cov), d) + logdet)

    def denoiser(self, schedule):
        """E[x_0|x_t] by the conditioning of jointly normal variables, in the axes of ``cov``."""
        values, axes = (jnp.asarray(v, jnp.float32) for v in np.linalg.eigh(self.cov))
        mean = jnp.asarray(self.mean, jnp.float32)

        def one(x_t, t):
            alpha, sigma = schedule(t)
            gain = alpha * values / (alpha**2 * values + sigma**2)
            return mean + (gain * ((x_t - alpha * mean) @ axes)) @ axes.T

        return jax.vmap(one)


@dataclass(frozen=True)
class Mixture:
    """x_0 ~ sum_k weight_k N(mean_k, diag(std^2)); std = 0 gives a finite set of points."""

    weights: np.ndarray  # [K]
    means: np.ndarray  # [K, D]
    std: float | np.ndarray  # one, or one a dimension [D]

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        k = rng.choice(len(self.weights), size=n, p=self.weights)
        noise = self.std * rng.standard_normal((n, self.means.shape[1]))
        return (self.means[k] + noise).astype(np.float32)

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        std = np.broadcast_to(self.std, x.shape[1:])
        squared = (((x[:, None] - self.means[None]) / std) ** 2).sum(-1)
        log_normal = -0.5 * squared - 0.5 * np.log(2 * np.pi * std**2).sum()
        terms = log_normal + np.log(self.weights)[None]
        top = terms.max(axis=1, keepdims=True)
        return top[:, 0] + np.log(np.exp(terms - top).sum(axis=1))

    def nearest_mode(self, x: np.ndarray) -> np.ndarray:
        return ((x[:, None] - self.means[None]) ** 2).sum(-1).argmin(axis=1)

    def denoiser(self, schedule):
        """E[x_0|x_t]: each component's conditional mean, weighted by its responsibility."""
        weights = jnp.asarray(self.weights, float)
        means = jnp.asarray(self.means, float)

        def one(x_t, t):
            alpha, sigma = schedule(t)
            std = jnp.broadcast_to(jnp.asarray(self.std), means.shape)
            variance = alpha**2 * std**2 + sigma**2
            difference = x_t[None, :] - alpha * means
            logits = jnp.log(weights) - 0.5 * (difference**2 / variance).sum(-1)
            conditional = means + alpha * std**2 / variance * difference
            return (jax.nn.softmax(logits)[:, None] * conditional).sum(axis=0)

        return jax.vmap(one)


@dataclass(frozen=True)
class FullMixture:
    """Mixture of normals N(means [K, D], covs [K, D, D]); a point where a covariance is 0."""

    weights: np.ndarray
    means: np.ndarray
    covs: np.ndarray

    def _axes(self) -> tuple[np.ndarray, np.ndarray]:
        values, axes = np.linalg.eigh(self.covs)
        return np.maximum(values, 0), axes

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        values, axes = self._axes()
        k = rng.choice(len(self.weights), n, p=self.weights)
        z = rng.standard_normal((n, self.means.shape[1])) * np.sqrt(values[k])
        return (self.means[k] + np.einsum("nij,nj->ni", axes[k], z)).astype(np.float32)

    def mean(self) -> np.ndarray:
        return self.weights @ self.means

    def cov(self) -> np.ndarray:
        d = self.means - self.mean()
        return np.einsum("k,kij->ij", self.weights, self.covs + d[:, :, None] * d[:, None, :])

    def denoise(self, x_t: jax.Array, level) -> jax.Array:
        """E[x_0|x_t] of ``x_t [B, D]`` at one level, in the axes of each component."""
        alpha, sigma = level
        values, axes = (jnp.asarray(a, x_t.dtype) for a in self._axes())
        means = jnp.asarray(self.means, x_t.dtype)
        y = jnp.einsum("kij,kbi->kbj", axes, x_t[None] - alpha * means[:, None])
        variance = (alpha**2 * values + sigma**2)[:, None]
        log_p = -0.5 * (y**2 / variance + jnp.log(variance)).sum(axis=-1)
        log_p = log_p + jnp.log(jnp.asarray(self.weights, x_t.dtype))[:, None]
        given = means[:, None] + jnp.einsum(
            "kij,kbj->kbi", axes, alpha * values[:, None] / variance * y
        )
        if len(self.weights) == 1:
            return given[0]
        return (jax.nn.softmax(log_p, axis=0)[:, :, None] * given).sum(axis=0)


def ancestral_gaussian_moments(
    alpha_bar: np.ndarray, times: np.ndarray, mean: float, var: float, variance: str
) -> tuple[float, float]:
    """Mean and variance of what Algorithm 2 returns for data N(mean, var) in one dimension.

    With the exact denoiser every step is affine, so the moments follow a scalar recursion from
    N(0, 1). Written with beta_t = 1 - alpha-bar_t / alpha-bar_s and eq. 7 of Ho et al. 2020.
    """
    m, v = 0.0, 1.0
    for t, s in itertools.pairwise(times):
        a_t, a_s = alpha_bar[t], alpha_bar[s]
        beta = 1 - a_t / a_s
        beta_tilde = (1 - a_s) / (1 - a_t) * beta
        on_x_0 = np.sqrt(a_s) * beta / (1 - a_t)
        on_x_t = np.sqrt(1 - beta) * (1 - a_s) / (1 - a_t)
        gain = np.sqrt(a_t) * var / (a_t * var + 1 - a_t)  # E[x_0|x_t] = mean + gain (x_t - ...)
        slope = on_x_t + on_x_0 * gain
        offset = on_x_0 * (mean - gain * np.sqrt(a_t) * mean)
        noise = 0.0 if s == 0 else {"beta": beta, "beta_tilde": beta_tilde}[variance]
        m, v = slope * m + offset, slope**2 * v + noise
    return m, v


@dataclass(frozen=True)
class LinearGaussianModel:
    """p(z) = N(0, I), p(x|z) = N(W z + b, s^2 I): the marginal and the posterior are normal.

    The columns of W are orthogonal, so that the posterior is a diagonal normal.
    """

    W: np.ndarray  # [D, Z]
    b: np.ndarray  # [D]
    s: float

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        cov = self.W @ self.W.T + self.s**2 * np.eye(len(self.b))
        return Gaussian(self.b, cov).log_prob(x)

    def posterior(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean ``[B, Z]`` and standard deviation ``[Z]`` of p(z|x)."""
        precision = np.eye(self.W.shape[1]) + self.W.T @ self.W / self.s**2
        cov = np.linalg.inv(precision)
        return (x - self.b) @ self.W @ cov / self.s**2, np.sqrt(np.diag(cov))


def linear_gaussian_model(rng: np.random.Generator, d: int = 6, z: int = 3) -> LinearGaussianModel:
    orthogonal, _ = np.linalg.qr(rng.standard_normal((d, d)))
    return LinearGaussianModel(
        W=orthogonal[:, :z] * rng.uniform(0.5, 2.0, z), b=rng.standard_normal(d), s=0.5
    )


@dataclass(frozen=True)
class TokenTable:
    """A joint distribution of a few tokens, by all its states ``[N, L]`` and their p ``[N]``."""

    states: np.ndarray
    p: np.ndarray

    @classmethod
    def random(cls, vocabulary: int, length: int) -> TokenTable:
        states = np.array(list(itertools.product(range(vocabulary), repeat=length)))
        return cls(states, np.random.default_rng(0).dirichlet(0.5 * np.ones(len(states))))

    def denoiser(self, alpha, pi):
        """log p(x_0^l|x_t) by Bayes, for noise ``pi``."""
        joint, states = jnp.asarray(self.p, jnp.float32), jnp.asarray(self.states)

        def denoise(x_t, t):
            at = alpha(t)[:, None, None]
            same = (states[None] == x_t[:, None]).astype(jnp.float32)  # [B, N, L]
            q = at * same + (1 - at) * jnp.asarray(pi)[x_t][:, None]
            weight = joint[None] * jnp.prod(q, axis=2)  # [B, N]
            weight = weight / jnp.maximum(weight.sum(axis=1, keepdims=True), 1e-30)
            found = jnp.einsum("bn,nlv->blv", weight, jax.nn.one_hot(states, len(pi)))
            return jnp.log(jnp.maximum(found, 1e-30))

        return denoise
