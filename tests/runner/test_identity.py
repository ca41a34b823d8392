"""A run knows whose it is and what it was trained on, and opening it executes nothing it names."""

import importlib
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxgen.data.cache import cache_dir
from jaxgen.data.images import Lazy, digits
from jaxgen.data.records import Arrays, DataError, DataSet, Part, Points
from jaxgen.data.sources import load
from jaxgen.runner import Mistake, main, open_run
from jaxgen.runner.identity import Identity, find_experiment, identity_of
from jaxgen.training.checkpoints import NoCheckpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def command(experiment, words="", status=0):
        got, out = main(experiment, shlex.split(words)), capsys.readouterr()
        assert got == status, out.out + out.err
        return out.out + out.err

    return command


@pytest.fixture
def variants():
    return importlib.import_module("strangers.variants")


# --- whose a run is ------------------------------------------------------------------------------


def test_an_experiment_is_known_by_the_module_and_attribute_that_hold_it(variants):
    from experiments import ddpm

    assert identity_of(variants.SAME) == Identity("strangers.variants", "SAME")
    assert identity_of(variants.POOL) == Identity("strangers.pool", "EXPERIMENT")
    assert identity_of(ddpm.EXPERIMENT) == Identity("experiments.ddpm", "EXPERIMENT")
    assert identity_of(replace(variants.POOL, name="no")) == Identity("strangers.pool", None)
    for held in (variants.SAME, variants.OTHER, ddpm.EXPERIMENT):
        assert find_experiment(held.name, identity_of(held)) is held


def test_a_run_is_opened_as_the_experiment_that_trained_it(run, variants):
    """Not as another one whose module built its system, or that has the same name."""
    run(variants.SAME, "train --dir same")
    run(variants.OTHER, "train --dir other")
    for place in ("same", "other"):
        found = open_run(place).data.test.fetch(np.arange(5))["x"]
        want = variants.mirrored(variants.POOL.default.data).test.fetch(np.arange(5))["x"]
        np.testing.assert_array_equal(found, want)
    err = run(variants.POOL, "sample --dir other", status=2)
    assert "holds a run of other, not of pool: use OTHER of strangers.variants" in err
    assert "--dir" in err


def test_what_no_module_holds_is_said_before_training_and_opened_where_it_is_given(run, variants):
    own = replace(variants.POOL, name="own")
    out = run(own, "train --dir run")
    assert "no module holds this experiment" in out.partition("memory: ")[0]
    with pytest.raises(Mistake, match="neither one of jaxgen's nor imported here: import it first"):
        open_run("run")
    assert open_run("run", experiment=own).step == 20


def test_a_run_of_before_is_opened(run, variants):
    """Its config has the path of a script, or a module, and no attribute."""
    run(variants.POOL, "train --dir run")
    path = Path("run/config.json")
    config = json.loads(path.read_text())
    del config["attribute"]
    for module in ("strangers.pool", "/old/place/strangers.pool.py"):
        path.write_text(json.dumps({**config, "module": module}))
        if module == "strangers.pool":
            assert open_run("run").step == 20
        else:
            assert open_run("run", experiment=variants.POOL).step == 20


SCRIPT = """
import sys
from dataclasses import dataclass
import jax.numpy as jnp
from jaxgen.data.records import Points
from jaxgen.runner import Data, Experiment, System, Train, main, make_optimizer, open_run

@dataclass(frozen=True)
class Config:
    data: Data = Data("moons")
    train: Train = Train(steps=2, batch=8)

@dataclass(frozen=True, eq=False)
class Mine(System):
    def init(self, key):
        return {"params": {"a": jnp.zeros(2)}}

    def loss(self, params, batch, key, now):
        return ((batch["x"] - params["a"][None]) ** 2).sum(1), {}

    def sample(self, key, weights, given):
        return jnp.zeros((*given["label"].shape, 2)) + weights.params["a"][None]

def build(config, data):
    return Mine(data, make_optimizer(config.train))

WHOLE = Experiment("mine", __doc__, {"moons": Config()}, build, kinds=(Points,))
if __name__ == "__main__":
    status = main(WHOLE)
    opened = [open_run(p) for p in ("run", "run")]
    assert {type(o.system) for o in opened} == {Mine}, opened
    print("opened by itself")
    sys.exit(status)
"""


