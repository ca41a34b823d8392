"""The one step body every family trains with, and the step in which several players take turns.

A loss of one network is ``loss_fn(params, batch, key) -> (values, metrics)``, with one value an
example or one for the batch, of which the mean is taken. In a :class:`Turn` it also sees what is
:class:`Now` besides: the step of the run, the other players, and a memory of its own, which it may
answer anew by :class:`Aux`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array, lax

from jaxgen.training import model_state
from jaxgen.training.model_state import Answer, Rules, divided

T = TypeVar("T")
Params = Any
Batch = Any
Metrics = dict[str, Array]
Loss = Callable[[Params, Batch, Array], tuple[Array, Metrics]]
Decay = float | Array | Callable[[Array], Array]  # of the EMA, or the decay after so many updates
Step = Callable[..., tuple[Any, Metrics]]  # (state, batch, key, axis_name=None)


NO_RULES: Rules = MappingProxyType({})

# The metrics of every step, beside those that its loss names.
OWN_METRICS = frozenset({"loss", "grad_norm", "update_norm", "param_norm", "skipped"})


class Aux(NamedTuple):
    """What a loss with model state returns beside its values: metrics, and that state after.

    ``memory`` holds the collections that change, each as its rule asks (see
    :mod:`~jaxgen.training.model_state`); None, and what it lacks, leave them as they were.
    """

    metrics: Metrics
    memory: Mapping[str, Any] | None


@struct.dataclass
class TrainState:
    """One network in training. ``ema`` is the moving average that evaluation and sampling use."""

    step: Array  # updates made so far, int32
    params: Params
    opt_state: optax.OptState
    ema: Params
    memory: Any  # what is no parameter: batch statistics, a codebook, ...; {} for most networks


def init_state(variables: Mapping[str, Any], optimizer: optax.GradientTransformation) -> TrainState:
    """The state at step 0 from a module's ``init``; the EMA starts at the parameters.

    Whatever ``variables`` hold beside ``params`` is memory.
    """
    memory = {name: value for name, value in variables.items() if name != "params"}
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params),  # a buffer of its own: both are donated
        memory=memory,
    )


# (params, batch, key) -> (scalar, (metrics, answer)): what the step body differentiates
AnswerLoss = Callable[[Params, Batch, Array], tuple[Array, tuple[Metrics, Answer]]]


def gradient(
    loss: AnswerLoss, params: Params, batch: Batch, key: Array, parts: int = 1
) -> tuple[tuple[Array, tuple[Metrics, Answer]], Params]:
    """``((value, (metrics, answer)), gradient)`` of a batch, in ``parts`` one after the other.

    With parts (of :func:`divided`), the memory for activations is that of one part; part i draws
    from ``fold_in(key, i)``. What is nonlinear in the batch (batch norm) sees its part alone. Model
    state is put together by its rules, all else is averaged.

    Raises:
      ValueError: unless the parts divide the batch.
    """
    compute = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        return compute(params, batch, key)

    def one(i: Array, batch: Batch) -> tuple[Any, Answer]:
        (value, (metrics, answer)), grads = compute(params, batch, jax.random.fold_in(key, i))
        return (value, metrics, answer.means, grads), answer._replace(means={})

    def add(total: Any, part: tuple[Array, Batch]) -> tuple[Any, Answer]:
        found, rest = one(*part)
        return jax.tree.map(lambda a, b: a + b / parts, total, found), rest

    xs = (jnp.arange(parts), divided(batch, parts))
    shapes, _ = jax.eval_shape(one, *jax.tree.map(lambda x: x[0], xs))
    # a count or a truth value has a mean too, but not of its own type
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.result_type(x.dtype, 1.0)), shapes)
    (value, metrics, means, grads), rest = lax.scan(add, zeros, xs)
    return (value, (metrics, model_state.over_parts(rest._replace(means=means)))), grads


def descend(
    state: TrainState,
    loss: Callable[[Params, Batch, Array], tuple[Array, Aux]],
    batch: Batch,
    key: Array,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: Decay,
    accumulate: int = 1,
    axis_name: str | None = None,
    rules: Rules = NO_RULES,
    rule_key: Array | None = None,
) -> tuple[TrainState, Metrics]:
    """One update: gradient, mean over devices, optimizer, EMA, model state by its ``rules``.

    Where the loss, the gradient or the update is not finite it is skipped: everything but the step
    count stays as it was, and the metric ``skipped`` is 1. Under ``pmap`` each device sees its
    share of the batch: gradients and metrics are averaged over ``axis_name``. ``accumulate`` is the
    ``parts`` of :func:`gradient`; ``rule_key``, the same on all devices, is what rules draw from.

    Raises:
      ValueError: for a metric that has the name of one of the step's own, or model state that
        ``state`` does not hold.
    """

    def answered(params: Params, batch: Batch, key: Array) -> Any:
        value, aux = loss(params, batch, key)
        return value, (aux.metrics, model_state.answer_of(rules, state.memory, aux.memory))

    (value, (metrics, answer)), grads = gradient(answered, state.params, batch, key, accumulate)
    taken = sorted(metrics.keys() & OWN_METRICS)
    if taken:
        raise ValueError(
            f"the step itself reports {', '.join(taken)}: give this metric of the loss another "
            "name."
        )
    metrics = {"loss": value, **metrics}
    if axis_name is not None:
        grads, metrics = lax.pmean((grads, metrics), axis_name)
        answer = model_state.over_devices(answer, axis_name)
    rule_key = jax.random.key(0) if rule_key is None else rule_key
    decay = ema_decay(state.step) if callable(ema_decay) else ema_decay
    # Here for its norm, and once more where it is made, in place: XLA drops the rest of either.
    updates, _ = optimizer.update(grads, state.opt_state, state.params)
    grad_norm, update_norm = optax.tree.norm(grads), optax.tree.norm(updates)

    def moved(state: TrainState) -> TrainState:
        params = optax.apply_updates(state.params, updates)
        return TrainState(
            step=state.step,
            params=params,
            opt_state=optimizer.update(grads, state.opt_state, state.params)[1],
            ema=optax.incremental_update(params, state.ema, 1 - decay),
            memory=model_state.updated(rules, state.memory, answer, rule_key),
        )

    finite = jnp.isfinite(jnp.stack([metrics["loss"], grad_norm, update_norm])).all()
    state = where(finite, moved, state)
    norms = {
        "grad_norm": grad_norm,
        "update_norm": update_norm,
        "param_norm": optax.tree.norm(state.params),
    }
    skipped = 1 - finite.astype(jnp.int32)
    return replace(state, step=state.step + 1), {**metrics, **norms, "skipped": skipped}


def where(condition: Array, moved: Callable[[T], T], state: T) -> T:
    """``moved(state)`` where the condition holds, else ``state``.

    On CPU by a branch, which changes the state in place: a choice between two states there takes
    as long as all of Adam (0.4 of 1.0 ms for 650,000 parameters). An accelerator makes the choice
    on the way, and would wait for the host to branch.
    """

    def chosen(condition: Array, state: T) -> T:
        return jax.tree.map(lambda new, old: jnp.where(condition, new, old), moved(state), state)

    def branched(condition: Array, state: T) -> T:
        return lax.cond(condition, moved, lambda state: state, state)

    return lax.platform_dependent(condition, state, cpu=branched, default=chosen)


def step_key(key: Array, step: Array, axis_name: str | None = None) -> Array:
    """The key of one step on one device: a resumed run draws what the unbroken one would."""
    key = jax.random.fold_in(key, step)
    return key if axis_name is None else jax.random.fold_in(key, lax.axis_index(axis_name))


def rule_key(key: Array, step: Array) -> Array:
    """What rules of model state draw from at a step, the same on every device."""
    return jax.random.fold_in(jax.random.fold_in(key, step), 2**31 - 1)


def make_step(
    loss_fn: Loss,
    optimizer: optax.GradientTransformation,
    ema_decay: Decay,
    accumulate: int = 1,
) -> Step:
    """The step ``(state, batch, key) -> (state, metrics)`` of one network without a memory.

    ``accumulate`` is the ``parts`` of :func:`gradient`.
    """

    def loss(params: Params, batch: Batch, key: Array) -> tuple[Array, Aux]:
        values, metrics = loss_fn(params, batch, key)
        return jnp.mean(values), Aux(jax.tree.map(jnp.mean, metrics), {})

    def step(state: TrainState, batch: Batch, key: Array, axis_name: str | None = None):
        return descend(
            state,
            loss,
            batch,
            step_key(key, state.step, axis_name),
            optimizer,
            ema_decay=ema_decay,
            accumulate=accumulate,
            axis_name=axis_name,
        )

    return step


class Now(NamedTuple):
    """What a loss may look at beside parameters, batch and key."""

    step: Array | int  # steps of the run so far
    memory: Any  # of the player that moves
    players: Mapping[str, Any] = MappingProxyType({})  # every player's state, its own too
    train: bool = True  # or measured: without dropout, on the moving average
    axis_name: str | None = None  # of the devices, under pmap


# (params of the player that moves, batch, key, now) -> (values [B] or a scalar, metrics or Aux)
TurnLoss = Callable[[Params, Batch, Array, Now], tuple[Array, Metrics | Aux]]


@dataclass(frozen=True)
class Turn:
    """One player's part in a step: it descends its loss, ``times`` times on a batch each."""

    player: str
    loss: TurnLoss
    optimizer: optax.GradientTransformation
    times: int = 1
    # of its model state, where a collection is no statistic
    rules: Rules = field(default_factory=dict)


