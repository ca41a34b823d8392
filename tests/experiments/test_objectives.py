"""The study of objectives: what it trains, and its table, films and gradients."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import report, results

from experiments import gan, objectives
from jaxgen.evaluation.points import mode_coverage, mode_precision
from jaxgen.runner import Mistake, Sampling, open_run
from jaxgen.runner.commands import parse
from jaxgen.training.logging import read_metrics

TRAIN = (
    "--channels 8 --batch 16 --steps 4 --steps-per-call 2 --log-every 2 --checkpoint-every 2 "
    "--devices 1"
)


def test_every_objective_is_trained_alike_on_every_set():
    """All rows are one config but for the objective and its penalty, each on either set."""
    config = objectives.Config()
    found = {}
    for name, need in objectives.needs(config).items():
        _, options, _ = parse(
            need.experiment, ["train", "--data", need.data.data, *need.options.split()]
        )
        assert options.train.sweep == ("seed=0,1,2,3",)
        found[name] = options
    rest = [name for name in found if " at rest " in name]
    assert rest == [f"{name} at rest on 8gaussians" for name in ("non_saturating", "minimax")][::-1]
    assert found.keys() - rest == {f"{r} on {s}" for r in objectives.ROWS for s in config.sets}
    assert {options.objective for options in found.values()} == gan.OBJECTIVES.keys()
    assert len({str(options) for options in found.values()}) == len(found)
    assert len({str(options.train) for name, options in found.items() if name not in rest}) == 1
    assert all(found[name].train.learning_rate == 0 for name in rest)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"objectives": ("minmax",)}, "unknown objective 'minmax': did you mean minimax"),
        ({"sets": ("digits",)}, "unknown set 'digits'"),
    ],
)
def test_what_there_is_not_is_told(words, message):
    with pytest.raises(Mistake, match=message):
        objectives.needs(objectives.Config(**words))


@pytest.mark.parametrize(
    "names",
    [["minimax"], pytest.param(["minimax", "began", "non_saturating"], marks=pytest.mark.slow)],
)
def test_one_command_trains_all_seeds_and_compares(command, names):
    """A second time nothing is trained."""
    words = f"--objectives {' '.join(names)} --sets 25gaussians --seeds 2"
    words += f" --samples 60 --sample-batch 60 --train='{TRAIN}'"
    status, out, err = command("objectives", words, "--out out")
    assert status == 0, err
    resting = [name for name in objectives.SATURATING if name in names]
    assert out.count("is trained first") == len(names) + len(resting)
    numbers, place = report("out"), results("out")
    page = (place / "objectives.md").read_text()
    for i, name in enumerate(names, start=1):
        here = f"{name} on 25gaussians"
        runs = [open_run(f"runs/gan-25gaussians-00{i}/seed={seed}") for seed in (0, 1)]
        x = [replace(run, sampling=Sampling(60, 60)).draw() for run in runs]
        near = [mode_precision(drawn, runs[0].data.modes) for drawn in x]
        row = numbers[f"near_a_mode, {here}"]
        np.testing.assert_allclose(
            [row["value"], row["std"]], [np.mean(near), np.std(near, ddof=1)]
        )
        covered = [25 * mode_coverage(drawn, runs[0].data.modes) for drawn in x]
        assert round(min(covered)) == numbers[f"fewest_modes_covered, {here}"]["value"]
        assert (
            f"| {name} | {np.mean(covered):.3g} ({min(covered):.0f}) | {np.mean(near):.3g} |"
            in page
        )
    assert Image.open(place / "film-25gaussians.gif").n_frames == 2  # a checkpoint each
    for picture in ("samples-25gaussians", "saturation"):
        assert np.asarray(Image.open(place / f"{picture}.png").convert("L")).std() > 5
        assert f"({picture}.png)" in page
    stand_still(resting, numbers, first=len(names) + 1)
    status, out, err = command("objectives", "train", words)
    assert status == 0, err
    assert "is trained first" not in out
    assert len(list(Path("runs").glob("gan-*"))) == len(names) + len(resting)


def stand_still(resting, numbers, first):
    """Generators at rest do not move, their discriminators learn as one, and what is told is the
    median over the seeds."""
    seen = []
    for i, name in enumerate(resting, start=first):
        places = [Path(f"runs/gan-25gaussians-00{i}/seed={seed}") for seed in (0, 1)]
        logs = [
            [row for row in read_metrics(place / "metrics.jsonl") if "generator/loss" in row]
            for place in places
        ]
        assert all(row["generator/update_norm"] == 0 for log in logs for row in log)
        assert all(row["discriminator/update_norm"] > 0 for log in logs for row in log)
        seen.append([[row["discriminator/loss"] for row in log] for log in logs])
        want = np.median([log[-1]["generator/grad_norm"] for log in logs])
        np.testing.assert_allclose(numbers[f"gradient_norm, {name} at rest, 4"]["value"], want)
    assert seen == seen[:1] * len(resting)
