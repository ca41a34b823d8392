import jax
import jax.numpy as jnp
import numpy as np
from oracles import Gaussian, Mixture

from jaxgen.diffusion.guidance import clip_x_0
from jaxgen.diffusion.samplers import consistency, ddim, sample
from jaxgen.diffusion.schedules import CosineLogSNR, FlowMatching, Sigma, karras_grid
from jaxgen.losses.distillation import (
    consistency_function,
    consistency_loss,
    progressive_loss,
    teacher_step,
    two_step_target,
)

SCHEDULE = CosineLogSNR(10.0, -10.0)
DATA = Mixture(np.array([0.3, 0.7]), np.array([[0.8, 0.2], [-0.8, 0.0]]), 0.3)


def test_one_step_with_the_target_is_two_of_the_teachers(key):
    teacher, x_t = DATA.denoiser(SCHEDULE), jax.random.normal(key, (30, 2))
    for t, s in ((1.0, 0.5), (0.75, 0.5), (0.3, 0.1)):
        times = jnp.full((30,), t), jnp.full((30,), s)
        target = two_step_target(teacher, SCHEDULE, x_t, *times)
        one = sample(key, lambda x, t, y=target: y, SCHEDULE, x_t, [t, s], ddim())
        two = sample(key, teacher, SCHEDULE, x_t, [t, 0.5 * (t + s), s], ddim())
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4)


def gaussian_student(schedule, mean, cov, rounds, steps):
    """The student that N(m, v) allows after ``rounds`` halvings down to ``steps`` steps: a chain of
    affine DDIM steps is affine, so the optimal student is known at every time it is asked for."""
    data = Gaussian(mean, cov)
    teacher, n = data.denoiser(schedule), steps * 2**rounds
    for _ in range(rounds):
        n //= 2

        def student(x_t, t, teacher=teacher, n=n):
            return two_step_target(teacher, schedule, x_t, t, jnp.maximum(t - 1 / n, 0.0))

        teacher = student
    return teacher


def test_students_of_many_rounds_step_as_their_first_teacher(key):
    """8 steps to 4, 2 and 1: with every round solved exactly, one step is the teacher's eight."""
    mean, cov = np.array([0.5, -0.3]), np.array([[0.5, 0.2], [0.2, 0.3]])
    x_T = jax.random.normal(key, (20, 2))
    student = gaussian_student(SCHEDULE, mean, cov, 3, 1)
    one = sample(key, student, SCHEDULE, x_T, [1.0, 0.0], ddim())
    teacher = Gaussian(mean, cov).denoiser(SCHEDULE)
    eight = sample(key, teacher, SCHEDULE, x_T, np.linspace(1, 0, 9), ddim())
    np.testing.assert_allclose(one, eight, rtol=1e-2, atol=2e-3)


def test_the_loss_is_zero_for_the_exact_student_and_weighs_by_the_truncated_snr(key):
    teacher, steps = DATA.denoiser(SCHEDULE), 4
    exact = lambda x_t, t: two_step_target(teacher, SCHEDULE, x_t, t, t - 1 / steps)
    x_0 = jnp.asarray(DATA.sample(np.random.default_rng(0), 4000))
    loss = jax.jit(
        lambda steps, offset: progressive_loss(
            key, lambda x, t: exact(x, t) + offset, teacher, SCHEDULE, x_0, steps
        )
    )
    np.testing.assert_allclose(loss(steps, 0.0), 0.0, atol=1e-3)
    # an error of 0.1 in x_0 costs max(SNR, 1)/100 at t = 1/4, ..., 1, drawn evenly
    snr = np.exp(np.asarray(SCHEDULE(jnp.arange(1, 5) / 4).log_snr))
    want = np.maximum(snr, 1) / 100
    values, counts = np.unique(np.round(np.asarray(loss(steps, 0.1)), 3), return_counts=True)
    np.testing.assert_allclose(values, np.unique(np.round(want, 3)), rtol=0.05)
    assert counts.min() > 800


def test_a_guided_teacher_is_a_teacher(key):
    teacher = clip_x_0(DATA.denoiser(SCHEDULE), -0.1, 0.1)
    x_0 = jnp.zeros((8, 2))
    loss = progressive_loss(key, DATA.denoiser(SCHEDULE), teacher, SCHEDULE, x_0, 2)
    assert (loss > 0).all()