def test_a_script_is_imported_once_under_its_own_name(tmp_path):
    """By itself, by who imports it, and after it and the run were moved apart."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}

    def python(*words, cwd, status=0):
        done = subprocess.run(
            [sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True
        )
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    first = tmp_path / "first"
    first.mkdir()
    (first / "mine.py").write_text(SCRIPT)
    assert "opened by itself" in python("mine.py", "train", "--dir", "run", cwd=first)
    config = json.loads((first / "run/config.json").read_text())
    assert (config["module"], config["attribute"]) == ("mine", "WHOLE")
    code, kept = tmp_path / "code", tmp_path / "kept"
    code.mkdir(), kept.mkdir()
    (first / "mine.py").rename(code / "mine.py")
    (first / "run").rename(kept / "run")
    look = f"""
import sys; sys.path.insert(0, {str(code)!r})
import mine
from jaxgen.runner import open_run
a, b = open_run("run"), open_run("run")
assert type(a.system) is type(b.system) is mine.Mine
print(a.draw(3).shape)
"""
    assert "(3, 2)" in python("-c", look, cwd=kept)
    alone = "from jaxgen.runner import open_run; open_run('run')"
    assert "import it first, or give it as experiment=" in python("-c", alone, cwd=kept, status=1)


# --- what is executed ----------------------------------------------------------------------------


class Payload:
    """What a pickle would execute."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    """A run to be copied."""
    place = tmp_path_factory.mktemp("pool") / "run"
    assert (
        main(importlib.import_module("strangers.pool").EXPERIMENT, ["train", f"--dir={place}"]) == 0
    )
    return place


@pytest.fixture
def trapped(tmp_path, run, a_run):
    """A run, and code wherever something might look for it: all of it leaves a mark."""
    shutil.copytree(a_run, "run")
    marker = tmp_path / "executed"
    code = f"open({str(marker)!r}, 'w'); EXPERIMENT = None\n"
    for place in ("payload.py", "run/payload.py", "run/__init__.py", "run/conftest.py"):
        Path(place).write_text(code)
    yield marker
    assert not marker.exists()


HOSTILE = [
    {"module": "payload.py"}, {"module": "payload"}, {"module": "run.payload"},
    {"module": "experiments.payload"}, {"module": "experiments/../payload"},
    {"module": "jaxgen.experiments.payload"}, {"module": "os", "attribute": "system"},
    {"module": "experiments.ddpm", "attribute": "runner"}, {"module": "experiments.ddpm"},
    {"module": "strangers.pool", "attribute": "__builtins__"}, {"module": ["payload"]},
    {"module": "builtins", "attribute": "exec"}, {"attribute": ["EXPERIMENT"]},
    {"experiment": {"pool": 1}}, {"attribute": "EXPERIMENT.build"},
]  # fmt: skip


@pytest.mark.parametrize("change", HOSTILE, ids=str)
def test_nothing_is_executed_that_a_config_names(trapped, change, monkeypatch):
    monkeypatch.syspath_prepend(".")
    path = Path("run/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(
        Mistake, match=r"run: the experiment '.*' .* is neither one of jaxgen's nor"
    ):
        open_run("run")


BROKEN = [
    "", "{", "null", "[]", "3", '"run"', "[" * 100_000, '{"experiment": "pool"}', "\x00",
    '{"experiment": "pool", "module": "strangers.pool", "train": 3}',
    '{"experiment": "pool", "module": "strangers.pool", "train": {"steps": {}}}',
    '{"experiment": "pool", "module": "strangers.pool", "other": 3}',
    '{"experiment": "pool", "module": "strangers.pool", "train": {"sweep": [3]}}',
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:60] or "empty")
def test_a_config_that_is_none_is_refused_in_a_sentence(trapped, text):
    Path("run/config.json").write_text(text)
    with pytest.raises((Mistake, NoCheckpoint)) as told:
        open_run("run")
    assert "\n" not in str(told.value)


def test_no_pickle_is_read(trapped, run, variants):
    """In a run's folder, in its checkpoints and in the caches."""
    bomb = pickle.dumps(Payload(trapped))
    objects = np.array([Payload(trapped)], dtype=object)
    for place in ("run", "run/checkpoints", "run/checkpoints/20", "run/checkpoints/20/state"):
        for name in ("config.pkl", "state.pickle", "data.npy", "_CHECKPOINT_METADATA.pkl"):
            Path(place, name).write_bytes(bomb)
    assert open_run("run").step == 20
    caches = cache_dir() / "data"
    caches.mkdir(parents=True, exist_ok=True)
    kept = caches / "digits.npz"
    before = kept.read_bytes() if kept.exists() else None
    with kept.open("wb") as file:
        np.savez(file, images=objects, x=objects, label=objects)
    assert digits().digest == load("digits").digest
    if before is not None:
        kept.write_bytes(before)
    for file in Path("run/checkpoints/20").rglob("*"):
        if file.is_file():
            file.write_bytes(bomb)
    assert open_run("run").step == 10  # the one before


