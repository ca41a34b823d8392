import importlib

import pytest

from experiments.runner import main

NET = "--channels 8 --multipliers 1 --blocks 1 --attention --groups 4"
TINY = {
    "ddpm": (
        f"{NET} --diffusion-steps 20 "
        "--samples 20 --sample-batch 20 --sample-steps 4 --bound-images 8 --dropout 0.1 --flip"
    ),
    "score_sde": (
        f"{NET} --samples 20 --sample-batch 20 --sample-steps 4 --bound-images 8 --bound-times 4"
    ),
    "solvers": f"{NET} --diffusion-steps 100 --samples 10 --sample-batch 10",
    "distillation": (
        f"{NET} --samples 10 --sample-batch 10 --teacher-steps 4 --round-steps 2 --first 4"
    ),
    "vae": "--hidden 16 --latents 2 --samples 20 --importance-samples 20 --steps-per-call 2",
    "gan": "--channels 8 --samples 20 --discriminator-steps 2",
}
COMMON = "--batch 16 --log-every 2 --checkpoint-every 4"


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs an experiment in a tiny form, in an empty directory: (status, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def run(name, *words, tiny=True):
        experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
        argv = " ".join(map(str, words)).split()
        if tiny:  # before the options given, which win
            at = 0 if not argv or argv[0].startswith("-") else 1
            argv[at:at] = f"{TINY[name]} {COMMON}".split()
        try:
            status = main(experiment, argv)
        except SystemExit as stop:  # from the parser of options
            status = stop.code
        out = capsys.readouterr()
        return status, out.out, out.err

    return run