def gaussian_consistency(schedule, first, mean, std):
    """f of N(m, s^2): the end at ``first`` of the probability flow, which is affine."""

    def f(x_t, t):
        total = lambda level: jnp.sqrt(level.alpha**2 * std**2 + level.sigma**2)
        at, end = schedule(t), schedule(jnp.asarray(first))
        z = (x_t - at.alpha[:, None] * mean) / total(at)[:, None]
        return mean + total(end) / end.alpha * z

    return f


def test_consistency_functions_start_as_the_identity(key):
    f = consistency_function(lambda x, t: jnp.sin(3 * x), Sigma(), 0.002)
    x = jax.random.normal(key, (5, 3))
    np.testing.assert_allclose(f(x, jnp.full((5,), 0.002)), x, rtol=1e-5, atol=1e-6)
    # Song et al. 2023, appendix C, at sigma = 1 with sigma_data = 1/2
    skip, out = 0.25 / (0.998**2 + 0.25), 0.5 * 0.998 / np.sqrt(1.25)
    want = skip * np.asarray(x) + out * np.sin(3 * np.asarray(x))
    np.testing.assert_allclose(f(x, jnp.ones(5)), want, rtol=1e-4, atol=1e-5)


def test_the_true_consistency_function_has_a_loss_that_vanishes_with_the_step(key):
    """It is constant along the flow; the teacher's DDIM steps leave it by O(h^2)."""
    mean, std = 0.4, 0.5
    teacher = Gaussian(np.array([mean]), np.array([[std**2]])).denoiser(Sigma())
    f = gaussian_consistency(Sigma(), 0.002, mean, std)
    x_0 = mean + std * jax.random.normal(key, (4000, 1))
    losses = []
    for n in (20, 40, 80):
        times = jnp.asarray(karras_grid(n, 10.0)[:-1])
        move = teacher_step(teacher, Sigma())
        losses.append(float(consistency_loss(key, f, f, Sigma(), x_0, times, move).mean()))
    ratios = np.array(losses[:-1]) / np.array(losses[1:])
    assert (ratios > 10).all()  # the square of O(h^2)
    wrong = consistency_loss(key, lambda x, t: 0.5 * f(x, t), f, Sigma(), x_0, times, move)
    assert wrong.mean() > 100 * losses[-1]


def test_consistency_sampling_has_the_marginals_in_one_step_and_in_more(key):
    for schedule, times in ((Sigma(), [80.0, 0.0]), (FlowMatching(), [1.0, 0.6, 0.3, 0.0])):
        f = gaussian_consistency(schedule, 1e-3, 0.4, 0.5)
        x_T = schedule(times[0]).sigma * jax.random.normal(key, (40_000, 1))
        x = sample(key, f, schedule, x_T, times, consistency())
        np.testing.assert_allclose(x.mean(), 0.4, atol=0.015)
        np.testing.assert_allclose(x.std(), 0.5, rtol=0.02)


def test_of_a_learned_variance_x_0_alone_is_taught(key):
    """Teacher and student answer pairs, as their x_0 alone would be distilled."""
    alone, x_0 = DATA.denoiser(SCHEDULE), jnp.asarray(DATA.sample(np.random.default_rng(0), 16))
    pair = lambda x, t: (alone(x, t), jnp.full_like(x, 0.3))
    student, students = (lambda x, t: 0.9 * x), (lambda x, t: (0.9 * x, x))
    progressive = lambda s, t: progressive_loss(key, s, t, SCHEDULE, x_0, 4)
    np.testing.assert_allclose(progressive(students, pair), progressive(student, alone), rtol=1e-6)
    move = lambda d: teacher_step(d, SCHEDULE)
    consistent = lambda s, t: consistency_loss(
        key, s, s, SCHEDULE, x_0, np.linspace(1, 0.1, 5), move(t)
    )
    np.testing.assert_allclose(consistent(students, pair), consistent(student, alone), rtol=1e-6)


def test_the_times_of_a_student_run_to_the_end_of_its_schedule(key):
    """Where time is sigma, up to 80, and not to 1."""
    seen = []
    student = lambda x, t: seen.append(t) or x
    progressive_loss(key, student, lambda x, t: x, Sigma(), jnp.ones((4000, 1)), 4)
    np.testing.assert_allclose(np.unique(seen[0]), [20, 40, 60, 80])
