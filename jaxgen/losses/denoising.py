"""The objectives of denoising diffusion: L_simple, its weighted forms, and the variational bounds.

Everything is a weighted error of the noise (Kingma & Gao 2023): with any prediction target, an
objective is E w(t) |eps - eps_hat|^2 at times t that the caller draws, and a :data:`Weighting` is
w. :mod:`jaxgen.losses.times` has the ways of drawing times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jaxgen.diffusion.parameterization import (
    Denoiser,
    Network,
    Target,
    edm,
    relation_of,
    target_of,
    to_x_0,
    x_0_in,
    x_0_of,
)
from jaxgen.diffusion.process import (
    Level,
    Noise,
    Schedule,
    after_clean,
    before_noise,
    diffuse,
    diffusion_squared,
    expand,
    interpolated_log_variance,
    known_level,
    marginal,
    posterior_mean,
    posterior_variance,
    standard_normal,
    transition_variance,
)
from jaxgen.diffusion.samplers import check_start
from jaxgen.diffusion.schedules import ContinuousSchedule, DiscreteSchedule, steps_of
from jaxgen.distributions import (
    DiscretizedNormal,
    Distribution,
    Normal,
    kl_normal,
    sum_event,
)


def squared_error(prediction: Array, target: Array) -> Array:
    """The mean over entries of (prediction - target)^2, ``[B]``."""
    chex.assert_equal_shape([prediction, target])
    return sum_event((prediction - target) ** 2) / prediction[0].size


def uniform_times(key: Array, batch: int, steps: int) -> Array:
    """t ~ Uniform{1, ..., T}, ``[B]`` int32."""
    return jax.random.randint(key, (batch,), 1, steps + 1)


def simple_loss(
    key: Array,
    network: Network,
    schedule: DiscreteSchedule,
    x_0: Array,
    *,
    noise: Noise = standard_normal,
) -> Array:
    """L_simple = |eps - eps_theta(alpha_t x_0 + sigma_t eps, t)|^2 with t uniform, ``[B]``.

    Ho et al. 2020, eq. 14 and Algorithm 1; the mean over entries in place of the sum, so that the
    value of a network that answers 0 is 1 for any image size. ``x_0 [B, ...]`` is in [-1, 1].

    Raises:
      TypeError: for a schedule of continuous time, whose loss is :func:`denoising_loss`.
    """
    steps = steps_of(schedule, "use denoising_loss, with t from jaxgen.losses.times")
    key_t, key_eps = jax.random.split(key)
    t = uniform_times(key_t, x_0.shape[0], steps)
    eps = noise(key_eps, x_0)
    return squared_error(network(diffuse(x_0, eps, schedule(t)), t), eps)


# (schedule, t [B]) -> the weight [B] of |eps - eps_hat|^2
Weighting = Callable[[Schedule, Array], Array]


def denoising_loss(
    key: Array,
    network: Network,
    schedule: Schedule,
    x_0: Array,
    t: Array,
    *,
    target: str | Target = "eps",
    weighting: Weighting | None = None,
    noise: Noise = standard_normal,
) -> Array:
    """w(t) |eps - eps_hat|^2 for a network that predicts ``target``, ``[B]``.

    The mean over entries, of data ``x_0 [B, ...]`` at times ``t [B]``. Without a ``weighting`` the
    error is that of the target itself, with weight 1: L_simple for any target, denoising score
    matching for ``score``, mu-matching for ``mu``, flow matching for ``velocity``. ``noise`` draws
    eps, which may depend on x_0 (a coupling), or on what it closes over (a mask).

    Raises:
      ValueError: for a weighting that is infinite for this target at the schedule's pure noise.
    """
    if weighting is not None:
        _refuse_infinite_weight(schedule, target, weighting)
    eps = noise(key, x_0)
    x_t = diffuse(x_0, eps, schedule(t))
    error = squared_error(network(x_t, t), target_of(x_0, eps, schedule, t, target))
    if weighting is None:
        return error
    return weighting(schedule, t) / own_error(target)(schedule, t) * error


def _refuse_infinite_weight(schedule: Schedule, target: str | Target, weighting: Weighting) -> None:
    end = getattr(schedule, "end", None)
    level = None if end is None else known_level(schedule, end)
    if level is None or level.alpha > 0:
        return
    with jax.ensure_compile_time_eval():
        t = jnp.asarray(end)
        weight = weighting(schedule, t) / own_error(target)(schedule, t)
    if not isinstance(weight, Tracer) and not np.asarray(weight) < 1e9:
        raise ValueError(
            f"the weight of an error of {target} is infinite at the pure noise of this schedule: "
            "predict x_0, v, velocity or edm, or leave out the weighting."
        )


def own_error(target: str | Target) -> Weighting:
    """The weight that makes the error of eps that of ``target``: |y - y_hat|^2 / |eps - eps_hat|^2.

    With y = p x_0 + q eps, and errors of x_0 and eps that leave x_t where it is.
    """

    def weight(schedule: Schedule, t: Array) -> Array:
        p, q = relation_of(target, schedule, t)
        return (q - p * _ratio(schedule(t))) ** 2

    return weight


def _ratio(level: Level) -> Array:
    """sigma/alpha, between a millionth and a million.

    So that the ratio of two weights, which is all that is ever used, has its limit at clean data
    and at pure noise, and not 0/0.
    """
    return jnp.maximum(level.sigma, 1e-6) / jnp.maximum(level.alpha, 1e-6)


def min_snr(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma) on the error of x_0 (Hang et al. 2023, eq. 8)."""
    return lambda schedule, t: jnp.minimum(1.0, gamma * _ratio(schedule(t)) ** 2)


