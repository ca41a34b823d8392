"""What a system declares: a model with its data, as a small dataclass of parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.data.records import DataSet, Image, did_you_mean, some
from jaxgen.evaluation.features import FeatureSpace, feature_space
from jaxgen.runner.frozen import frozen_in, with_frozen
from jaxgen.training.model_state import Rules
from jaxgen.training.rows import OverRows
from jaxgen.training.step import Aux, Metrics, Now, Players, Turn

ONLY = "model"  # the name of a player that is alone
SCORED = 1000  # validation examples that models are selected by
CHUNK = 250  # of them at a time
END = 2**30  # the step at which a trained model is measured


class Mistake(ValueError):
    """A wrong option or state of affairs, said in one sentence that names the fix."""


def choose(kind: str, name: str, table: Mapping[str, Any] | Iterable[str]) -> Any:
    """``table[name]``, or the name itself where the table is one of names.

    Raises:
      Mistake: for any other name, with the nearest ones.
    """
    if name not in table:
        raise Mistake(f"unknown {kind} '{name}'{did_you_mean(name, table)}")
    return table[name] if isinstance(table, Mapping) else name


def classes_told(asked: bool, data: DataSet) -> int | None:
    """How many classes a model is told of, where it is ``asked`` for one that is.

    Raises:
      Mistake: for data that have none.
    """
    if asked and data.classes < 2:
        raise Mistake(f"{data.name} has no classes to tell: leave out --conditional.")
    return data.classes if asked else None


class Weights(NamedTuple):
    """What a trained network is sampled and measured with."""

    params: Any  # their moving average
    memory: Any  # what is no parameter


def weights_of(players: Players) -> Any:
    """The :class:`Weights` of the one network, or a dict of them by the names of the players."""
    return by_player({name: Weights(s.ema, s.memory) for name, s in players.of.items()})


def moving_of(players: Players) -> Any:
    """The same with the parameters that move in place of their average."""
    return by_player({name: Weights(s.params, s.memory) for name, s in players.of.items()})


def by_player(found: dict[str, Weights]) -> Any:
    """The one network's alone, or those of all players."""
    return found[ONLY] if list(found) == [ONLY] else found


# (system, weights, key, rows [size, ...]) -> arrays [size, ...]
SystemFunction = Callable[[Any, Any, Array, Any], Any]