@struct.dataclass
class Players:
    """The states of all that is in training, by name, and the steps of the run so far."""

    step: Array
    of: dict[str, TrainState]

    def __getitem__(self, name: str) -> TrainState:
        return self.of[name]


def init_players(variables: Mapping[str, Any], turns: Sequence[Turn]) -> Players:
    """The players at step 0, from the variables of each."""
    states = {t.player: init_state(variables[t.player], t.optimizer) for t in turns}
    return Players(jnp.zeros((), jnp.int32), states)


def batches_of(turns: Sequence[Turn]) -> int:
    """How many batches a step takes."""
    return max(turn.times for turn in turns)


def make_turns(turns: Sequence[Turn], ema_decay: Decay, accumulate: int = 1) -> Step:
    """A step in which every player moves in turn (Goodfellow et al. 2014, algorithm 1).

    Its batch is ``batches_of(turns)`` batches in one: who moves k times sees the last k, one each.
    The metrics of several players bear their names; those of a repeated move are means, ``skipped``
    their sum, so that none of them is hidden.
    """

    def step(state: Players, batch: Batch, key: Array, axis_name: str | None = None):
        count = sum(t.times for t in turns)
        keys = iter(jax.random.split(step_key(key, state.step, axis_name), count))
        rule_keys = iter(jax.random.split(rule_key(key, state.step), count))
        parts = divided(batch, batches_of(turns)) if batches_of(turns) > 1 else None
        metrics: Metrics = {}
        for turn in turns:
            rows = []
            for i in range(-turn.times, 0):
                state, found = move(
                    turn,
                    state,
                    batch if parts is None else jax.tree.map(lambda x: x[i], parts),  # noqa: B023
                    next(keys),
                    rule_key=next(rule_keys),
                    ema_decay=ema_decay,
                    accumulate=accumulate,
                    axis_name=axis_name,
                )
                rows.append(found)
            each = jax.tree.map(lambda *values: jnp.stack(values), *rows)  # [times]
            prefix = f"{turn.player}/" if len(turns) > 1 else ""
            metrics |= {
                prefix + k: v.sum() if k == "skipped" else v.mean() for k, v in each.items()
            }
        return replace(state, step=state.step + 1), metrics

    return step