def truncated_snr() -> Weighting:
    """max(SNR, 1) on the error of x_0 (Salimans & Ho 2022, section 4)."""
    return lambda schedule, t: jnp.maximum(1.0, _ratio(schedule(t)) ** 2)


def sigmoid_weighting(bias: float = -3.0) -> Weighting:
    """sigmoid(bias - log SNR) per unit of log-SNR (Kingma & Gao 2023; Hoogeboom et al. 2024).

    Times drawn uniformly already weigh by -d(log SNR)/dt, hence the factor.
    """

    def weight(schedule: Schedule, t: Array) -> Array:
        log_snr = -2 * jnp.log(_ratio(schedule(after_clean(schedule, t))))
        return jax.nn.sigmoid(bias - log_snr) * bound_weighting()(schedule, t)

    return weight


def edm_weighting(sigma_data: float = 0.5) -> Weighting:
    """(s^2 + sigma_data^2)/(s sigma_data)^2 on the error of x_0, s = sigma/alpha.

    Karras et al. 2022, table 1: weight 1 on the target :func:`~.parameterization.edm`.
    """
    return own_error(edm(sigma_data))


def bound_weighting() -> Weighting:
    """-1/2 d(log SNR)/dt: the continuous-time bound (Kingma et al. 2021, eq. 17), in nats an entry.

    It is g^2 / (2 sigma^2), the likelihood weighting of Song et al. 2021b (eq. 7) too. ``t`` is
    uniform on [0, 1]. At clean data and at pure noise, where it is infinite, it is that of a moment
    after or before.
    """

    def weight(schedule: Schedule, t: Array) -> Array:
        t = before_noise(schedule, after_clean(schedule, t))
        return 0.5 * diffusion_squared(schedule, t) / schedule(t).sigma ** 2

    return weight


def step_bound_weighting(
    variance: Callable[[Level, Level], Array] = posterior_variance,
) -> Weighting:
    """The lambda_t that gives L_{t-1} of a discrete chain whose sigma_t^2 is ``variance``.

    |mu - mu_hat|^2 / (2 sigma_t^2) (Ho et al. 2020, eq. 8 and 12), in nats an entry, for t > 1.
    """

    def weight(schedule: Schedule, t: Array) -> Array:
        return own_error("mu")(schedule, t) / (2 * variance(schedule(t), schedule(t - 1)))

    return weight


def hybrid_loss(
    key: Array,
    network: Callable[[Array, Array], tuple[Array, Array]],
    schedule: DiscreteSchedule,
    x_0: Array,
    t: Array,
    *,
    weight: float = 1e-3,
    decoder: Callable[[Array, Array], Distribution] = Normal,
) -> Array:
    """L_hybrid = L_simple + ``weight`` T L_{t-1}, ``[B]`` (Nichol & Dhariwal 2021, eq. 16).

    The network returns (eps, nu) ``[B, ...]`` with nu in [0, 1] from log beta-tilde to log beta;
    its denoiser (:func:`~jaxgen.diffusion.parameterization.denoiser`) is guided, sampled and given
    its bound as any other.
    L_{t-1} is in nats an entry and teaches only the variance: the mean in it is held fixed. T times
    it, for a uniform t in 1..T, is an estimate of the bound.

    Raises:
      TypeError: for a schedule of continuous time.
      ValueError: for a schedule known to end in pure noise, where eps says nothing of x_0.
    """
    steps = steps_of(schedule, "use denoising_loss")
    check_start(lambda x, t: to_x_0(x, x, schedule, t, "eps"), schedule, x_0, schedule.end)
    eps = jax.random.normal(key, x_0.shape, x_0.dtype)
    x_t = diffuse(x_0, eps, schedule(t))
    eps_hat, nu = network(x_t, t)
    chex.assert_equal_shape([eps_hat, nu, x_0])
    x_0_hat = to_x_0(jax.lax.stop_gradient(eps_hat), x_t, schedule, t, "eps")
    log_variance = learned_log_variance(schedule, t, nu)
    term = bound_term(schedule, x_0, x_t, x_0_hat, t, log_variance, decoder) / x_0[0].size
    return squared_error(eps_hat, eps) + weight * steps * term


