"""A run that is built on another one: opened once, pinned, an argument of the program, and kept to.

The stages are of one number each: what a run is built on shows in what it draws.
"""

import json
import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import arrays, mismatches

from jaxgen.data.records import Arrays, DataSet, Points
from jaxgen.runner import (
    Data,
    Experiment,
    Frozen,
    Need,
    RunReference,
    Sampling,
    Study,
    System,
    Train,
    Trained,
    main,
    make_optimizer,
    open_run,
    samples,
)
from jaxgen.runner.frozen import frozen_in, with_frozen

LARGE = 500_000  # numbers of a frozen network: two MB


def ones(options):
    x = np.ones((40, 2), np.float32)
    source = Arrays({"x": x, "label": np.zeros(40, np.int32)})
    return DataSet("ones", Points((2,)), source, source, source)


@dataclass(frozen=True)
class BaseConfig:
    data: Data = Data("ones")
    train: Train = Train(steps=4, batch=8, learning_rate=0.1, checkpoint_every=2, log_every=2)
    sampling: Sampling = Sampling(samples=8, sample_batch=8)


@dataclass(frozen=True, eq=False)
class Base(System):
    def init(self, key):
        return {"params": {"a": jnp.zeros(()), "large": jnp.zeros(LARGE)}}

    def loss(self, params, batch, key, now):
        return (params["a"] - batch["x"][:, 0]) ** 2 + 0 * params["large"][0], {}

    def sample(self, key, weights, given):
        return jnp.full((*given["label"].shape, 2), weights.params["a"])


BASE = Experiment(
    "base", "The first stage.", {"ones": BaseConfig()},
    lambda config, data: Base(data, make_optimizer(config.train)),
    pictures=(samples,), kinds=(Points,), load=ones,
)  # fmt: skip


@dataclass(frozen=True)
class TopConfig(BaseConfig):
    base: RunReference = RunReference(BASE)  # The first stage.
    weight: float = 1.0  # Of the second.


@dataclass(frozen=True, eq=False)
class Top(System):
    base: Trained
    weight: float

    def init(self, key):
        return {"params": {"b": jnp.zeros(())}}

    def loss(self, params, batch, key, now):
        a = self.base.weights.params
        return self.weight * (params["b"] - a["a"] - a["large"].sum()) ** 2 + 0 * batch["x"][
            :, 0
        ], {}

    def sample(self, key, weights, given):
        return self.base.system.sample(key, self.base.weights, given) + weights.params["b"]


TOP = Experiment(
    "top", "The second stage.", {"ones": TopConfig()},
    lambda config, data: Top(
        data, make_optimizer(config.train), config.base.trained, config.weight
    ),
    pictures=(samples,), kinds=(Points,), load=ones,
)  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def command(experiment, words="", status=0):
        got, out = main(experiment, shlex.split(words)), capsys.readouterr()
        assert got == status, out.out + out.err
        assert len(out.err.splitlines()) == (status != 0), out.err
        return out.out + out.err

    return command


def tree(place):
    """Every file below a place, and what is in it."""
    files = (p for p in Path(place).rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p): p.read_bytes() for p in files}


def test_a_run_that_is_lacking_is_trained_first_and_found_again(run):
    assert "base is trained first, in runs/base-ones-001" in run(TOP, "train --dir top")
    assert "trained first" not in run(TOP, "train --dir other")
    kept = json.loads(Path("top/config.json").read_text())
    base = open_run("runs/base-ones-001", experiment=BASE)
    pin = {"run": "../runs/base-ones-001", "checkpoint": "4", "fingerprint": base.fingerprint}
    assert kept["base"] == pin
    top = open_run("top", experiment=TOP)
    assert top.system.base.step == 4
    a, b = base.weights.params["a"], top.weights.params["b"]
    np.testing.assert_allclose(top.draw(8), a + b, rtol=1e-6)


def test_a_run_is_named_by_its_directory_and_checkpoint(run):
    run(BASE, "train --dir first")
    run(TOP, "train --base first@2 --dir top")
    top = open_run("top", experiment=TOP)
    assert top.system.base.step == 2
    early = open_run("first", 2, experiment=BASE).weights.params["a"]
    assert early != open_run("first", experiment=BASE).weights.params["a"]
    assert top.system.base.weights.params["a"] == early
    run(TOP, "train --base first@best --dir best")
    assert open_run("best", experiment=TOP).system.base.step == 4
    for words, fix in (
        ("--base nowhere", "--base nowhere: no checkpoint in nowhere"),
        ("--base first@3", "no checkpoint of step 3"),
    ):
        assert fix in run(TOP, f"train {words} --dir wrong", status=2)
    assert not Path("wrong").exists()


