"""Samples: trees of arrays that travel with their conditions, of any modality, measured by what the
user chooses, in reports that merge."""

import ast
import json
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import report, results

from jaxgen.data.records import Arrays, DataSet, Image, Points
from jaxgen.data.sources import load
from jaxgen.evaluation.features import FeatureSpace
from jaxgen.evaluation.report import write_report
from jaxgen.runner import (
    Data,
    Experiment,
    Mistake,
    Number,
    Plot,
    Reference,
    Samples,
    Sampling,
    System,
    Train,
    compared,
    draw_samples,
    main,
    make_optimizer,
    measure_samples,
    open_run,
    quality,
    samples,
)


@dataclass(frozen=True)
class Config:
    data: Data = Data("digits")
    train: Train = Train(steps=2, batch=8, checkpoint_every=2)
    sampling: Sampling = Sampling(samples=20, sample_batch=10)


@dataclass(frozen=True, eq=False)
class Drawing(System):
    """Draws by a function of the key and the conditions, and learns nothing."""

    draw: object = None
    labelled: bool = False

    def init(self, key):
        return {"params": {"a": jnp.zeros(())}}

    def loss(self, params, batch, key, now):
        return params["a"] ** 2 + jnp.zeros(len(jax.tree.leaves(batch)[0])), {}

    def sample(self, key, weights, given):
        return self.draw(key, given)


def experiment(draw, data="digits", kinds=(Image,), load=None, **how):
    build = lambda config, data: Drawing(
        data, make_optimizer(config.train), draw=draw, labelled=data.classes > 1
    )
    own = {"pictures": (samples,), "measures": (quality,), **how}
    return Experiment(
        "drawing", None, {data: Config(data=Data(data))}, build, kinds=kinds, load=load, **own
    )


@pytest.fixture
def opened(tmp_path, monkeypatch, capsys):
    """Trains, and opens the run."""
    monkeypatch.chdir(tmp_path)

    def make(own, words="train --dir run"):
        assert main(own, shlex.split(words)) == 0, capsys.readouterr().err
        return open_run("run", experiment=own)

    return make


def test_samples_are_as_many_as_are_asked_for_and_come_with_what_they_were_asked_for(opened):
    noise = lambda key, given: jax.random.normal(key, (*given["label"].shape, 8, 8, 1))
    trained = opened(experiment(noise))
    own = trained.samples(13)
    np.testing.assert_array_equal(own.given["label"], trained.data.given(13)["label"])
    given = {"label": np.arange(20) % 3, "scale": np.linspace(0, 1, 20)}
    found = trained.samples(5, given)
    assert found.x.shape == (5, 8, 8, 1)
    np.testing.assert_array_equal(found.labels, [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(found.given["scale"], given["scale"][:5])
    assert len(trained.draw(given=given)) == 20
    with pytest.raises(Mistake, match="21 samples need as many conditions, and 20 are given"):
        trained.draw(21, given)
    # the same noise, unless another is asked for
    np.testing.assert_array_equal(trained.draw(given=given), trained.draw(given=given))
    assert not np.allclose(trained.draw(given=given), trained.draw(given=given, seed=1))
    assert not np.allclose(trained.draw(13), trained.draw(13, seed=1))
    np.testing.assert_array_equal(trained.draw(13, seed=1)[:4], trained.draw(4, seed=1))


@pytest.mark.parametrize(
    "given", [{}, {"label": 3}, {"label": np.zeros(4), "scale": np.zeros(5)}], ids=str
)
def test_conditions_of_no_one_length_are_refused(opened, given):
    noise = lambda key, given: jax.random.normal(key, (*given["label"].shape, 8, 8, 1))
    trained = opened(experiment(noise))
    with pytest.raises(Mistake, match="one row for each sample, and these are"):
        trained.draw(given=given)
    with pytest.raises(Mistake, match="ask for one sample or more, not 0"):
        trained.draw(0)


@pytest.mark.parametrize("wrong", ["one more", "few", "scalar"])
def test_a_sample_of_another_number_is_refused(opened, wrong):
    shapes = {"one more": (1, 8, 8, 1), "few": (3, 8, 8, 1), "scalar": ()}

    def draw(key, given):
        count = given["label"].shape[0]
        return jnp.zeros((count + 1, 8, 8, 1) if wrong == "one more" else shapes[wrong])

    trained = opened(experiment(draw))
    with pytest.raises(Mistake, match="sample of Drawing: of 10 rows 10 results are wanted"):
        trained.draw()


def digit_of(key, given):
    """The first training image of the class that is asked for."""
    data = load("digits")
    first = np.array([np.flatnonzero(data.train["label"] == c)[0] for c in range(10)])
    return data.kind.values(data.train["x"][first])[given["label"]]


def test_samples_are_scored_by_the_classes_that_they_were_drawn_for(opened):
    """Not by those of the data set's own conditions, in whatever order and number they come."""
    trained = opened(experiment(digit_of))
    mixed = {"label": np.random.default_rng(0).permutation(np.repeat(np.arange(10), 3))}
    rows = {"mixed": trained.samples(given=mixed), "own": trained.samples(25)}
    numbers = {n.name: n for n in compared(trained, rows, "how")}
    assert numbers["class_agreement, mixed"].value > 0.95
    assert numbers["class_agreement, own"].value > 0.95
    wrong = Samples(rows["mixed"].x, {"label": (mixed["label"] + 1) % 10})
    (agreement,) = [
        n for n in compared(trained, {"wrong": wrong}, "") if n.name.startswith("class_agreement")
    ]
    assert agreement.value < 0.05


# --- modalities ----------------------------------------------------------------------------------


def sets_of(shape, masked):
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(60, *shape)).astype(np.float32)}
    if masked:
        arrays["mask"] = np.arange(shape[0])[None] < 2 + np.arange(60)[:, None] % (shape[0] - 1)
        arrays["x"] = arrays["x"] * arrays["mask"][..., None]
    source = Arrays(arrays)
    ask = lambda n: {k: np.resize(v, (n, *v.shape[1:])) for k, v in arrays.items()}
    return lambda options: DataSet("sets", Points(shape), source, source, source, ask=ask)