FEATURES = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
PREPARED = {  # what a set's files may name, in all forms that tensorflow-datasets reads
    "a class": {"pythonClassName": "payload.Feature"},
    "an entry": {
        "pythonClassName": FEATURES,
        "featuresDict": {"features": {"x": {"pythonClassName": "payload.Feature"}}},
    },
    "text": {
        "type": FEATURES,
        "proto_cls": "tensorflow_datasets.FeaturesDict",
        "content": json.dumps({"features": {"x": {"pythonClassName": "payload.Feature"}}}),
    },
}


@pytest.mark.parametrize("name", ["own", "own:1.0.0", "own/1.0.0", "Own", "OwnSet"])
@pytest.mark.parametrize("features", PREPARED.values(), ids=PREPARED)
def test_no_module_is_imported_that_a_prepared_set_names(trapped, features, name, monkeypatch):
    """tensorflow-datasets imports what a set's features.json names: a run may name such a set."""
    monkeypatch.syspath_prepend(".")
    folder = {"OwnSet": "own_set"}.get(name, "own")
    place = Path("run/sets", folder, "1.0.0")
    place.mkdir(parents=True)
    Path("run/sets", name.partition(":")[0].partition("/")[0]).mkdir(exist_ok=True)
    (place / "features.json").write_text(json.dumps(features))
    (place / "dataset_info.json").write_text(json.dumps({"name": folder, "version": "1.0.0"}))
    path = Path("run/config.json")
    config = json.loads(path.read_text())
    config["data"] |= {"data": name, "data_dir": "run/sets"}
    path.write_text(json.dumps(config))
    with pytest.raises(DataError):
        open_run("run")
    assert "payload" not in sys.modules
    if name == "own" and features is PREPARED["a class"]:
        with pytest.raises(DataError, match=r"names the feature class payload\.Feature"):
            open_run("run")


def test_a_namespace_of_tensorflow_datasets_is_no_data_set(trapped):
    for name in ("huggingface:payload", "kaggle:payload/own", "digits:payload"):
        with pytest.raises(DataError):
            load(name)