def test_frozen_weights_are_an_argument_that_is_counted_and_neither_saved_nor_averaged(run):
    out = run(TOP, "train --devices 1 --dir top")
    _, line = [line for line in out.splitlines() if line.startswith("memory: a step needs")]
    assert 2 <= int(line.split()[4]) < 20  # MiB, of 500,000 numbers and the rest
    assert {x.size for x in arrays("top", 4).values()} == {1}
    assert sum(len(x) for x in tree("top/checkpoints/4").values()) < 100_000

    top = open_run("top", experiment=TOP)
    assert top.parameters == 1
    text = jax.jit(
        lambda system, frozen: with_frozen(top.system, frozen).loss(
            top.weights.params, {"x": jnp.ones((2, 2))}, jax.random.key(0), None
        )[0],
        static_argnums=0,
    ).lower(None, frozen_in(top.system))
    assert len(text.as_text()) < 20_000
    assert frozen_in(top.system).keys() == {"/base"}
    # and of the program that samples: it draws by the arrays that it is given
    sampler, given = top.system.sampler(top.devices), top.data.given(4)
    before = sampler(top.weights, top.key, given, 4)
    sampler.shared = jax.tree.map(lambda x: x + 1, sampler.shared)
    np.testing.assert_allclose(sampler(top.weights, top.key, given, 4), before + 1, rtol=1e-6)


def test_a_function_of_frozen_arrays_is_found_wherever_it_is():
    """In a part of a part, a tuple and a dict of them; arrays are replaced and the rest stays."""

    @dataclass(frozen=True)
    class Part:
        encoders: tuple
        other: int = 3

    @dataclass(frozen=True, eq=False)
    class Whole(System):
        part: Part

    frozen = Frozen(lambda w, x: w * x, 2.0)
    whole = Whole(ones(None), None, Part((None, {"b": frozen})))
    assert frozen_in(whole) == {"/part/encoders/1/b": 2}
    other = with_frozen(whole, {"/part/encoders/1/b": jnp.float32(5)})
    of = lambda whole: whole.part.encoders[1]["b"](3)
    assert (of(whole), of(other), other.part.other) == (6, 15, 3)


@pytest.mark.parametrize("how", ["", "--parallel pmap", "--model-devices 2", "--accumulate 2"])
def test_frozen_weights_are_the_same_wherever_a_step_runs(run, how):
    run(BASE, "train --dir first")
    run(TOP, "train --base first --devices 1 --dir one")
    run(TOP, f"train --base first --devices 4 {how} --dir many")
    for leaf, x in arrays("one", 4).items():
        np.testing.assert_allclose(arrays("many", 4)[leaf], x, rtol=1e-5, err_msg=leaf)


def test_frozen_arrays_that_a_swept_option_makes_are_those_of_each_member(run):
    def build(config, data):
        top = Top(data, make_optimizer(config.train), config.base.trained, 1.0)
        return Scaled(
            **{f: getattr(top, f) for f in ("data", "optimizer", "base", "weight")},
            scale=Frozen(lambda w: w.sum(), config.weight * jnp.ones(2)),
        )

    @dataclass(frozen=True, eq=False)
    class Scaled(Top):
        scale: Frozen

        def loss(self, params, batch, key, now):
            return (params["b"] - self.scale()) ** 2 + 0 * batch["x"][:, 0], {}

    own = replace(TOP, name="scaled", build=build)
    run(own, "train --sweep weight=1,100 --dir sweep")
    for weight in (1, 100):
        run(own, f"train --weight {weight} --dir alone{weight}")
        alone = arrays(f"alone{weight}", 4)
        for leaf, x in arrays(f"sweep/weight={weight}", 4).items():
            np.testing.assert_allclose(alone[leaf], x, rtol=1e-5, err_msg=leaf)


def test_a_system_that_checks_its_parts_is_not_made_anew_in_a_trace(run):
    @dataclass(frozen=True, eq=False)
    class Checked(Top):
        def __post_init__(self):
            assert float(self.base.weights.params["a"]) != 0

    build = lambda config, data: Checked(
        data, make_optimizer(config.train), config.base.trained, config.weight
    )
    run(replace(TOP, name="checked", build=build), "train --dir top")


def test_a_reference_that_may_be_left_out_and_one_within_another_type(run):
    @dataclass(frozen=True)
    class Loose(BaseConfig):
        base: RunReference = RunReference(required=False)

    def build(config, data):
        assert (config.base.opened is None) == (config.base.directory is None)
        return Base(data, make_optimizer(config.train))

    loose = replace(BASE, name="loose", presets={"ones": Loose()}, build=build)
    run(BASE, "train --dir first")
    run(loose, "train --dir alone")
    run(loose, "train --dir with --base first")
    assert open_run("with", experiment=loose).config.base.trained.directory == Path("first")
    assert open_run("alone", experiment=loose).config.base.opened is None

    @dataclass(frozen=True)
    class Several(BaseConfig):
        bases: tuple[RunReference, ...] = ()

    several = replace(BASE, presets={"ones": Several()})
    with pytest.raises(TypeError, match="the option bases is a RunReference, not"):
        main(several, ["train", "--bases", "alone"])