@dataclass(frozen=True, eq=False)
class System:
    """A model with its data: the base of every system, whose further fields are its parts.

    A variation is ``dataclasses.replace``: another solver, another data set, a stage of growth.
    A part that is :class:`~jaxgen.runner.frozen.Frozen`, or a run that was opened, is not trained.
    One network needs ``init``, ``loss`` and ``sample``; several players answer ``turns`` in place
    of ``loss``, and a system that grows answers ``stages`` and ``grow``.
    """

    data: DataSet
    optimizer: Any  # of optax
    # What extracts the features that samples are compared with data by.
    extractor: Callable[[DataSet], FeatureSpace] = field(default=feature_space, kw_only=True)

    def init(self, key: Array) -> Any:
        """The variables of the network, or a dict of those of each player."""
        raise NotImplementedError

    def loss(self, params: Any, batch: Any, key: Array, now: Now) -> tuple[Array, Metrics | Aux]:
        """What the network descends: values ``[B]``, and metrics whose means are plotted.

        Images of a batch are bin numbers; ``self.data.kind.values`` makes of them what models see.
        A network with model state answers ``Aux(metrics, state)``, by its :attr:`state_rules`.
        Where ``now.train`` is false the loss is measured, and the verb ``diagnose`` draws it over
        the metric ``t [B]``.
        """
        raise NotImplementedError

    def sample(self, key: Array, weights: Any, given: Any) -> Any:
        """One example for each condition of ``given``, arrays ``[B, ...]``: an array ``[B, ...]``,
        or a dict of such."""
        raise NotImplementedError

    def turns(self) -> tuple[Turn, ...]:
        """Who moves in a step, in order."""
        return (Turn(ONLY, self.loss, self.optimizer, rules=self.state_rules),)

    @property
    def state_rules(self) -> Rules:
        """How collections of model state are put together from devices and parts of a batch, where
        they are no statistics; see :mod:`jaxgen.training.model_state`."""
        return {}

    def stages(self) -> tuple[tuple[int, System], ...]:
        """The systems that are trained one after the other, each from its first step on."""
        return ((0, self),)

    @property
    def carries(self) -> bool:
        """Whether a network that :meth:`grow` answers goes on with what was averaged before."""
        return True

    def grow(self, key: Array, weights: Any) -> Any:
        """The variables that a later stage begins with, from the weights of the one before.

        It is asked twice: for the moving average and the memory from these, and for the parameters
        that move from those that moved.
        """
        raise NotImplementedError

    @property
    def labelled(self) -> bool:
        """Whether samples are drawn for the ``label`` of their conditions."""
        return False

    def how(self) -> str:
        """How samples are drawn, for the protocols of measures."""
        return ""

    def likened(self) -> DataSet:
        """What samples are measured against: the data, unless samples look otherwise."""
        return self.data

    def sampler(self, devices: Sequence[Any]) -> OverRows:
        """:meth:`sample` over the conditions of any number of examples."""
        return self.over_rows(lambda s, weights, key, given: s.sample(key, weights, given), devices)

    def over_rows(self, function: SystemFunction, devices: Sequence[Any] | None = None) -> OverRows:
        """``function(system, weights, key, rows [size, ...])`` over any number of rows, the frozen
        arrays of the system being arguments of the program."""

        def bound(weights: Any, key: Array, rows: Any, frozen: Any) -> Any:
            return function(with_frozen(self, frozen), weights, key, rows)

        return OverRows(bound, devices, frozen_in(self))

    def settled(self, weights: Any) -> Any:
        """The weights that are sampled with, made once of those of a checkpoint."""
        return weights

    def measured(self, weights: Weights, key: Array, batch: Any) -> tuple[Array, Metrics]:
        """The loss of each example and its metrics, ``[B]``, without training."""
        (turn, *_) = self.turns()
        now = Now(jnp.asarray(END), weights.memory, train=False)
        values, told = turn.loss(weights.params, batch, key, now)
        metrics = told.metrics if isinstance(told, Aux) else told
        count = len(jax.tree.leaves(batch)[0])
        each = lambda x: jnp.broadcast_to(x, (count,))  # noqa: E731
        return each(values), jax.tree.map(each, metrics)

    @cached_property
    def losses(self) -> OverRows:
        """:meth:`measured` over any number of examples, on one device."""
        one = jax.local_devices()[:1]
        return self.over_rows(lambda s, weights, key, rows: s.measured(weights, key, rows), one)

    def score(self, weights: Any, step: Any = END) -> float:
        """What checkpoints are selected by, of weights after so many steps, lower is better: the
        mean loss in validation."""
        batch = some(self.data.validation, SCORED)
        return float(self.losses(weights, jax.random.key(0), batch, CHUNK)[0].mean())


def preset_for(presets: Mapping[str, Any], data: str | None) -> Any:
    """The options for a data set; of files those for their kind (``text`` for ``text:PATH``); the
    first serve all that have none."""
    kind, files, _ = (data or "").partition(":")
    own = kind if files else data or ""
    return presets.get(own, next(iter(presets.values())))


@dataclass(frozen=True, eq=False)
class Experiment:
    """A system's name, its options by data set, how to build it, and what to make of a run.

    ``presets`` holds a config for each data set that has options of its own; the first serves all
    others. A config is a dataclass with at least ``data: Data`` and ``train: Train``.
    """

    name: str
    about: str | None  # the module's docstring, shown by --help
    presets: Mapping[str, Any]
    build: Callable[[Any, DataSet], System]
    pictures: tuple[Callable[[Any], Any], ...] = ()  # trained -> files in its directory
    measures: tuple[Callable[[Any], Any], ...] = ()  # trained -> numbers
    comparisons: tuple[Callable[[Any], Any], ...] = ()  # {member of a sweep: trained} -> files
    kinds: tuple[type, ...] = (Image,)  # of data that it takes
    load: Callable[[Any], DataSet] | None = None  # options -> data, where not by name
    # What --features names besides classifier and pca: data -> a feature space.
    features: Mapping[str, Callable[[DataSet], FeatureSpace]] = field(default_factory=dict)

    @property
    def default(self) -> Any:
        return next(iter(self.presets.values()))

    def preset(self, data: str) -> Any:
        """The options for a data set."""
        return preset_for(self.presets, data)
