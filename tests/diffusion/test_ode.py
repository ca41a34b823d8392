import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian

from jaxgen.diffusion.ode import solve_ode
from jaxgen.diffusion.schedules import VP, FlowMatching
from jaxgen.diffusion.sde import probability_flow


@pytest.mark.parametrize(("schedule", "t"), [(VP(), 1e-3), (FlowMatching(), 0.05)])
def test_the_flow_of_gaussian_data_is_its_closed_form(schedule, t):
    """x_s = a_s m + (V_s/V_t)^(1/2) (x_t - a_t m) with V = a^2 var + sigma^2, there and back."""
    s, mean, var = 1.0, np.array([0.3, -0.5]), np.array([0.4, 0.05])
    flow = probability_flow(Gaussian(mean, np.diag(var)).denoiser(schedule), schedule)
    solve = jax.jit(lambda x, t, s: solve_ode(flow, x, t, s, rtol=1e-6, atol=1e-6))

    level = lambda t: [np.asarray(v, np.float64) for v in schedule(jnp.asarray(t, jnp.float32))]
    (a_t, sigma_t), (a_s, sigma_s) = level(t), level(s)
    scale = np.sqrt((a_s**2 * var + sigma_s**2) / (a_t**2 * var + sigma_t**2))
    x_t = a_t * mean + np.random.default_rng(0).standard_normal((64, 2))
    want = a_s * mean + scale * (x_t - a_t * mean)

    x_s, encoding = solve(jnp.asarray(x_t, jnp.float32), t, s)
    np.testing.assert_allclose(x_s, want, atol=3e-4 * scale.max())
    back, decoding = solve(x_s, s, t)
    np.testing.assert_allclose(back, x_t, atol=3e-4)
    assert 0 < encoding < 1000
    assert 0 < decoding < 1000


def test_evaluations_are_counted_and_a_tighter_tolerance_takes_more_for_less_error():
    calls = []

    def field(x, t):
        jax.debug.callback(lambda _: calls.append(1), t[0])
        return jnp.cos(10 * t)[:, None] * x

    @jax.jit
    def solve(tolerance):
        return solve_ode(field, jnp.ones((3, 2)), 0.0, 2.0, rtol=tolerance, atol=tolerance)

    errors, counts = [], []
    for tolerance in (1e-2, 1e-4, 1e-6):
        calls.clear()
        x, evaluations = solve(tolerance)
        jax.block_until_ready(x)
        jax.effects_barrier()
        assert evaluations == len(calls)
        counts.append(int(evaluations))
        errors.append(np.abs(x - np.exp(np.sin(20) / 10)).max())
    assert counts[0] < counts[1] < counts[2]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-5


def test_gradients_go_through_a_solution_of_a_tree():
    """x' = k x, y' = x: x = x_0 e^(k t), y = x_0 (e^(k t) - 1)/k."""

    def solution(k, t_1):
        start = {"x": jnp.full((4, 3), 2.0), "y": jnp.zeros((4, 3))}
        state, _ = solve_ode(lambda s, t: {"x": k * s["x"], "y": s["x"]}, start, 0.0, t_1)
        return state["x"].mean() + state["y"].mean(), state

    both = jax.jit(jax.value_and_grad(solution, has_aux=True))
    for t_1 in (1.0, -1.0):
        (_, state), gradient = both(0.7, t_1)
        e = np.exp(0.7 * t_1)
        np.testing.assert_allclose(state["x"], 2 * e, rtol=1e-4)
        np.testing.assert_allclose(state["y"], 2 * (e - 1) / 0.7, rtol=1e-4)
        np.testing.assert_allclose(
            gradient, 2 * t_1 * e + 2 * (t_1 * e / 0.7 - (e - 1) / 0.7**2), rtol=1e-3
        )


def test_too_few_steps_are_an_error():
    with pytest.raises(RuntimeError, match="maximum number of solver steps"):
        solve_ode(lambda x, t: -100 * x, jnp.ones((1, 1)), 0.0, 1.0, max_steps=3)
