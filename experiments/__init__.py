"""One module a system: ``python -m experiments.ddpm``, ``experiments.vae``, ``experiments.gan``."""
