"""What follows a prompt, against the network without a cache."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.gpt import DIGITS, TEXT, Drawing, build
from jaxgen.data.records import Arrays, DataSet, Image
from jaxgen.data.text import text_set
from jaxgen.training.step import Now

DATA = text_set("letters", {"train": bytes(range(97, 123)) * 20}, 12)
SMALL = replace(TEXT, width=16, layers=2)
PROMPTS = ("abc", "", "hello")


def drawn(key, **drawing):
    system = build(replace(SMALL, drawing=Drawing(PROMPTS, **drawing)), DATA)
    params = system.init(key)["params"]
    params = jax.tree.map(lambda a: 5 * a, params)  # far from even
    given = system.data.given(6)
    return system, params, np.asarray(system.sample(key, SimpleNamespace(params=params), given))


def test_samples_are_prompts_and_their_most_likely_continuation(key):
    """At temperature 0, token by token, by the network as it is trained."""
    system, params, x = drawn(key, temperature=0.0)
    apply = jax.jit(lambda tokens: system.network.apply({"params": params}, tokens))
    longest = max(map(len, PROMPTS))
    for row, prompt in zip(x, PROMPTS * 2, strict=True):
        assert bytes(row[: len(prompt)].tolist()).decode() == prompt
        end = 12 - longest + len(prompt)
        np.testing.assert_array_equal(row[end:], 0)
        before = np.concatenate([[system.begin], row[:-1]])
        best = np.asarray(apply(before[None])[0, :, :256].argmax(axis=-1))
        np.testing.assert_array_equal(row[len(prompt) : end], best[len(prompt) : end])


def test_the_loss_is_that_of_the_chain_rule(key):
    system = build(SMALL, DATA)
    params = jax.tree.map(lambda a: 5 * a, system.init(key)["params"])
    batch = DATA.train.fetch(np.arange(3))
    nats, metrics = system.loss(params, batch, key, Now(0, {}, train=False))
    x = np.asarray(batch["x"], int)
    total = np.zeros(3)
    apply = jax.jit(lambda tokens: system.network.apply({"params": params}, tokens))
    for i in range(12):  # each of its own pass, of a sequence that knows nothing of the rest
        before = np.concatenate([np.full((3, 1), system.begin), x[:, :i], np.zeros((3, 11 - i))], 1)
        log_p = jax.nn.log_softmax(apply(before.astype(int))[:, i, :256])
        total -= np.asarray(log_p)[np.arange(3), x[:, i]]
    np.testing.assert_allclose(nats, total / 12, rtol=1e-4)
    np.testing.assert_allclose(metrics["bits_per_token"], total / 12 / np.log(2), rtol=1e-4)


def test_a_prompt_that_fills_the_model_is_refused():
    with pytest.raises(ValueError, match="shorten"):
        build(replace(SMALL, drawing=Drawing(("a" * 12,))), DATA)


def test_filters_leave_few_tokens(key):
    _, _, x = drawn(key, top_k=1)
    _, _, best = drawn(key, temperature=0.0)
    np.testing.assert_array_equal(x, best)
    assert jnp.asarray(x).max() < 256


SHAPE, LEVELS = (2, 2, 1), 3
X = np.stack(np.meshgrid(*[np.arange(LEVELS)] * 4, indexing="ij"), -1).reshape(-1, *SHAPE)
SOURCE = Arrays({"x": X.astype(np.uint8), "label": np.zeros(len(X), np.int32)})
IMAGES = DataSet("tiny", Image(SHAPE, LEVELS), SOURCE, SOURCE, SOURCE, classes=2)


def test_all_images_have_probabilities_that_sum_to_one_and_draws_have_them(key):
    system = build(replace(DIGITS, width=16, layers=1, dropout=0.0), IMAGES)
    params = jax.tree.map(lambda a: 8 * a, system.init(key)["params"])
    nats, _ = system.loss(params, SOURCE.fetch(np.arange(81)), key, Now(0, {}, train=False))
    p = np.exp(-4 * np.asarray(nats, float))
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)
    assert p.max() > 3 * p.min()  # 1/81 where all are alike

    weights, given = SimpleNamespace(params=params), {"label": jnp.zeros(20_000, jnp.int32)}
    x = np.asarray(jax.jit(lambda: system.sample(key, weights, given))())
    bins = np.round((x + 1) / 2 * (LEVELS - 1)).astype(int).reshape(-1, 4)
    shares = np.bincount(bins @ LEVELS ** np.arange(4)[::-1], minlength=81) / len(x)
    assert (np.abs(shares - p) < 5 * np.sqrt(p / len(x)) + 1e-4).all()

    known = jnp.array([[2, 0]] * 20_000)  # and given the first row, those of the second
    rest = jax.jit(lambda: system.followed(key, params, known, jnp.full(20_000, 2)))()
    np.testing.assert_array_equal(rest[:, :2], known)
    shares = np.bincount(np.asarray(rest)[:, 2:] @ [3, 1], minlength=9) / len(x)
    given_first = p.reshape(9, 9)[6] / p.reshape(9, 9)[6].sum()
    np.testing.assert_allclose(shares, given_first, atol=0.015)


def test_prompts_are_of_text_and_bits_of_grey_images():
    with pytest.raises(ValueError, match="leave out --prompt"):
        build(replace(DIGITS, drawing=Drawing(("a",))), IMAGES)
    with pytest.raises(ValueError, match="use --pixels levels"):
        build(replace(SMALL, pixels="bits"), DATA)
