"""Bad input gets one sentence that names the fix, a non-zero status, and touches nothing."""

import errno
import json
import re
import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import report, results

from experiments import ddpm
from jaxgen.runner import Mistake
from jaxgen.runner.folders import read_config, write_config

CASES = {
    "verb": ("ddpm", "trian", "unknown verb 'trian': did you mean train?"),
    "data": ("ddpm", "--data mnits", "unknown data set 'mnits': did you mean mnist"),
    "preset": ("gan", "--preset cifar", "unknown preset 'cifar': did you mean cifar10?"),
    "model": ("vae", "--model cnov", "unknown model 'cnov': did you mean conv?"),
    "likelihood": ("vae", "--likelihood bernouli", "did you mean bernoulli?"),
    "objective": ("gan", "--objective minmax", "unknown objective 'minmax': did you mean minimax?"),
    "penalty": ("gan", "--penalty r3", "unknown penalty 'r3'"),
    "smoothing": (
        "gan",
        "--objective hinge --label-smoothing 0.1",
        "of non_saturating, minimax and least_squares: leave it out",
    ),
    "condition": ("gan", "--data moons --condition projection", "moons has none of them"),
    "head": ("gan", "--objective began --minibatch", "an autoencoder has no head"),
    "consistency": ("gan", "--consistency 10", "name them by --augment"),
    "equalized": (
        "gan",
        "--architecture style --spectral-norm both",
        "their own scale: leave out --spectral-norm",
    ),
    "tables": (
        "gan",
        "--architecture sngan --condition projection --spectral-norm both",
        "use --spectral-norm discriminator",
    ),
    "filters": ("gan", "--architecture progressive --orthogonality 1", "leave out .*--orthog"),
    "paths": ("gan", "--path-length 2", "by --architecture style: leave them out"),
    "mixing": ("gan", "--data moons --architecture style --mixing 0.9", "of images by"),
    "sign": (
        "gan",
        "--adaptive --augment diff --label-smoothing 0.1",
        "alone, without --label-smoothing",
    ),
    "chunks": ("gan", "--architecture small_biggan", "into 3 chunks, not 100: use 99 or 102"),
    "pool": ("gan", "--pool 3", "use 0, or 8 or more"),
    "augment": ("gan", "--data moons --augment diff", "use --instance-noise for points"),
    "schedule": ("ddpm", "--schedule cosin", "did you mean cosine?"),
    "variance": ("ddpm", "--variance gamma", "choose one of beta, beta_tilde"),
    "parallel": ("ddpm", "--parallel pmpa", "did you mean pmap?"),
    "batch": ("ddpm", "--devices 8 --batch 20", r"batch \(20\) is not divisible .* \(8\): use 16"),
    "devices": ("ddpm", "--devices 9 --batch 9", "there are 8 devices, not 9"),
    "points": ("distillation", "--data moons", "distillation takes images, and moons is points"),
    "text": ("vae", "--data text:words.txt", "vae takes images or points, and .* is text"),
    "no preset": ("ddpm", "train --preset", "unknown preset ''"),
    "twins": ("vae", "train --sweep seed=0,0", "two members of the sweep are seed=0"),
    "member": ("vae", "train --sweep beta=1,-1", "--beta is at least 0, not -1"),
    "range": ("ddpm", "--batch 0", "--batch is at least 1, not 0"),
    "share": ("ddpm", "--ema 1.5", r"--ema is in 0\.\.1, not 1\.5"),
    "network": ("ddpm", "--network mlp", r"no network 'mlp' .*: there is unet or dit"),
    "folder": ("vae", "--data folder:nowhere", "there is no folder nowhere"),
    "steps": ("ddpm", "--sample-steps 21", r"sampling steps must be in 1\.\.20, got 21"),
    "halved": ("pixelcnn", "--model plusplus --resolutions 5", "8x8 .* cannot be halved 4 times"),
    "even": ("pixelcnn", "--kernel 4", "use --kernel 3, not 4"),
    "attention": (
        "ddpm",
        "--attention 5",
        "no feature map is 5 pixels high: give --attention one of 8",
    ),
    "cycles": ("vae", "--kl-cycles 99999", "a step or more each: use fewer, or more --steps"),
    "std": ("vae", "--std 0", "--std is at least 1e-06, not 0"),
    "one": (
        "vae",
        "--objective mmd --batch 1 --devices 1",
        "a batch of 2 to .* examples: change --batch",
    ),
    "draws": ("vae", "--objective tc --latent-samples 3", "are of --objective elbo, not of tc"),
    "told nobody": ("vqvae", "--steps 4 --conditional", "is of the prior: use more --steps"),
    "nothing": ("vqvae", "--quantizer scalar --levels", "--levels takes one value or more"),
    "nobody": ("likelihoods", "--families", "--families takes one value or more"),
    "prior": ("score_sde", "--shift 9", r"begins with noise alone, .* keeps 0\.22 of the data"),
    "levels": (
        "ddpm",
        "--multipliers 1 1 1 1 1 1",
        "8x8 image cannot be halved 5 times: use at most 4 multipliers",
    ),
    "decay": ("vae", "--decay cosin", "none, cosine or linear, not 'cosin'"),
    "decay of rounds": ("distillation", "--decay linear", "leave out --decay"),
    "calls": ("vae", "--steps 5 --steps-per-call 2", "not a multiple of steps per call"),
    "sample": ("ddpm", "sample", "there is no run of ddpm on digits under runs/: train first"),
    "sample dir": ("ddpm", "sample --dir x", "no checkpoint in x: train first"),
    "empty dir": ("vae", "train --dir ''", "--dir is empty: name a directory, or leave it out"),
    "process": (
        "vae",
        "train --coordinator x:1 --num-processes 2 --process-id 5",
        r"--process-id is in 0\.\.1 of --num-processes, not 5",
    ),
    "flip": ("score_sde", "--data moons --flip", "images alone can be mirrored"),
    "out": ("guidance", "--out words.txt", "--out words.txt is a file: name a folder"),
    "two verbs": ("likelihoods", "train evaluate", "one verb, .*: leave out train or evaluate"),
    "kind": ("critics", "--data moons", "critics takes images, and moons is points"),
    "checkpoint": ("guidance", "--checkpoint lst", "last, best or a step, not 'lst'"),
    "of the runs": ("solvers", "--steps 4", r"write --train='--steps \.\.\.'"),
    "sign of options": ("solvers", "--train '--steps 4'", "write --train='--steps 4'"),
    "of the study": ("solvers", "--train='--data mnist'", "an option of the study itself"),
    "apart": ("critics", "--train='--penalty r1'", "--penalty, which tells the runs apart"),
    "warm-up": ("vae", "--decay cosine --warmup 9 --steps 9", r"\(--warmup\), .*--decay none"),
    "maps": ("gan", "--architecture sagan", "8 pixels a side have no maps of 32"),
    "squares": ("flow", "--levels 5", "fewer --levels .*--model realnvp"),
    "no words": ("gpt", "--data text:none.txt", "name a file or a folder of"),
    "quotes": ("solvers", "--train='--steps \"4'", "cannot be read"),
    "resume": ("ddpm", "--resume", "there is no run of ddpm"),
    "resume dir": ("ddpm", "--resume --dir x", "no run to resume in x: leave out --resume"),
    "tfds": ("vae", "--data mnist --data-dir empty", r"'mnist' is not prepared in empty"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_and_nothing_touched(command, case):
    name, words, message = CASES[case]
    Path("words.txt").write_text("to be or not to be " * 1000)
    status, _, err = command(name, words)
    assert status == 2
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert line.count(". ") == 0  # one sentence
    assert re.search(message, line), line
    assert not Path("runs").exists()
    assert not Path("x").exists()


def test_numbers_that_few_pictures_cannot_carry_are_left_out_with_the_reason(command):
    """Eight in two classes: one of them to test on, which has no covariance."""
    rng = np.random.default_rng(0)
    for i in range(8):
        path = Path("pictures", "ab"[i % 2], f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(path)
    status, out, err = command("vae", "--data folder:pictures --steps 4 --dir run")
    assert status == 0, err
    assert "frechet_distance_of_test is left out: it needs two examples of either set" in out
    numbers = report("run")
    assert "frechet_distance_of_test" not in numbers
    assert all(np.isfinite(n["value"]) for n in numbers.values())
    assert "at models' scale" in numbers["elbo"]["protocol"]  # coloured: not of bits


def test_a_disk_that_is_full_while_drawing_is_told(command):
    """What was there is kept, and the results may go elsewhere."""
    assert command("vae", "train --steps 4 --dir run")[0] == 0
    assert command("vae", "sample --dir run")[0] == 0
    names = lambda folder: sorted(path.name for path in folder.iterdir())
    before = {path.name: path.read_bytes() for path in results("run").iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        status, _, err = command("vae", "sample --dir run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 74
    assert err == (
        "error: cannot write to run (File too large): make room there, or name another folder "
        "for the results with --out.\n"
    )
    assert {path.name: path.read_bytes() for path in results("run").iterdir()} == before
    assert command("vae", "sample --dir run --out elsewhere")[0] == 0
    assert names(results("elsewhere")) == names(results("run"))
    x = [np.load(results(place) / "samples.npz")["x"] for place in ("run", "elsewhere")]
    np.testing.assert_array_equal(*x)


def test_a_run_that_cannot_be_written_to_is_drawn_from(command, monkeypatch):
    assert command("vae", "train --steps 4 --dir run")[0] == 0

    def refused(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refused)
    status, _, err = command("vae", "evaluate --dir run")
    assert status == 74
    assert re.fullmatch(
        r"error: cannot write to run/step-4[\w,=]* \(Permission denied\): name another folder for "
        r"the results with --out\.\n",
        err,
    )


def test_unknown_options_are_refused(command):
    status, _, err = command("ddpm", "--stepps 3")
    assert status == 2
    assert "--steps" in err  # the nearest


def test_another_config_is_not_resumed_or_overwritten(command):
    assert command("vae", "train --steps 4 --dir run")[0] == 0
    before = {p: p.read_bytes() for p in Path("run").glob("*.*")}
    status, _, err = command("vae", "train --steps 4 --dir run")
    assert status == 2
    assert "run already holds a run: add --resume, or give another --dir" in err
    words = "train --steps 8 --dir run --resume --batch 16 --beta 2"
    status, _, err = command("vae", words, tiny=False)
    assert status == 2
    assert "run holds a run with other options (beta is 1.0, not 2.0)" in err
    assert {p: p.read_bytes() for p in Path("run").glob("*.*")} == before


def test_a_run_is_not_looked_at_with_other_options_than_its_own(command):
    """But with others of sampling and measuring; and what is not whole is said."""
    assert command("vae", "train --steps 4 --dir run")[0] == 0
    before = {p: p.read_bytes() for p in Path("run").glob("*.*")}
    for verb in ("sample", "evaluate", "diagnose"):
        status, _, err = command("vae", verb, "--dir run --hidden 17", tiny=False)
        assert status == 2
        assert "trained with other options (hidden is 16, not 17): leave these out" in err
    status, out, _ = command("vae", "train --steps 4 --dir run --resume")
    assert status == 0
    assert "nothing to train: step 4 is done, and --steps is 4" in out
    assert {p: p.read_bytes() for p in Path("run").glob("*.*")} == before
    Path("run/config.json").write_text("{")
    status, _, err = command("vae", "sample --dir run", tiny=False)
    assert status == 2
    assert "config.json is not whole" in err


def test_the_run_is_the_one_of_the_data_whatever_the_preset(command):
    words = "--preset moons --data 8gaussians"
    assert command("vae", f"train {words} --steps 4 --likelihood gaussian")[0] == 0
    assert command("vae", f"train {words} --steps 8 --resume", tiny=False)[0] == 0


def test_a_run_of_another_experiment_is_not_misread(command):
    """Neither sampled nor resumed by one whose model it does not hold; read by one that may."""
    assert command("vae", "train --steps 4 --dir run")[0] == 0
    before = {p: p.read_bytes() for p in Path("run").glob("*.*")}
    for name, words in (
        ("ddpm", "evaluate --dir run"),
        ("gan", "sample --dir run"),
        ("score_sde", "train --resume --dir run"),
        ("solvers", "evaluate --dir run"),
    ):
        of = "ddpm" if name == "solvers" else name
        status, _, err = command(name, words, tiny=False)
        assert status == 2
        assert err == (
            f"error: run holds a run of vae, not of {of}: use python -m experiments.vae, or give "
            "another --dir.\n"
        )
    assert {p: p.read_bytes() for p in Path("run").glob("*.*")} == before


def test_runs_of_before_are_refused_in_a_sentence(tmp_path):
    write_config(tmp_path, ddpm.EXPERIMENT, ddpm.PRESETS["digits"])
    assert read_config(tmp_path, ddpm.EXPERIMENT) == ddpm.PRESETS["digits"]
    values = json.loads((tmp_path / "config.json").read_text())
    for lacking in ("experiment", "module"):  # as it was written once
        old = {k: v for k, v in values.items() if k != lacking}
        (tmp_path / "config.json").write_text(json.dumps(old))
        with pytest.raises(Mistake, match="a run of an earlier version: train it anew"):
            read_config(tmp_path, ddpm.EXPERIMENT)


def test_a_run_with_options_of_another_version_is_not_guessed_at(tmp_path):
    write_config(tmp_path, ddpm.EXPERIMENT, ddpm.PRESETS["digits"])
    values = json.loads((tmp_path / "config.json").read_text())
    values["sampling"]["variance"] = "beta"
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(Mistake, match="with an option variance there: train it anew"):
        read_config(tmp_path, ddpm.EXPERIMENT)


def test_where_the_rate_decays_the_last_step_is_settled(command):
    words = "train --dir run --decay cosine --resume"
    assert command("vae", "train --steps 4 --dir run --decay cosine")[0] == 0
    status, _, err = command("vae", f"{words} --steps 8", tiny=False)
    assert status == 2
    assert "steps is 4, not 8" in err


def test_a_missing_checkpoint_is_said(command):
    assert command("vae", "train --steps 4 --dir run")[0] == 0
    status, _, err = command("vae", "sample --dir run --checkpoint 7", tiny=False)
    assert status == 2
    assert "no checkpoint of step 7" in err
    status, _, err = command("vae", "sample --dir run --checkpoint lats", tiny=False)
    assert status == 2
    assert "last, best or a step" in err


def test_a_corrupt_image_is_named_before_anything_starts(command, tmp_path):
    for i in range(4):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"\x89PNG broken")
    status, _, err = command("ddpm", f"--data folder:{tmp_path}")
    assert status == 2
    assert "2.png cannot be read as an image" in err
    assert not Path("runs").exists()


def test_a_loss_that_is_not_finite_stops_with_its_step(command):
    status, _, err = command(
        "vae", "train --steps 8 --dir run --learning-rate 1e30 --max-skipped 4"
    )
    assert status == 3
    assert "not finite from step 1 on (4 in a row)" in err
    assert "Checkpoints in " in err
    assert "--skip" not in err
    status, _, err = command("vae", "train --steps 8 --dir other --skip 1e-3 --max-skipped 4")
    assert status == 3
    assert "above 0.001: raise --skip" in err


def test_help_explains_every_option(command):
    status, out, _ = command("ddpm", "--help", tiny=False)
    assert status == 0
    for word in ("--steps", "--data", "--resume", "--sample-steps", "train|sample|evaluate"):
        assert word in out