def test_a_folder_called_experiments_is_not_taken_for_jaxgens(trapped, monkeypatch):
    """That of a run, in the working directory, before jaxgen's on the path."""
    Path("experiments").mkdir()
    for name in ("__init__", "evil"):
        shutil.copy("payload.py", f"experiments/{name}.py")
    path = Path("run/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "module": "experiments.evil"}))
    env = {**os.environ, "PYTHONPATH": f".:{ROOT}", "JAX_PLATFORMS": "cpu"}

    def told(code):
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        return done.stderr

    opened = "from jaxgen.runner import open_run; open_run('run')"
    assert "nothing is executed that a run's folder names" in told(opened)
    # where jaxgen is not installed
    alone = (
        "from jaxgen import starting as s; s.PACKAGES = ('experiments',); s.experiments_folder()"
    )
    assert "the experiments are not installed" in told(alone)


def test_a_reference_executes_nothing_either(trapped, run):
    """Of a run that names one whose config is hostile."""
    upscaling = importlib.import_module("strangers.upscaling").EXPERIMENT
    run(upscaling, "train --dir top")
    base = Path("runs/small_digits-digits-001/config.json")
    hostile = {**json.loads(base.read_text()), "module": "payload", "experiment": "payload"}
    base.write_text(json.dumps(hostile))
    with pytest.raises(Mistake, match=r"'payload' .* is neither one of jaxgen's nor imported"):
        open_run("top")


# --- what a run was trained on -------------------------------------------------------------------


def sources(tmp_path):
    """A data set of every kind of source, and a change of its contents that nothing else tells."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2)).astype(np.float32)
    arrays = lambda x: Arrays({"x": x, "label": np.zeros(len(x), np.int32)})
    of = lambda source: DataSet("own", Points((2,)), source, source, source)
    read = lambda x: Lazy(len(x), lambda index: {"x": x[index]})
    other = x.copy()
    other[17, 1] += 1e-3

    class Own:
        def __init__(self, x):
            self.x = x

        def __len__(self):
            return len(self.x)

        def fetch(self, index):
            return {"x": self.x[index]}

    plus = lambda arrays, index: {name: a[index] + 1 for name, a in arrays.items()}
    gathered = lambda gather: of(Arrays({"x": x}, gather) if gather else Arrays({"x": x}))
    half = np.arange(20)
    yield "gathered otherwise", lambda: gathered(None), lambda: gathered(plus)
    yield "arrays", lambda: of(arrays(x)), lambda: of(arrays(other))
    yield "fewer", lambda: of(arrays(x)), lambda: of(arrays(x[:-1]))
    yield "inverted", lambda: of(arrays(x)), lambda: of(arrays(-x))
    yield "of another type", lambda: of(arrays(x)), lambda: of(arrays(x.astype(np.float64)))
    yield "a part", lambda: of(Part(read(x), half)), lambda: of(Part(read(x), half[::-1]))
    yield "part of others", lambda: of(Part(read(x), half)), lambda: of(Part(read(other), half))
    yield "lazy", lambda: of(read(x)), lambda: of(read(other))
    yield "of ones own", lambda: of(Own(x)), lambda: of(Own(other))
    yield "digits", digits, lambda: replace(digits(), train=arrays(x))
    yield "test set", lambda: of(arrays(x)), lambda: replace(of(arrays(x)), test=arrays(other))
    text = tmp_path / "words.txt"

    def text_of(words):
        text.write_text(words * 200)
        return load(f"text:{text}", length=8)

    yield "text", lambda: text_of("abcdefgh"), lambda: text_of("abcdefgi")


def test_every_kind_of_source_is_known_by_its_contents(tmp_path):
    for name, one, other in sources(tmp_path):
        a, again, b = one().digest, one().digest, other().digest
        assert a == again, name
        assert a != b, name
        assert len(a) == 64, name


def test_a_set_of_the_datasets_library_is_known_by_its_contents(tmp_path):
    datasets = pytest.importorskip("datasets")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (4, 4), np.uint8) for _ in range(50)]

    def written(images):
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        (tmp_path / "set").mkdir()
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(2)})
        rows = {"image": images, "label": [i % 2 for i in range(len(images))]}
        rows = datasets.Dataset.from_dict(rows, features=features)
        rows.to_parquet(tmp_path / "set" / "train.parquet")
        return load(f"hf:{tmp_path / 'set'}")

    first, again = written(images), written(images)
    cut, inverted = written(images[:40]), written([255 - image for image in images])
    assert first.digest == again.digest
    assert len({first.digest, cut.digest, inverted.digest}) == 3
    assert (len(first.train), len(cut.train)) == (41, 33)


def test_a_run_is_not_resumed_on_other_data(run, variants, capsys):
    """Of the same name, options and experiment's name: refused, and told where it is measured."""
    run(variants.POOL, "train --steps 10 --dir run")
    files = lambda: {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    before = files()
    err = run(variants.SAME, "train --steps 20 --dir run --resume", status=2)
    assert "moons does not hold what run was trained on: put it back" in err
    assert files() == before
    warning = "warning: moons does not hold what run was trained on"
    assert warning in run(variants.SAME, "sample --dir run")
    open_run("run", experiment=variants.SAME)
    assert warning in capsys.readouterr().out
    open_run("run")
    assert "warning" not in capsys.readouterr().out
    assert "resuming from step 10" in run(variants.POOL, "train --steps 20 --dir run --resume")
