"""Autoencoders: the linear one is PCA; penalties and corruption enter the loss; whole runs."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from processes import COMMON, TINY, report, results
from sklearn.decomposition import PCA

from experiments.autoencoder import DIGITS, EXPERIMENT, POINTS, build
from jaxgen.data.records import Arrays
from jaxgen.data.sources import load
from jaxgen.runner import main
from jaxgen.runner.building import begin
from jaxgen.runner.system import weights_of
from jaxgen.systems.autoencoder import codes, errors, kernel_components, largest_angle, probes
from jaxgen.training.step import Now

DATA = load("digits")
SMALL = replace(DIGITS, hidden=16, latents=3)
BATCH = DATA.train.fetch(np.arange(32))


def trained_to_the_end(key, system, steps, rate):
    """Parameters after Adam on the whole training set, and their loss."""
    batch = DATA.train.fetch(np.arange(len(DATA.train)))
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    loss = lambda params: system.loss(params, batch, key, Now(0, {}))[0].mean()

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        carry = params, optimizer.init(params)
        (params, _), _ = jax.lax.scan(step, carry, None, steps)
        return params, loss(params)

    return train(system.init(key)["params"])


def test_the_linear_autoencoder_spans_the_principal_subspace(key):
    """Baldi & Hornik 1989: and its least error is the sum of the variances that are left."""
    system = build(replace(DIGITS, layers=0, latents=10), DATA)
    params, value = trained_to_the_end(key, system, 2000, 0.03)
    x = DATA.vectors(DATA.train.fetch(np.arange(len(DATA.train)))["x"]).astype(np.float64)
    pca = PCA().fit(x)
    columns = np.asarray(params["decoder"]["Dense_0"]["kernel"]).T
    assert largest_angle(columns, pca.components_[:10].T) < 1
    left = pca.explained_variance_[10:].sum() * (len(x) - 1) / len(x)
    np.testing.assert_allclose(value, left, rtol=1e-3)
    # and samples of the normal of its codes are normal, with the data's mean and PCA's covariance
    weights = weights_of(begin(system, key))._replace(params=params)
    draw = jax.jit(lambda w: system.sample(key, w, DATA.given(20_000)))
    samples = np.asarray(draw(system.settled(weights))).reshape(-1, 64)
    np.testing.assert_allclose(samples.mean(axis=0), x.mean(axis=0), atol=0.03)
    want = pca.components_[:10].T * pca.explained_variance_[:10] @ pca.components_[:10]
    np.testing.assert_allclose(np.cov(samples.T), want, atol=0.03)


def test_angles_between_planes():
    a = np.eye(4)[:, :2]
    for degrees in (0.0, 1e-3, 30.0, 90.0):
        turned = np.radians(degrees)
        b = np.array([[1, 0], [0, np.cos(turned)], [0, np.sin(turned)], [0, 0]])
        mixed = b @ np.array([[2.0, 1.0], [-1.0, 3.0]])  # another basis of the same plane
        np.testing.assert_allclose(largest_angle(a, mixed), degrees, atol=1e-5)


def test_kernel_components_do_not_depend_on_the_scale_of_data():
    """The kernel's width is the data's own; the components are those of its centred matrix."""
    x = np.random.default_rng(0).normal([3, 0], 1, (40, 2))
    found = []
    for scale in (1.0, 100.0):
        train = Arrays({"x": np.float32(scale * x), "label": np.zeros(40, np.int32)})
        data = replace(load("moons"), train=train)
        found.append(kernel_components(data, 2).transform(scale * x))
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-4)
    squares = ((x[:, None] - x) ** 2).sum(axis=-1)
    kernel, centre = np.exp(-squares / (2 * x.var())), np.eye(40) - 1 / 40
    values = np.linalg.eigvalsh(centre @ kernel @ centre)[::-1]
    np.testing.assert_allclose((found[0] ** 2).sum(axis=0), values[:2], rtol=1e-3)


def loss_of(key, params=None, **options):
    system = build(replace(SMALL, **options), DATA)
    params = system.init(key)["params"] if params is None else params
    return system.loss(params, BATCH, key, Now(0, {}))


def test_without_penalties_the_loss_is_the_error(key):
    loss, metrics = loss_of(key)
    assert metrics.keys() == {"reconstruction"}
    np.testing.assert_array_equal(loss, metrics["reconstruction"])


@pytest.mark.parametrize("name", ["sparse", "absolute", "contractive"])
def test_penalties_are_added_by_their_weights(key, name):
    plain, _ = loss_of(key, code="sigmoid")
    loss, metrics = loss_of(key, code="sigmoid", **{name: 2.0})
    assert metrics.keys() == {"reconstruction", name}
    assert (metrics[name] > 0).all()
    np.testing.assert_array_equal(metrics["reconstruction"], plain)
    np.testing.assert_allclose(loss, plain + 2 * metrics[name], rtol=1e-5)


def test_what_is_corrupted_is_what_the_encoder_sees_and_not_the_target(key):
    """All hidden, the encoder sees black, and the error is to the images themselves."""
    system = build(replace(SMALL, masking=1.0), DATA)
    params, x = system.init(key)["params"], DATA.kind.values(BATCH["x"])
    black = system.decode(params, system.encode(params, jnp.full(x.shape, -1.0)))
    want = ((x - black) ** 2).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(loss_of(key, params, masking=1.0)[0], want, rtol=1e-5)
    assert not np.allclose(loss_of(key, params, noise=0.5)[0], loss_of(key, params)[0])
    points = load("moons")
    seen = build(replace(POINTS, masking=1.0), points).seen(key, jnp.ones((5, 2)))
    np.testing.assert_array_equal(seen, 0)


def test_codes_are_in_range_and_samples_are_of_such(key):
    system = build(replace(SMALL, code="sigmoid"), DATA)
    weights = system.settled(weights_of(begin(system, key)))
    z = codes(system, weights, key, BATCH)
    assert ((z > 0) & (z < 1)).all()
    assert system.sample(key, weights, DATA.given(7)).shape == (7, 8, 8, 1)


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"sparse": 1.0}, "use --code sigmoid"),
        ({"code": "sigmod"}, "did you mean sigmoid"),
        ({"model": "cnv"}, "did you mean conv"),
    ],
)
def test_options_that_do_not_go_together_are_refused_with_advice(options, advice):
    with pytest.raises(ValueError, match=advice):
        build(replace(SMALL, **options), DATA)
    with pytest.raises(ValueError, match="use mlp"):
        build(replace(SMALL, model="conv"), load("moons"))


PICTURES = {"samples.png", "reconstructions.png", "interpolations.png", "codes.png"}
NUMBERS = {"reconstruction_error", "reconstruction_error_of_pca", "angle_to_pca"}
NUMBERS |= {"probe_accuracy", "probe_accuracy_of_pca", "probe_accuracy_of_input"}
NUMBERS |= {"denoising_error", "corruption"}
OWN = replace(EXPERIMENT, measures=(errors, probes))  # without the judge of any images


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(verbs, words):
        argv = f"{verbs} {TINY['autoencoder']} {COMMON} --devices 1 {words}"
        return main(OWN, argv.split())

    return run


def test_a_linear_denoising_run_draws_and_measures_everything(command):
    assert command("", "--layers 0 --masking 0.3 --noise 0.1 --steps 4 --dir run") == 0
    made = results("run")
    assert {p.name for p in made.iterdir()} >= PICTURES
    for picture in PICTURES:
        assert np.asarray(Image.open(made / picture).convert("L")).std() > 5
    numbers = report("run")
    assert numbers.keys() >= NUMBERS
    assert all(np.isfinite(number["value"]) for number in numbers.values())
    assert 0 <= numbers["angle_to_pca"]["value"] <= 90


def test_points_have_a_curve_and_no_classes(command):
    assert command("", "--data moons --latents 1 --steps 4 --dir run") == 0
    for picture in ("reconstructions.png", "codes.png"):
        assert np.asarray(Image.open(results("run") / picture).convert("L")).std() > 5
    assert report("run").keys() == {"reconstruction_error", "reconstruction_error_of_pca"}


@pytest.mark.slow
def test_weights_of_penalties_can_be_swept(command):
    words = "--code sigmoid --sweep contractive=0.1,1 masking=0,0.5"
    assert command("train", f"{words} --steps 4 --dir sweep") == 0