def as_they_are(key, given):
    return given["x"]


def as_a_dict(key, given):
    found = {"x": given["x"], "charge": given["x"][..., 0] > 0}
    return found | ({"mask": given["mask"]} if "mask" in given else {})


@pytest.mark.parametrize("draw", [as_they_are, as_a_dict])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (5, 2), (5, 3)], ids=str)
def test_points_and_sets_of_any_dimension_are_drawn_saved_and_measured(opened, shape, masked, draw):
    """A condition may have the name of what is drawn, and a sample may be a dict of arrays."""
    if masked and len(shape) == 1:
        pytest.skip("points have no mask")
    own = experiment(draw, "sets", (Points,), sets_of(shape, masked))
    trained = opened(own, "--dir run")
    made = results("run")
    kept = np.load(made / "samples.npz")
    x = trained.data.given(20)["x"]
    np.testing.assert_array_equal(kept["x"], x)
    np.testing.assert_array_equal(kept["condition/x"], x)
    assert ("charge" in kept) == (draw is as_a_dict)
    assert ("mask" in kept) == masked
    assert (made / "samples.png").stat().st_size > 1000
    numbers = report("run")
    assert "sliced_wasserstein" in numbers
    if len(shape) == 2:
        assert "pairwise_distance_wasserstein" in numbers
    assert trained.samples(4).first(2).x is not None


def test_a_sample_without_x_is_saved_and_said(opened, capsys):
    """And arrays within arrays are saved by their paths, without a pickle."""
    draw = lambda key, given: {"positions": given["x"], "more": {"a": given["x"][:, 0]}}
    opened(experiment(draw, "sets", (Points,), sets_of((5, 3), False)), "--dir run")
    out = capsys.readouterr().out
    assert "samples are not drawn: none of more, positions is called x" in out
    assert "samples are not measured: none of more, positions is called x" in out
    kept = np.load(results("run") / "samples.npz")
    assert kept.keys() >= {"positions", "more/a", "x"}
    assert kept["more/a"].shape == (20, 3)


@pytest.mark.parametrize("shape", [(2,), (3, 2)], ids=str)
def test_samples_that_are_not_finite_are_said(tmp_path, monkeypatch, capsys, shape):
    """And a report over seeds has the numbers of those that are."""
    load = sets_of(shape, False)
    broken = lambda key, given: jnp.where(
        jax.random.uniform(key) < 0.5, jnp.nan, given["x"]
    )  # of some seeds
    own = experiment(broken, "sets", (Points,), load)
    monkeypatch.chdir(tmp_path)
    assert main(own, ["--dir", "run", "--sweep", "seed=0,1,2,3,4,5"]) == 0
    assert "samples are not measured: points of samples are not finite" in capsys.readouterr().out
    found = report("run")["sliced_wasserstein"]
    assert np.isfinite(found["value"])
    assert 1 <= int(re.match(r"(?:mean of (\d) seeds)?", found["protocol"])[1] or 1) < 6


class Word:
    """A modality of a user's own."""

    shape, noun = (3,), "words"

    def values(self, x):
        return jnp.asarray(x)

    def nearest(self, x):
        return x


def test_a_modality_of_ones_own_is_drawn_and_measured_as_the_others(opened, capsys):
    source = Arrays({"x": np.zeros((20, 3), np.int32), "label": np.zeros(20, np.int32)})
    words = lambda options: DataSet("words", Word(), source, source, source)
    letters = lambda key, given: jnp.ones((*given["label"].shape, 3), jnp.int32)
    own = experiment(letters, "words", (Word,), words)
    opened(own, "--dir run")
    assert "no metrics of samples are known for words" in capsys.readouterr().out

    def draw(kind, trained, samples):
        path = trained.results / "words.txt"
        path.write_text(str(samples.x[0]))
        return [path]

    draw_samples.register(Word, draw)
    measure_samples.register(Word, lambda kind, t, s: [Number("ones", float(s.x.mean()), "")])
    assert main(own, ["evaluate", "--dir", "run"]) == 0
    assert main(own, ["sample", "--dir", "run"]) == 0
    assert report("run")["ones"]["value"] == 1
    assert (results("run") / "words.txt").read_text() == "[1 1 1]"