def move(
    turn: Turn, state: Players, batch: Batch, key: Array, *, axis_name: str | None, **how: Any
) -> tuple[Players, Metrics]:
    """One update of one player, by :func:`descend`."""
    player = state[turn.player]
    now = Now(state.step, player.memory, state.of, axis_name=axis_name)

    def loss(params: Params, batch: Batch, key: Array) -> tuple[Array, Aux]:
        values, told = turn.loss(params, batch, key, now)
        metrics, memory = told if isinstance(told, Aux) else (told, None)
        return jnp.mean(values), Aux(jax.tree.map(jnp.mean, metrics), memory)

    how |= {"axis_name": axis_name, "rules": turn.rules}
    moved, metrics = descend(player, loss, batch, key, turn.optimizer, **how)
    return replace(state, of={**state.of, turn.player: moved}), metrics


def half_life_decay(
    images: float | Array, batch: int, warmup: float | None = 0.05
) -> Callable[[Array], Array]:
    """The EMA's decay by which an update counts half as much after so many ``images``.

    After n images in batches of B it is 2^(-B / h), h = min(``images``, ``warmup`` n): early on the
    average forgets faster, so that it does not hold on to the initialization. Karras et al. 2022,
    appendix F (training configurations). To be given as ``ema_decay``.
    """

    def decay(step: Array) -> Array:
        h = jnp.asarray(images) if warmup is None else jnp.minimum(images, warmup * step * batch)
        return jnp.exp2(-batch / h)  # 0 after no image: the parameters themselves

    return decay


