import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion.schedules import cosine_betas, from_betas, linear_betas, respaced_times


def test_linear_schedule_is_the_papers():
    """Ho et al. 2020, section 4: 1e-4 to 0.02, and hardly any signal is left at T.

    They give L_T ~ 1e-5 bits/dim: for one dimension of unit second moment
    KL(q(x_T|x_0) || N(0, 1)) = (alpha-bar - log-terms ...) / 2 log 2.
    """
    beta = linear_betas()
    assert beta[0] == 1e-4
    assert beta[-1] == 0.02
    assert len(beta) == 1000
    alpha_bar = np.prod(1 - beta)
    kl_bits = 0.5 * (alpha_bar * 1.0 + (1 - alpha_bar) - 1 - np.log(1 - alpha_bar)) / np.log(2)
    assert 1e-5 < kl_bits < 5e-5
    np.testing.assert_allclose(from_betas(beta).alpha[-1] ** 2, alpha_bar, rtol=1e-5)


@pytest.mark.parametrize("steps", [10, 1000])
def test_cosine_schedule_is_its_formula(steps):
    """Nichol & Dhariwal 2021, eq. 17, away from the clipped end."""
    schedule = from_betas(cosine_betas(steps))
    t = np.arange(steps)
    f = lambda t: np.cos((t / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(schedule.alpha[:-1] ** 2, f(t) / f(0), rtol=1e-4, atol=1e-7)
    assert cosine_betas(steps).max() <= 0.999


@pytest.mark.parametrize("betas", [linear_betas(), cosine_betas(), linear_betas(4, 0.1, 0.9)])
def test_tables_lose_nothing_in_float32(betas):
    schedule = from_betas(betas)
    alpha_bar = np.cumprod(1 - betas.astype(np.longdouble))
    np.testing.assert_allclose(schedule.alpha[1:], np.sqrt(alpha_bar), rtol=2e-7)
    np.testing.assert_allclose(schedule.sigma[1:], np.sqrt(1 - alpha_bar), rtol=2e-7)
    assert (schedule.alpha[0], schedule.sigma[0]) == (1, 0)
    assert (np.diff(schedule(np.arange(1, len(betas) + 1)).log_snr) < 0).all()


def test_schedules_can_be_indexed_under_jit():
    schedule = from_betas(linear_betas())
    t = jnp.array([0, 5, 1000])
    for alpha, sigma in (schedule(t), jax.jit(lambda t: schedule(t))(t)):
        np.testing.assert_array_equal(alpha, schedule.alpha[np.asarray(t)])
        np.testing.assert_array_equal(sigma, schedule.sigma[np.asarray(t)])


@pytest.mark.parametrize("bad", [[0.1, 1.0], [0.0, 0.1], [-0.1], [[0.1, 0.2]]])
def test_impossible_betas_are_refused(bad):
    with pytest.raises(ValueError, match="between 0 and 1"):
        from_betas(np.asarray(bad))


def test_respaced_times():
    np.testing.assert_array_equal(respaced_times(1000, 1000), np.arange(1000, -1, -1))
    for count in (1, 3, 100, 999):
        times = respaced_times(1000, count)
        assert (times[0], times[-1], len(times)) == (1000, 0, count + 1)
        assert (np.diff(times) < 0).all()
        assert np.ptp(np.diff(times)) <= 1  # evenly
    for count in (0, 1001):
        with pytest.raises(ValueError, match="sampling steps"):
            respaced_times(1000, count)
