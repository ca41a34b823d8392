"""Several runs in one program: each equals the run that is trained alone."""

from pathlib import Path

import numpy as np
import pytest
from processes import arrays, mismatches, report

from experiments import vae
from jaxgen.evaluation.report import Number, over_seeds
from jaxgen.runner import Mistake
from jaxgen.runner.sweeps import Member, members
from jaxgen.training.logging import read_metrics


def with_sweep(config, *words):
    from dataclasses import replace

    return replace(config, train=replace(config.train, sweep=words))


def test_the_grid_is_every_combination_with_its_own_config():
    grid = members(with_sweep(vae.DIGITS, "seed=0,1", "beta=1,4", "learning-rate=1e-3"))
    assert [m.name for m in grid] == [
        f"seed={s},beta={b},learning_rate=0.001" for s in (0, 1) for b in (1, 4)
    ]
    assert (grid[3].config.train.seed, grid[3].config.beta) == (1, 4.0)
    assert grid[3].config.train.learning_rate == 1e-3
    assert grid[3].config.train.sweep == ()
    assert members(vae.DIGITS) == ()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("hidden=3,4", "'hidden' cannot be swept"),
        ("lerning_rate=1", "did you mean learning_rate?"),
        ("seed=a", "NAME=VALUE,VALUE"),
        ("beta", "NAME=VALUE,VALUE"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(word, message):
    with pytest.raises(Mistake, match=message):
        members(with_sweep(vae.DIGITS, word))


def test_means_and_deviations_are_over_the_seeds():
    groups = {}
    for seed, beta, value in [(0, 1, 2.0), (1, 1, 4.0), (0, 4, 5.0), (1, 4, 5.0)]:
        group = Member({"seed": seed, "beta": beta}, None).group
        groups.setdefault(group, []).append([Number("elbo", value, "nats")])
    low, high = over_seeds(groups)
    assert (low.name, low.value) == ("elbo, beta=1", 3.0)
    np.testing.assert_allclose(low.std, np.sqrt(2))
    assert (high.name, high.value, high.std) == ("elbo, beta=4", 5.0, 0.0)
    assert low.protocol == "mean of 2 seeds; nats"


GRID = {
    "vae": (
        "seed=0,1 beta=0.5,2 ema=0.9,0.5",
        ["seed=1,beta=2,ema=0.5"],
        "--seed 1 --beta 2 --ema 0.5",
    ),
    "ddpm": ("seed=0,1 learning_rate=1e-4,1e-3", ["seed=1,learning_rate=0.001"], "--seed 1"),
    "gan": ("seed=0,1 b1=0.5,0.9", ["seed=1,b1=0.5"], "--seed 1 --b1 0.5"),
    "score_sde": ("seed=0,1 guidance=0,1 --unlabelled 0.1", ["seed=1,guidance=1"], "--seed 1"),
}


@pytest.mark.parametrize(
    "name", ["vae", *[pytest.param(n, marks=pytest.mark.slow) for n in GRID if n != "vae"]]
)
def test_each_member_is_the_run_trained_alone(command, name):
    grid, (member,), alone = GRID[name]
    rate = "" if "learning_rate" in grid else "--learning-rate 1e-4"
    if name == "ddpm":
        alone += " --learning-rate 1e-3"
    if name == "score_sde":
        alone += " --unlabelled 0.1"
    words = f"train --devices 2 {rate}"
    if name == "gan":  # and goes on as one
        assert command(name, f"{words} --steps 4 --dir sweep --sweep {grid}")[0] == 0
    resume = "--resume" if name == "gan" else ""
    status, out, err = command(name, f"{words} --steps 8 --dir sweep --sweep {grid} {resume}")
    assert status == 0, err
    assert ("resuming from step 4" in out) == (name == "gan")
    assert command(name, f"{words} --steps 8 --dir alone {alone}")[0] == 0
    one, many = arrays("alone", 8), arrays(f"sweep/{member}", 8)
    assert one.keys() == many.keys()
    for leaf, value in one.items():
        np.testing.assert_allclose(value, many[leaf], rtol=5e-3, atol=2e-5, err_msg=leaf)
    logs = [read_metrics(Path(d) / "metrics.jsonl") for d in ("alone", f"sweep/{member}")]
    for a, b in zip(*logs, strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose([*a.values()], [*b.values()], rtol=5e-3, atol=1e-4)
    if name == "vae":
        others = {p.name for p in Path("sweep").iterdir() if p.is_dir()} - {member}
        assert len(others) == 7
        assert all(mismatches(arrays(f"sweep/{o}", 8), many) for o in others)


@pytest.mark.slow
def test_a_sweep_has_a_table_of_means_and_its_members_are_ordinary_runs(command):
    assert command("vae", f"train --steps 4 --dir sweep --sweep {GRID['vae'][0]}")[0] == 0
    status, _, err = command("vae", "evaluate --dir sweep --samples 20", tiny=False)
    assert status == 0, err
    table = report("sweep")
    elbo = {}
    for folder in Path("sweep").glob("seed=*"):
        assert command("vae", f"evaluate --dir sweep/{folder.name}", tiny=False)[0] == 0
        elbo[folder.name] = report(folder)["elbo"]["value"]
    for settings in ("beta=0.5,ema=0.9", "beta=0.5,ema=0.5", "beta=2,ema=0.9", "beta=2,ema=0.5"):
        values = [v for k, v in elbo.items() if k.endswith(settings)]
        row = table[f"elbo, {settings}"]
        np.testing.assert_allclose(row["value"], np.mean(values), rtol=1e-5)
        np.testing.assert_allclose(row["std"], np.std(values, ddof=1), rtol=1e-3)
        assert row["protocol"].startswith("mean of 2 seeds; ")


def test_an_option_that_decides_what_is_computed_is_refused(command):
    words = "train --steps 4 --dir run --sweep guidance=0,1 --unlabelled 0.1"
    status, _, err = command("distillation", words)
    assert status == 2
    assert err == "error: --sweep cannot take one of guidance: it decides what is computed.\n"
    assert not Path("run").exists()