def test_a_reopened_reference_is_the_one_of_its_data(run):
    """Of presets that declare two experiments of one name, that of the run's data."""
    other = lambda options: replace(ones(options), name="twos")
    bases = {name: replace(BASE, load=load) for name, load in (("ones", ones), ("twos", other))}
    presets = {
        name: TopConfig(data=Data(name), base=RunReference(base)) for name, base in bases.items()
    }
    own = replace(TOP, presets=presets, load=lambda options: ones(options))
    run(own, "train --data twos --dir top")
    assert open_run("top", experiment=own).system.base.data.name == "twos"


def test_a_sweep_refers_to_one_run(run):
    run(TOP, "train --sweep weight=1,2 --dir sweep")
    assert "members" not in json.loads(Path("sweep/config.json").read_text())
    for member in ("weight=1", "weight=2"):
        opened = open_run(f"sweep/{member}", experiment=TOP)
        assert opened.config.weight == float(member[-1])
        assert opened.system.base.directory.resolve() == Path("runs/base-ones-001").resolve()
    assert "pictures" in run(TOP, "sample --dir sweep")


def test_a_build_that_opens_a_run_itself_can_be_swept(run):
    """As was written before there were references."""
    run(BASE, "train --dir first")
    build = lambda config, data: Top(
        data, make_optimizer(config.train), open_run("first", experiment=BASE), config.weight
    )
    own = replace(TOP, name="own", build=build)
    run(own, "train --base first --sweep weight=1,2 --dir sweep")
    alone = arrays("sweep/weight=2", 4)
    run(own, "train --base first --weight 2 --dir alone")
    for leaf, x in arrays("alone", 4).items():
        np.testing.assert_allclose(alone[leaf], x, rtol=1e-5, err_msg=leaf)


# --- what may become of a run that another one refers to -----------------------------------------


def moved():
    Path("first").rename("elsewhere")


def deleted():
    shutil.rmtree("first")


def replaced(run):
    shutil.rmtree("first")
    run(BASE, "train --seed 1 --learning-rate 0.2 --dir first")


def trained_further(run):
    """So far that the checkpoint is gone that the second run was trained on."""
    run(BASE, "train --steps 20 --keep 1 --dir first --resume")
    for step in Path("first/checkpoints").glob("[24]"):
        shutil.rmtree(step)


def damaged():
    for file in Path("first/checkpoints/4/state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")


