import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion.schedules import VP, FlowMatching, Sigma
from jaxgen.losses.denoising import bound_weighting
from jaxgen.losses.times import (
    LossHistory,
    continuous_times,
    importance_times,
    log_normal_density,
    log_normal_times,
    log_uniform_density,
    log_uniform_times,
    logit_normal_times,
    stratified_times,
)

N = 50_000


def assert_uniform(t, low, high, cells=20):
    counts, _ = np.histogram(t, cells, (low, high))
    assert counts.sum() == t.size
    np.testing.assert_allclose(counts, t.size / cells, atol=5 * np.sqrt(t.size / cells))


def assert_standard_normal(z):
    """Mean, variance, skew and kurtosis within five standard errors."""
    for power, moment, error in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 5 * np.sqrt(error / z.size)


def test_continuous_times_are_uniform(key):
    assert_uniform(np.asarray(continuous_times(key, N, 0.2, 0.8)), 0.2, 0.8)
    t = continuous_times(key, N)
    assert t.shape == (N,)
    assert t.min() >= 1e-5


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_stratified_times_have_one_in_each_cell_and_each_is_uniform(key, batch):
    draw = jax.jit(jax.vmap(lambda key: stratified_times(key, batch, 0.1, 0.9)))
    t = np.asarray(draw(jax.random.split(key, 4000)))
    cells = np.sort(((t - 0.1) / 0.8 * batch).astype(int), axis=1)
    right = (cells == np.arange(batch)).all(axis=1)
    assert right.mean() > 0.999  # a time may round into the next cell
    for i in {0, batch // 2, batch - 1}:
        assert_uniform(t[:, i], 0.1, 0.9)


def test_stratified_times_estimate_a_mean_without_bias_and_with_less_variance(key):
    """int_0^1 exp(-3 t) dt, from batches of 16."""
    keys, f = jax.random.split(key, 2000), lambda t: np.exp(-3 * np.asarray(t, np.float64))
    stratified = f(jax.vmap(lambda k: stratified_times(k, 16))(keys)).mean(axis=1)
    independent = f(jax.vmap(lambda k: continuous_times(k, 16))(keys)).mean(axis=1)
    want = (1 - np.exp(-3)) / 3
    for means in (stratified, independent):
        assert abs(means.mean() - want) < 4 * means.std() / np.sqrt(2000) + 1e-4
    # The error is (f(0) - f(1)) (v - 1/2)/16 with v ~ U[0, 1) the place in a cell, to first order.
    np.testing.assert_allclose(stratified.var(), (1 - np.exp(-3)) ** 2 / (12 * 16**2), rtol=0.1)
    assert stratified.var() < 0.1 * independent.var()


@pytest.mark.parametrize("schedule", [VP(), FlowMatching(), Sigma()], ids=["vp", "flow", "sigma"])
def test_log_normal_times_have_a_normal_log_noise_ratio(key, schedule):
    with jax.enable_x64(True):  # VP's early times lose digits of the ratio in float32
        t = log_normal_times(key, N, schedule, -1.0, 0.9)
        level = schedule(t)
        assert_standard_normal(np.asarray((jnp.log(level.sigma / level.alpha) + 1.0) / 0.9))
    sigma = np.asarray(log_normal_times(key, N, Sigma()))
    assert_standard_normal((np.log(sigma) + 1.2) / 1.2)


def test_logit_normal_times(key):
    t = np.asarray(logit_normal_times(key, N, 0.5, 1.3), np.float64)
    assert_standard_normal((np.log(t / (1 - t)) - 0.5) / 1.3)


# --- importance sampling ---


def filled(losses):
    """A history whose every t = 1..T saw the K losses [T, K]."""
    steps, length = losses.shape
    return LossHistory(jnp.asarray(losses, jnp.float32), jnp.full(steps, length))


draw = jax.jit(importance_times, static_argnums=2)
update = jax.jit(LossHistory.update)


def test_history_keeps_the_last_losses_of_each_time_in_the_order_of_the_batch():
    """Against a list a time; some batches have a t more often than it is remembered."""
    rng, steps, length = np.random.default_rng(0), 5, 3
    history, lists = LossHistory.init(steps, length), [[] for _ in range(steps)]
    for _ in range(12):
        t = rng.choice(steps, 9, p=[0.6, 0.2, 0.1, 0.05, 0.05]) + 1
        losses = rng.uniform(size=9).astype(np.float32)
        history = update(history, jnp.asarray(t), jnp.asarray(losses))
        for k, loss in zip(t, losses, strict=True):
            lists[k - 1].append(loss)
        for k in range(steps):
            assert history.counts[k] == len(lists[k])
            kept = np.sort(np.asarray(history.losses[k]))
            last = lists[k][-length:]
            np.testing.assert_array_equal(kept, np.sort([*last, *[0.0] * (length - len(last))]))


def test_times_are_uniform_until_every_time_was_seen_often_enough(key):
    t, losses = jnp.array([1, 1, 2, 2, 3, 3, 4]), jnp.array([9.0, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    history = update(LossHistory.init(4, 2), t, losses)
    t, weight = draw(key, history, N)
    assert t.dtype == jnp.int32
    np.testing.assert_allclose(np.bincount(t, minlength=5)[1:], N / 4, atol=5 * np.sqrt(N / 4))
    np.testing.assert_allclose(weight, jnp.ones(N), rtol=1e-6)
    full = update(history, jnp.array([4]), jnp.array([1.0]))
    np.testing.assert_allclose(full.probabilities(0.0), [9 / 12, 1 / 12, 1 / 12, 1 / 12], rtol=1e-5)


def test_probabilities_follow_the_root_mean_square_loss(key):
    losses = np.random.default_rng(0).lognormal(np.linspace(2, -2, 20)[:, None], 0.5, (20, 10))
    want = np.sqrt((losses**2).mean(axis=1))
    want /= want.sum()
    history = filled(losses)
    np.testing.assert_allclose(history.probabilities(0.0), want, rtol=1e-4)
    np.testing.assert_allclose(history.probabilities(0.1), 0.1 / 20 + 0.9 * want, rtol=1e-4)
    t, weight = draw(key, history, N, 0.0)
    counts = np.bincount(t, minlength=21)[1:]
    np.testing.assert_allclose(counts, N * want, atol=5 * np.sqrt(N * want.max()))
    np.testing.assert_allclose(weight, 1 / (20 * want[np.asarray(t) - 1]), rtol=1e-4)


def test_weighted_losses_are_unbiased_and_vary_less(key):
    """With L_t known and noiseless, p_t ~ L_t makes every weighted loss the mean of L itself."""
    profile = np.geomspace(10, 0.01, 50)
    history = filled(np.repeat(profile[:, None], 10, axis=1))
    t, weight = draw(key, history, N, 0.0)
    perfect = np.asarray(weight) * profile[np.asarray(t) - 1]
    np.testing.assert_allclose(perfect, profile.mean(), rtol=1e-4)

    # Losses that are not those of the history: no bias still.
    other = np.linspace(1, 3, 50) * profile**0.7
    t, weight = draw(key, history, N)
    weighted = np.asarray(weight) * other[np.asarray(t) - 1]
    p = 0.001 / 50 + 0.999 * profile / profile.sum()
    variance = (other**2 / (50**2 * p)).sum() - other.mean() ** 2
    assert abs(weighted.mean() - other.mean()) < 4 * np.sqrt(variance / N)
    assert weighted.std() < other.std()


def test_losses_of_zero_leave_times_uniform_and_weights_finite(key):
    history = filled(np.zeros((6, 2)))
    np.testing.assert_allclose(history.probabilities(), np.full(6, 1 / 6), rtol=1e-6)
    one = filled(np.repeat(np.eye(6)[:, :1], 2, axis=1))  # only t = 1 has a loss
    t, weight = draw(key, one, N)
    assert set(np.unique(t)) == set(range(1, 7))
    np.testing.assert_allclose(weight.mean(), 1.0, atol=4 * weight.std() / np.sqrt(N))


def test_it_learns_the_profile_inside_a_scanned_train_step(key):
    profile = jnp.linspace(4.0, 1.0, 8)

    def step(history, key):
        t, weight = importance_times(key, history, 16)
        losses = profile[t - 1]
        return history.update(t, losses), (weight * losses).mean()

    history, means = jax.jit(lambda keys: jax.lax.scan(step, LossHistory.init(8), keys))(
        jax.random.split(key, 200)
    )
    np.testing.assert_allclose(history.probabilities(0.0), profile / profile.sum(), rtol=1e-5)
    np.testing.assert_allclose(means.mean(), profile.mean(), rtol=0.05)
    assert means[100:].std() < 0.1 * means[:5].std()


def test_shapes_must_agree():
    with pytest.raises(AssertionError):
        LossHistory.init(4).update(jnp.array([1, 2]), jnp.zeros((2, 1)))
    with pytest.raises(AssertionError):
        LossHistory.init(4).update(jnp.array([1, 2]), jnp.zeros(1))


# --- what makes up for how times were drawn ------------------------------------------------------


@pytest.mark.parametrize("schedule", [Sigma(), VP()], ids=["sigma", "vp"])
@pytest.mark.parametrize(
    ("draw", "density"),
    [
        (lambda k, n, s: log_normal_times(k, n, s), log_normal_density),
        (lambda k, n, s: log_uniform_times(k, n, s, 0.02, 8.0),
         lambda t, s: log_uniform_density(t, s, 0.02, 8.0)),
    ],
    ids=["log-normal", "log-uniform"],
)  # fmt: skip
def test_densities_are_those_of_the_draws(key, schedule, draw, density):
    """E[f/p] is the integral of f: here f is 1 on the times of sigma/alpha in [0.1, 1]."""
    t = draw(key, 200_000, schedule)
    low, high = (schedule.time(-2 * jnp.log(jnp.float32(r))) for r in (0.1, 1.0))
    inside = (t > low) & (t < high)
    got = jnp.where(inside, 1 / density(t, schedule), 0.0).mean()
    np.testing.assert_allclose(got, high - low, rtol=0.02)


def test_the_likelihoods_weight_is_even_in_log_sigma(key):
    """-1/2 d(log SNR)/dt over the density is the length of the range of ln(sigma/alpha)."""
    schedule = Sigma()
    t = log_uniform_times(key, 8, schedule)
    weight = bound_weighting()(schedule, t) / log_uniform_density(t, schedule)
    np.testing.assert_allclose(weight, np.log(80 / 0.002), rtol=1e-4)
