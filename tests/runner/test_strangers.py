"""Systems as a stranger would write them, of every kind that the runner must fit."""

import importlib
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from processes import arrays, mismatches, report, results

from jaxgen.runner import main, open_run
from jaxgen.training.logging import read_metrics


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the experiment or study of a module in strangers/, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def command(name, words="", status=0):
        module = importlib.import_module(f"strangers.{name}")
        what = getattr(module, "EXPERIMENT", None) or module.STUDY
        got, out = main(what, shlex.split(words)), capsys.readouterr()
        assert got == status, out.err
        return out.out + out.err

    return command


def values(directory):
    return {name: number["value"] for name, number in report(directory).items()}


def test_a_byte_model_goes_on_from_its_prompt(run):
    """Of a text that repeats itself all is known after three letters: it costs no bits but those,
    and what follows a prompt is the text."""
    Path("words.txt").write_text("abcdefgh" * 500)
    assert "samples.txt" in run("byte_model", "--devices 2 --dir run")
    rows = read_metrics(Path("run/metrics.jsonl"))
    bits = [row["bits_per_byte"] for row in rows if "bits_per_byte" in row]
    assert bits[-1] < 0.3 < bits[0]
    run("byte_model", "sample --dir run --prompt fgha")
    drawn = (results("run") / "samples.txt").read_text().split("\n\n" + "-" * 40 + "\n\n")
    assert len(drawn) == 10
    want = ("abcdefgh" * 5)[5:29]
    assert sum(text.strip() == want for text in drawn) >= 8


def test_point_sets_have_the_sizes_that_were_asked_for(run):
    """Nothing is drawn where there is no point, and what is drawn lies on the circle."""
    run("point_sets", "--devices 2 --dir run")
    trained = open_run("run")
    x, mask = trained.draw(40), trained.data.given(40)["mask"]
    assert set(mask.sum(axis=1)) == {3, 4, 5, 6}
    assert not x[~mask].any()
    radius = np.linalg.norm(x[mask], axis=1)
    assert abs(np.median(radius) - 1) < 0.1
    assert "loss_by_time" in run("point_sets", "diagnose --dir run")


def test_a_memory_of_two_players_is_kept_and_resumed_to_the_bit(run):
    run("pool", "train --steps 20 --dir whole")
    run("pool", "train --steps 10 --dir parts")
    assert "resuming from step 10" in run("pool", "train --steps 20 --dir parts --resume")
    whole, parts = arrays("whole", 20), arrays("parts", 20)
    assert mismatches(whole, parts) == 0
    pool = whole["['of']['critic']['memory']['pool']"]
    assert pool.any(axis=1).all()  # 20 steps of 2 moves of 16 samples filled it
    assert mismatches({"": pool}, {"": arrays("whole", 10)["['of']['critic']['memory']['pool']"]})
    run("pool", "sample --dir parts")
    run("pool", "evaluate --dir parts")
    assert values("parts")["sliced_wasserstein"] > 0


def test_a_network_grows_and_is_resumed_after_it_grew(run):
    run("growing", "train --dir whole")
    run("growing", "train --steps 12 --dir parts")
    run("growing", "train --steps 16 --dir parts --resume")
    assert mismatches(arrays("whole", 16), arrays("parts", 16)) == 0
    run("growing", "train --steps 8 --dir edge")  # stops where it is to grow
    run("growing", "train --steps 16 --dir edge --resume")
    assert mismatches(arrays("whole", 16), arrays("edge", 16)) == 0
    small, large = open_run("whole", 8), open_run("whole", 16)
    assert (small.system.depth, large.system.depth) == (1, 2)
    assert large.parameters == small.parameters + 8 * 8 + 8
    assert min(large.seconds) > 0
    assert np.isnan([small.seconds, open_run("parts").seconds]).all()  # not all, not in one go
    of = "['of']['model']['params']"
    assert f"{of}['Dense_3']['kernel']" in arrays("whole", 16)
    assert f"{of}['Dense_3']['kernel']" not in arrays("whole", 8)
    # it begins as it ended: the new layer is the identity
    x = np.linspace(-2, 2, 14, dtype=np.float32).reshape(7, 2)
    grown = large.system.grow(large.key, small.weights)["params"]
    before = small.system.network.apply({"params": small.weights.params}, x)
    np.testing.assert_allclose(large.system.network.apply({"params": grown}, x), before, rtol=1e-6)


def test_a_cascade_opens_the_run_that_it_goes_on_from(run):
    assert "name its directory with --base DIR" in run("cascade", "train --dir fine", status=2)
    run("coarse", "train --dir coarse")
    run("cascade", "--base coarse --dir fine")
    numbers = values("fine")
    assert numbers["modes_covered"] == 1
    assert numbers["outside_support"] < 0.05
    assert open_run("fine").draw(10).shape == (10, 2)  # which opens the other


def test_the_help_of_a_study_names_the_words_that_run_it(run, capsys):
    with pytest.raises(SystemExit):
        run("rates", "--help")
    assert "usage: python -m strangers.rates " in capsys.readouterr().out


def test_a_study_trains_the_run_that_is_lacking(run):
    run("pool", "train --learning-rate 1e-2")  # one of the two, with the options that are needed
    said = run("rates")
    assert "pool is trained first, in runs/pool-moons-002" in said
    assert "runs/pool-moons-001 " not in said
    out = Path("runs/rates-of-pool-moons-002+pool-moons-001")
    assert report(out).keys() == {"slow", "fast"}
    assert (results(out) / "clouds.png").exists()
    about = json.loads((results(out) / "study.json").read_text())
    assert about["runs"]["fast"] == "runs/pool-moons-001"
    assert "trained first" not in run("rates", "evaluate")
    Path("runs/pool-moons-001/config.json").rename("kept")  # as if another had it
    assert "pool is trained first" in run("rates", "train")
    assert "looks at 2 runs (slow, fast): name as many" in run(
        "rates", "--dir runs/pool-moons-002", status=2
    )