CHANGES = {
    "damaged": (damaged, "step 4 of first, which this run was trained on, is damaged"),
    "moved": (moved, "step 4 of first, which this run was trained on, is not there"),
    "deleted": (deleted, "step 4 of first, which this run was trained on, is not there"),
    "replaced": (replaced, "first is not the run that this one was trained on"),
    "trained further": (trained_further, "step 4 of first, which this run was trained on, is not"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_referenced_run_that_changed_is_told_in_one_sentence(run, name):
    change, sentence = CHANGES[name]
    run(BASE, "train --dir first")
    run(TOP, "train --base first --dir top")
    change(run) if name in ("replaced", "trained further") else change()
    before = tree(".")
    for words in ("sample", "evaluate", "diagnose", "train --steps 8 --resume"):
        err = run(TOP, f"{words} --dir top", status=2)
        assert sentence in err.splitlines()[-1]
        assert "--base DIR" in err
    with pytest.raises(ValueError, match=sentence):
        open_run("top", experiment=TOP)
    assert tree(".") == before


def test_a_run_that_was_moved_is_named_anew(run):
    run(BASE, "train --dir first")
    run(TOP, "train --steps 8 --base first --dir whole")
    run(TOP, "train --base first --dir top")
    moved()
    run(TOP, "sample --base elsewhere --dir top")
    run(TOP, "train --steps 8 --base elsewhere --dir top --resume")
    assert mismatches(arrays("whole", 8), arrays("top", 8)) == 0
    assert json.loads(Path("top/config.json").read_text())["base"]["run"] == "../elsewhere"
    run(BASE, "train --seed 1 --learning-rate 0.2 --dir other")
    for words in ("sample", "train --steps 12 --resume"):
        err = run(TOP, f"{words} --base other --dir top", status=2)
        assert "other is not the run that this one was trained on" in err


def test_a_run_that_was_trained_further_is_taken_at_the_step_that_it_is_pinned_to(run):
    run(BASE, "train --dir first")
    run(TOP, "train --base first --dir top")
    before = open_run("top", experiment=TOP).draw(8)
    run(BASE, "train --steps 6 --dir first --resume")
    np.testing.assert_array_equal(open_run("top", experiment=TOP).draw(8), before)
    assert "resuming from step 4" in run(TOP, "train --steps 6 --dir top --resume")


def test_runs_that_refer_to_each_other_are_refused(run):
    run(TOP, "train --dir top")
    path = Path("top/config.json")
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base": {**config["base"], "run": "../top"}}))
    with pytest.raises(ValueError, match="top refers to itself"):
        open_run("top", experiment=TOP)


def test_runs_moved_together_stay_together_and_open_from_anywhere(run, monkeypatch):
    run(TOP, "train --dir runs/top")
    before = open_run("runs/top", experiment=TOP).draw(8)
    Path("runs").rename("archive")
    Path("deep").mkdir()
    monkeypatch.chdir("deep")
    np.testing.assert_array_equal(open_run("../archive/top", experiment=TOP).draw(8), before)


# --- studies ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StudyConfig:
    data: Data = Data("ones")


def study(needs):
    return Study("both", "", {"ones": StudyConfig()}, lambda config: needs, kinds=(Points,))


def test_a_study_orders_runs_that_refer_to_each_other(run):
    needs = {
        "top": Need(TOP, "--base {low}"),  # before what it refers to
        "low": Need(BASE, "--learning-rate 0.3"),
        "alone": Need(TOP),
    }
    out = run(study(needs), "train")
    order = [line.split()[0] for line in out.splitlines() if "is trained first" in line]
    assert order == ["base", "base", "top", "top"]  # what alone refers to is another run
    rates = [
        open_run(f"runs/top-ones-00{i}", experiment=TOP).system.base.config.train.learning_rate
        for i in (1, 2)
    ]
    assert rates == [0.1, 0.3]
    assert "trained first" not in run(study(needs), "train")
    with pytest.raises(ValueError, match="refer to each other"):
        main(study({"a": Need(TOP, "--base {b}"), "b": Need(TOP, "--base {a}")}), ["train"])


def test_a_need_says_where_its_run_goes(run):
    needs = {"low": Need(BASE, "--dir stages/one"), "top": Need(TOP, "--dir top --base {low}")}
    assert "in stages/one (low, 1 of 2)" in run(study(needs), "train")
    assert Path("stages/one/checkpoints/4").is_dir()
    assert not Path("runs").exists()
    assert "trained first" not in run(study(needs), "train")
    other = {"low": Need(BASE, "--dir stages/one --learning-rate 0.3")}
    assert "stages/one holds a run with other options" in run(study(other), "train", status=2)


def test_a_run_on_other_data_is_not_taken_for_one_that_is_needed(run):
    """Of one name and the same options, but loaded otherwise: it is trained."""
    other = lambda options: replace(
        ones(options), train=Arrays({"x": np.full((9, 2), 9.0), "label": np.zeros(9, np.int32)})
    )
    needs = {"one": Need(BASE), "two": Need(replace(BASE, load=other))}
    found = {}

    def measure(runs, config):
        found.update({name: float(r.weights.params["a"]) for name, r in runs.items()})
        return []

    run(replace(study(needs), measures=(measure,)), "evaluate --out out")
    assert sorted(p.name for p in Path("runs").iterdir()) == ["base-ones-001", "base-ones-002"]
    alone = replace(study({"one": needs["one"]}), measures=(measure,))
    before = dict(found)
    assert before["one"] != before["two"]
    run(alone, "evaluate --out out")
    assert found == before


def test_directories_of_a_study_are_those_of_its_needs_in_the_order_they_are_named(run):
    """Whatever the order in which they would be trained."""
    run(BASE, "train --dir low")
    run(BASE, "train --dir high --learning-rate 0.3")
    needs = {"second": Need(BASE, "--checkpoint-every 2"), "first": Need(BASE)}
    needs["second"] = Need(BASE, "--dir {first}")  # is ordered after the other
    seen = {}

    def measure(runs, config):
        seen.update({name: r.directory.name for name, r in runs.items()})
        return []

    run(replace(study(needs), measures=(measure,)), "evaluate --dir low high --out out")
    assert seen == {"second": "low", "first": "high"}


def test_a_study_gives_every_experiment_its_own_data(run):
    """Two that load the same options otherwise: each is measured on its own."""
    twice = lambda options: replace(
        ones(options), test=Arrays({"x": np.full((9, 2), 2.0), "label": np.zeros(9, np.int32)})
    )
    needs = {"one": Need(BASE), "two": Need(replace(BASE, name="two", load=twice))}
    seen = {}

    def measure(runs, config):
        seen.update({name: float(r.test()["x"].mean()) for name, r in runs.items()})
        return []

    run(replace(study(needs), measures=(measure,)), "evaluate")
    assert seen == {"one": 1.0, "two": 2.0}


def test_options_that_name_a_run_are_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(TOP, ["--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "--base DIR[@STEP]" in out
    assert "base, trained first" in out
