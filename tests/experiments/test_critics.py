"""The study of critics on images: its rows, and its command."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import report, results

from experiments import critics
from jaxgen.runner.commands import parse


def test_the_rows_differ_by_what_the_critic_descends_alone():
    configs = {}
    for name, need in critics.needs(critics.Config()).items():
        _, configs[name], _ = parse(need.experiment, ["train", *need.options.split()])
    plain = configs["log D, seed 0"]
    changed = ("objective", "penalty", "penalty_weight", "discriminator_steps", "spectral_norm")
    alike = {
        name: replace(
            config,
            train=replace(config.train, seed=0),
            **{option: getattr(plain, option) for option in changed},
        )
        for name, config in configs.items()
    }
    assert all(config == plain for config in alike.values())
    assert len(configs) == 2 * len(critics.ROWS)
    assert {config.train.seed for config in configs.values()} == {0, 1}
    assert len({repr(config) for config in configs.values()}) == len(configs)


@pytest.mark.slow
def test_one_command_compares(command, monkeypatch):
    """Two of the rows, two seeds; the page has what the report has."""
    monkeypatch.setattr(critics, "ROWS", dict(list(critics.ROWS.items())[:2]))
    tiny = "--channels 4 --steps 4 --batch 8 --log-every 2 --checkpoint-every 4 --devices 1"
    status, out, err = command("critics", f"--train='{tiny}' --samples 20 --sample-batch 20")
    assert status == 0, err
    assert out.count("is trained first") == 4
    (study,) = Path("runs").glob("critics-of-*")
    assert np.asarray(Image.open(results(study) / "critics.png").convert("L")).std() > 5
    numbers, page = report(study), (results(study) / "critics.md").read_text()
    distances = [numbers[f"frechet_distance, log D, seed {seed}"]["value"] for seed in (0, 1)]
    assert f"| log D | {np.mean(distances):.3g} ({distances[0]:.3g}, {distances[1]:.3g})" in page
