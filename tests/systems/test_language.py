"""What follows a prompt, against the network without a cache."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.gpt import TEXT, Drawing, build
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
        end = 12 + 1 - longest + len(prompt)
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
        log_p = jax.nn.log_softmax(apply(before.astype(int))[:, i])
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