def step_variance(
    schedule: DiscreteSchedule, t: Array, variance: Callable[[Level, Level], Array]
) -> Array:
    """sigma_t^2 of p(x_{t-1}|x_t), of t's shape; where it is 0 at t = 1, that of t = 2.

    beta-tilde_1 is 0, which no decoder p(x_0|x_1) could have; beta-tilde_2 takes its place as in
    the code of Ho et al. 2020 and of Nichol & Dhariwal 2021. Where T is 1 too, beta_1 does.
    """
    own = variance(schedule(t), schedule(t - 1))
    if schedule.steps == 1:
        return jnp.where(own > 0, own, transition_variance(schedule(t), schedule(t - 1)))
    second = jnp.maximum(t, 2)
    return jnp.where(own > 0, own, variance(schedule(second), schedule(second - 1)))


def learned_log_variance(schedule: DiscreteSchedule, t: Array, nu: Array) -> Array:
    """The log-variance of p(x_{t-1}|x_t) that ``nu [B, ...]`` stands for (Nichol & Dhariwal 2021).

    Between beta_t at nu = 1 and beta-tilde_t at nu = 0, as :func:`step_variance` has it at t = 1.
    """
    largest, smallest = (
        step_variance(schedule, t, v) for v in (transition_variance, posterior_variance)
    )
    return interpolated_log_variance(nu, largest, smallest)


def bound_term(
    schedule: DiscreteSchedule,
    x_0: Array,
    x_t: Array,
    x_0_hat: Array,
    t: Array,
    log_variance: Array,
    decoder: Callable[[Array, Array], Distribution] = Normal,
) -> Array:
    """L_{t-1} ``[B]`` in nats: KL(q(x_{t-1}|x_t, x_0) || p), and -log p(x_0|x_1) where t = 1.

    Ho et al. 2020, eq. 5, with p normal about the mean that ``x_0_hat`` gives; ``t`` is ``[B]`` and
    ``log_variance`` ``[B, ...]``.
    """
    at, to = schedule(t), schedule(t - 1)
    mean, log_std = posterior_mean(x_t, x_0_hat, at, to), 0.5 * log_variance
    # KL is not defined at t = 1, where q is a point; any other variance keeps its gradient finite.
    var = jnp.where(t > 1, posterior_variance(at, to), 1.0)
    q_log_std = jnp.broadcast_to(expand(0.5 * jnp.log(var), x_0), x_0.shape)
    q = Normal(posterior_mean(x_t, x_0, at, to), q_log_std)
    kl = sum_event(kl_normal(q, Normal(mean, log_std)))
    return jnp.where(t > 1, kl, -sum_event(decoder(mean, log_std).log_prob(x_0)))


class BoundTerms(NamedTuple):
    """The variational bound on -log p(x_0), term by term, in nats (Ho et al. 2020, eq. 5).

    ``diffusion`` is the curve of the bound over time: its mean over examples is what is plotted.
    """

    prior: Array  # [B]     L_T = KL(q(x_T|x_0) || N(0, I))
    diffusion: Array  # [T - 1, B]  L_{t-1} = KL(q(x_{t-1}|x_t, x_0) || p(x_{t-1}|x_t)), t = 2..T
    decoder: Array  # [B]     L_0 = -log p(x_0|x_1)

    def total(self) -> Array:
        """L_T + sum_t L_{t-1} + L_0, ``[B]``."""
        return self.prior + self.diffusion.sum(axis=0) + self.decoder


def discretized_decoder(levels: int) -> Callable[[Array, Array], Distribution]:
    """p(x_0|x_1) over ``levels`` values in [-1, 1] (Ho et al. 2020, section 3.3)."""
    return lambda mean, log_std: DiscretizedNormal(mean, log_std, levels)