def adam(
    learning_rate: float | Array,
    *,
    warmup: int = 0,
    decay: str = "none",
    steps: int | None = None,
    clip: float | None = None,
    skip: float | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float | Array = 0.0,
) -> optax.GradientTransformation:
    """Adam, its rate rising over ``warmup`` steps, its gradient's global norm at most ``clip``.

    Args:
      decay: what the rate does after the warm-up: ``none``, or ``cosine`` (Loshchilov & Hutter
        2017) or ``linear`` down to 0 at the last of ``steps``.
      skip: a gradient whose global norm is larger makes no update (Child 2021, section 4): it is
        turned into NaN, which :func:`descend` leaves out and reports.
      weight_decay: decoupled (Loshchilov & Hutter 2019): each update takes off the rate times this
        much of the parameter itself. Kernels and tables alone decay, not biases, nor the scales of
        norms: arrays of two axes or more.

    A rate that neither rises nor decays is not part of the state. Rate and weight decay may be
    traced.

    Raises:
      ValueError: for an unknown ``decay``, or one whose ``steps`` do not exceed the warm-up.
    """
    curves = {
        "cosine": optax.cosine_decay_schedule,
        "linear": lambda rate, count: optax.linear_schedule(rate, 0.0, count),
    }
    if decay != "none" and decay not in curves:
        raise ValueError(
            f"the decay of the learning rate is none, cosine or linear, not '{decay}'."
        )
    schedule: Any = learning_rate
    if decay != "none":
        left = (steps or 0) - warmup
        if left <= 0:
            raise ValueError(
                f"a decay needs more steps ({steps}) than the warm-up has ({warmup}): "
                "lower the warm-up (--warmup), or leave out the decay (--decay none)."
            )
        schedule = curves[decay](learning_rate, left)
    if warmup:
        rise = optax.linear_schedule(0.0, learning_rate, warmup)
        schedule = optax.join_schedules([rise, schedule], [warmup]) if decay != "none" else rise
    clipping = optax.clip_by_global_norm(clip) if clip else optax.identity()
    if skip:
        clipping = optax.chain(optax.stateless(partial(_nan_above, skip)), clipping)
    kernels = lambda params: jax.tree.map(lambda p: jnp.ndim(p) >= 2, params)  # noqa: E731
    return optax.chain(
        clipping,
        optax.adamw(schedule, b1, b2, weight_decay=weight_decay, mask=kernels),  # pyright: ignore
    )


def _nan_above(limit: float, updates: Params, _: Params) -> Params:
    """Updates as they are, or NaN where their norm is above the limit."""
    factor = jnp.where(optax.tree.norm(updates) > limit, jnp.nan, 1.0)
    return jax.tree.map(lambda u: (factor * u).astype(u.dtype), updates)


def clipped_weights(limit: float | Array) -> optax.GradientTransformation:
    """Last in a chain: each weight ends within ``limit`` of 0 (Arjovsky et al. 2017, algorithm 1).

    A weight that moves is within it but for the rounding of a sum.
    """

    def clip(updates: Params, params: Params) -> Params:
        return jax.tree.map(lambda u, p: jnp.clip(p + u, -limit, limit) - p, updates, params)

    return optax.stateless(clip)