def test_no_other_code_of_the_runner_knows_the_modalities():
    """What is done for each is in one file: no other names any but images, whose size some presets
    go by."""
    for path in (Path(__file__).parents[2] / "jaxgen" / "runner").glob("*.py"):
        names = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
        known = names & {"Image", "Points", "Tokens"}
        assert known <= {"Image"} or path.name == "modalities.py", path


# --- features ------------------------------------------------------------------------------------


def brightness(data):
    """A feature space of one's own: the means of rows."""
    return FeatureSpace("brightness", lambda x: x.mean(axis=(2, 3)))


def test_the_extractor_is_an_option_that_every_protocol_names(opened):
    own = experiment(digit_of, features={"brightness": brightness})
    opened(own, "train --dir run")
    distances, protocols = {}, {}
    for name in ("default", "classifier", "pca", "brightness"):
        assert main(own, ["evaluate", "--dir", "run", "--features", name, "--out", name]) == 0
        (folder,) = Path(name).iterdir()
        numbers = {n["name"]: n for n in json.loads((folder / "report.json").read_text())}
        distances[name] = numbers["frechet_distance"]["value"]
        protocols[name] = numbers["frechet_distance"]["protocol"]
    assert distances["default"] == distances["classifier"]
    assert len({round(d, 9) for d in distances.values()}) == 3
    for name, called in {"pca": "pixel PCA", "brightness": "brightness"}.items():
        tail = protocols[name].rpartition(f"{called} (")[2]
        assert len(tail.partition(")")[0]) == 8  # of its hash
    assert main(own, ["evaluate", "--dir", "run", "--features", "clasifier"]) == 2


def test_a_system_may_bring_its_extractor():
    """It selects checkpoints and measures, wherever its run is opened."""
    from experiments import gan
    from jaxgen.runner.building import begin, build
    from jaxgen.runner.system import weights_of

    config = gan.PRESETS["digits"]
    asked = []

    def watched(data):
        asked.append(data.name)
        return brightness(data)

    own = replace(gan.EXPERIMENT, features={"watched": watched})
    config = replace(config, channels=8, sampling=replace(config.sampling, features="watched"))
    system = build(own, config, load("digits"))
    weights = weights_of(begin(system, jax.random.key(0)))
    assert np.isfinite(system.score(weights, 1))
    assert asked == ["digits"]


# --- numbers and plots ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "reached"), [("equal", (0, 1, 0)), ("lower", (1, 1, 0)), ("higher", (0, 1, 1))]
)
def test_a_number_knows_what_it_is_compared_with(direction, reached):
    reference = Reference(3.0, "a table", direction, tolerance=0.1)
    assert [reference.reached(v) for v in (2.5, 3.05, 3.5)] == [bool(r) for r in reached]
    assert "3 ± 0.1 (a table)" in str(reference)


def test_reports_and_captions_merge(opened, capsys):
    """Measures of another experiment are added; those of the same name take the older ones' place,
    and one that is no number any more is gone."""
    reference = Reference(0.5, "a paper, table 1", "lower")
    value = {"a": 1.0, "b": 2.0}
    of = lambda *names: (
        lambda trained: [Number(n, value[n], "once", reference=reference) for n in names]
    )
    picture = lambda name: lambda trained: drawn(trained.results / f"{name}.txt")

    def drawn(path):
        path.write_text("")
        return Plot(path, "A title", f"What {path.stem} shows.")

    first = experiment(digit_of, measures=(of("a", "b"),), pictures=(picture("one"),))
    opened(first, "--dir run")
    assert "≤ 0.5 (a paper, table 1)" in capsys.readouterr().out
    value["b"] = float("nan")
    second = replace(first, measures=(of("b"),), pictures=(picture("two"), samples))
    for verb in ("evaluate", "sample"):
        assert main(second, [verb, "--dir", "run"]) == 0
    assert {n: row["value"] for n, row in report("run").items()} == {"a": 1.0}
    kept = report("run")["a"]["reference"]
    assert kept == {
        "value": 0.5,
        "source": "a paper, table 1",
        "direction": "lower",
        "tolerance": 0,
    }
    captions = json.loads((results("run") / "captions.json").read_text())
    assert captions["one.txt"] == {"title": "A title", "caption": "What one shows."}
    assert captions.keys() == {"one.txt", "two.txt", "samples.png", "samples.npz"}
    want = {"title": "Samples", "caption": "Of 20 samples of a model of digits (EMA of step 2)."}
    assert captions["samples.png"] == want


def test_reports_of_other_weights_do_not_merge(tmp_path):
    path, number = tmp_path / "report.json", lambda name: [Number(name, 1.0, "")]
    names = lambda: [row["name"] for row in json.loads(path.read_text())]
    write_report(path, number("a"), "one run")
    write_report(path, number("b"), "one run")
    assert sorted(names()) == ["a", "b"]
    write_report(path, number("c"), "another")
    assert names() == ["c"]
