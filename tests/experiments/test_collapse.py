"""The study of posterior collapse: its command, and what it looks at."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import report, results

from experiments import collapse
from experiments.vae import PRESETS
from jaxgen.runner.commands import parse

TINY = (
    "--hidden 16 --latents 2 --importance-samples 10 --batch 16 --steps 4 --steps-per-call 2 "
    "--log-every 2 --checkpoint-every 4 --devices 1"
)


@pytest.mark.parametrize(("decoder", "steps"), [("made", 6000), ("pixelcnn", 1200)])
def test_the_rows_differ_by_their_remedy_alone(decoder, steps):
    """Each is one or two options more than the plain one, on any data."""
    configs = {}
    for name, need in collapse.needs(collapse.Config(decoder=decoder)).items():
        _, configs[name], _ = parse(need.experiment, ["train", *need.options.split()])
    plain = configs.pop("plain")
    assert (plain.model, plain.latents, plain.train.steps) == (decoder, 32, steps)
    assert plain.posterior == PRESETS["digits"].posterior
    changed = {"free_bits", "kl_warmup", "kl_cycles", "posterior", "committed_rate", "reach"}
    for config in configs.values():
        assert config != plain
        assert replace(config, **{name: getattr(plain, name) for name in changed}) == plain


@pytest.mark.slow
def test_one_command_trains_what_is_lacking_and_compares(command, monkeypatch):
    """Two of the rows; a second time nothing is trained."""
    all_of_them = collapse.needs(collapse.Config())
    needs = {name: all_of_them[name] for name in ("plain", "committed rate")}
    monkeypatch.setattr(collapse, "STUDY", replace(collapse.STUDY, needs=lambda config: needs))
    words = f"--train='{TINY}' --samples 10 --sample-batch 10"
    status, out, err = command("collapse", words)
    assert status == 0, err
    assert out.count("is trained first") == 2
    place = "runs/collapse-of-vae-digits-001+vae-digits-002"
    for name in ("collapse", "collapse-samples", "reconstructions"):
        assert np.asarray(Image.open(results(place) / f"{name}.png").convert("L")).std() > 5
    numbers = report(place)
    assert numbers.keys() == {f"{column}, {name}" for column in collapse.COLUMNS for name in needs}
    assert numbers["kl, committed rate"]["value"] >= 2 * 0.02  # of two latents
    assert numbers["elbo, plain"]["value"] < 0
    status, out, err = command("collapse", "train", words)
    assert status == 0, err
    assert "is trained first" not in out
    assert len(list(Path("runs").glob("vae-*"))) == 2