def variational_bound(
    key: Array,
    denoise: Denoiser,
    schedule: DiscreteSchedule,
    x_0: Array,
    *,
    variance: Callable[[Level, Level], Array] = posterior_variance,
    decoder: Callable[[Array, Array], Distribution] = Normal,
) -> BoundTerms:
    """Every term of the bound, each L_{t-1} from one draw of x_t: T evaluations of ``denoise``.

    Args:
      key: one PRNG key; each t draws its own noise.
      denoise: (x_t, t) -> an estimate of x_0, or the pair (x_0, nu) of a learned variance, which
        is then that of the bound.
      x_0: data ``[B, ...]``, in [-1, 1] where ``decoder`` is discretized.
      variance: sigma_t^2 of p(x_{t-1}|x_t), as in :func:`jaxgen.diffusion.samplers.ancestral`,
        where none was learned.
      decoder: (mean, log_std) -> p(x_0|x_1): :func:`discretized_decoder` for images,
        :class:`~jaxgen.distributions.Normal` for a density over continuous data. Its variance is
        that of t = 1 (:func:`step_variance`).

    Raises:
      TypeError: for a schedule of continuous time, whose bound is :func:`continuous_bound`.
      ValueError: if ``denoise`` cannot serve the pure noise that the schedule is known to end in.
    """
    batch, steps = x_0.shape[0], steps_of(schedule, "use continuous_bound")
    check_start(denoise, schedule, x_0, schedule.end)

    def term(t: Array) -> Array:
        eps = jax.random.normal(jax.random.fold_in(key, t), x_0.shape, x_0.dtype)
        times = jnp.full((batch,), t)
        x_t = diffuse(x_0, eps, schedule(t))
        estimate = denoise(x_t, times)
        if isinstance(estimate, tuple):
            log_variance = learned_log_variance(schedule, times, estimate[1])
        else:
            log_variance = expand(jnp.log(step_variance(schedule, times, variance)), x_0)
            log_variance = jnp.broadcast_to(log_variance, x_0.shape)
        return bound_term(schedule, x_0, x_t, x_0_in(estimate), times, log_variance, decoder)

    terms = jax.lax.map(term, jnp.arange(1, steps + 1))
    return BoundTerms(
        prior=prior_term(schedule(jnp.asarray(steps)), x_0), diffusion=terms[1:], decoder=terms[0]
    )


def prior_term(last: Level, x_0: Array, std: Array | float = 1.0) -> Array:
    """L_T = KL(q(x_T|x_0) || N(0, std^2 I)) at the last level, ``[B]`` in nats."""
    log_std = jnp.broadcast_to(jnp.log(jnp.asarray(std, x_0.dtype)), x_0.shape)
    return sum_event(kl_normal(marginal(x_0, last), Normal(jnp.zeros_like(x_0), log_std)))


def continuous_bound(
    key: Array,
    denoise: Denoiser,
    schedule: ContinuousSchedule,
    x_0: Array,
    t: Array,
    *,
    decoder: Callable[[Array, Array], Distribution] = Normal,
) -> BoundTerms:
    """The bound in continuous time (Kingma et al. 2021, eq. 11 and 17), in nats.

    ``t [n, B]`` are times in (0, 1), uniform (or stratified) in each column; row i of ``diffusion``
    is the loss at t[i] divided by n, so that the total is an unbiased estimate of the bound. The
    schedule must start with noise (not with clean data, where the bound of a density is infinite):
    the decoder is N(x_0-hat, (sigma_0/alpha_0)^2) at t = 0, and the prior at the schedule's end is
    N(0, sigma_1^2 I), from which samplers start. For data of discrete values
    :func:`~jaxgen.diffusion.schedules.log_snr_of_levels` says how much noise.

    Raises:
      ValueError: if the schedule is known to start with clean data.
    """
    start = known_level(schedule, 0.0)
    if start is not None and start.sigma == 0:
        raise ValueError(
            "the continuous bound needs a schedule that starts with noise, such as "
            "CosineLogSNR(log_snr_of_levels(256)); of this one ask the likelihood by the ODE."
        )
    denoise = x_0_of(denoise)
    key_decoder, key_scan = jax.random.split(key)

    def term(row: tuple[Array, Array]) -> Array:
        key, t = row
        eps = jax.random.normal(key, x_0.shape, x_0.dtype)
        x_t = diffuse(x_0, eps, schedule(t))
        error = sum_event((x_0 - denoise(x_t, t)) ** 2)
        snr = jnp.exp(schedule(t).log_snr)
        return bound_weighting()(schedule, t) * snr * error / rows[1].shape[0]

    rows = (jax.random.split(key_scan, len(t)), t)
    zero = jnp.zeros(x_0.shape[:1])
    first = schedule(zero)
    z_0 = diffuse(x_0, jax.random.normal(key_decoder, x_0.shape, x_0.dtype), first)
    log_std = jnp.broadcast_to(expand(-0.5 * first.log_snr, x_0), x_0.shape)
    p_x_0 = decoder(z_0 / expand(first.alpha, x_0), log_std)
    last = schedule(jnp.asarray(schedule.end, x_0.dtype))
    return BoundTerms(
        prior=prior_term(last, x_0, last.sigma),
        diffusion=jax.lax.map(term, rows),
        decoder=-sum_event(p_x_0.log_prob(x_0)),
    )
