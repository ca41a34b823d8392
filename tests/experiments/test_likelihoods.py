"""The table over families, of runs that are trained for a few steps."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from processes import COMMON, TINY

from experiments import vae
from experiments.likelihoods import FAMILIES, STUDY, Config, needs
from jaxgen.runner import Need, Number, Study, main
from jaxgen.runner.commands import parse
from jaxgen.runner.folders import together


def test_every_family_is_trained_by_options_that_there_are():
    """And by its own: no two families are one run."""
    for data in ("digits", "binarized_mnist"):
        config = Config(data=type(Config().data)(data))
        configs = [
            (
                need.experiment.name,
                str(parse(need.experiment, ["--data", data, *need.options.split()])[1]),
            )
            for need in needs(config).values()
        ]
        assert len(set(configs)) == len(FAMILIES)


@pytest.mark.parametrize("data", ["digits", "mnist"])
def test_all_families_are_of_the_levels_where_images_have_such(data):
    """And none of bits that are drawn of them, whatever the preset of the data says."""
    for need in needs(Config(data=type(Config().data)(data))).values():
        _, config, _ = parse(need.experiment, ["--data", data, *need.options.split()])
        assert getattr(config, "pixels", "levels") == "levels", need
        assert getattr(config, "likelihood", "levels") not in ("bernoulli", "default"), need


def test_a_family_that_there_is_not_is_told():
    with pytest.raises(ValueError, match="unknown family 'GAN'"):
        needs(Config(families=("MADE", "GAN")))


@pytest.mark.parametrize(
    "families",
    ["MADE VAE", pytest.param(" ".join(FAMILIES), marks=pytest.mark.slow)],
)
def test_the_table_has_a_row_for_each_in_the_units_of_the_data(tmp_path, monkeypatch, families):
    monkeypatch.chdir(tmp_path)
    words = ["--families", *families.split(), "--samples", "20", "--sample-batch", "20"]
    train = "--train=--steps 2 --steps-per-call 1 --checkpoint-every 2 --warmup 0 --batch 8"
    assert main(STUDY, [*words, train]) == 0
    (report,) = Path("runs").glob("likelihoods-of-*/*/report.json")
    numbers = {row["name"]: row["value"] for row in json.loads(report.read_text())}
    for name in families.split():
        kinds = [k for k in ("exact", "bound", "estimate") if f"{k}, {name}" in numbers]
        assert kinds
        assert all(0 < numbers[f"{k}, {name}"] < 30 for k in kinds)
        if name in ("VAE", "IWAE", "VampPrior", "HVAE", "Flow"):  # both of one model
            assert numbers[f"estimate, {name}"] < numbers[f"bound, {name}"] + 0.2
        for column in ("parameters", "training seconds", "seconds to draw 100", "passes a draw"):
            assert numbers[f"{column}, {name}"] > 0
    assert numbers["passes a draw, MADE"] == 64
    assert numbers["exact, MADE"] == pytest.approx(math.log2(17), abs=0.5)  # it begins nearly even
    page = report.with_name("likelihoods.md").read_text()
    for name in families.split():
        assert f"| {name} |" in page
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ")][2:]
    values = [float(row[2].strip() or row[4].strip() or row[3]) for row in rows]  # exact first
    np.testing.assert_array_equal(values, sorted(values))
    for picture in ("trade-off.png", "samples.png"):
        assert report.with_name(picture).stat().st_size > 1000


def test_many_runs_have_a_short_name_that_is_theirs():
    names = [f"pixelcnn-binarized_mnist-{i:03d}" for i in range(14)]
    assert together(names[:2]) == "+".join(names[:2])
    assert len(together(names)) < 200
    assert together(names) != together(names[::-1])


def test_a_study_measures_as_it_says_and_a_run_that_is_named_as_its_own_options_say(command):
    """The run was trained with other options of measuring, which are none of its training."""
    train = "--steps 2 --steps-per-call 1 --checkpoint-every 2"
    assert command("vae", f"train {train} --importance-samples 30")[0] == 0
    asked = Need(vae.EXPERIMENT, f"{TINY['vae']} {COMMON} {train} --importance-samples 7")
    samples = lambda runs, _: [
        Number("samples", run.config.measured.importance_samples, "") for run in runs.values()
    ]
    study = Study("asks", "", {"digits": Config()}, lambda _: {"vae": asked}, measures=(samples,))
    found = {}
    for words, want in (("", 7), ("--dir runs/vae-digits-001", 30)):
        assert main(study, [*f"evaluate {words} --out of-{want}".split()]) == 0
        (path,) = Path(f"of-{want}").glob("*/report.json")
        found[want] = json.loads(path.read_text())[0]["value"]
    assert found == {7: 7, 30: 30}
    assert len(list(Path("runs").glob("vae-*"))) == 1
