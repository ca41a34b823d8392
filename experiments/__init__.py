"""One module a system: ``python -m experiments.ddpm``, ``experiments.vae``, ``experiments.gan``."""

import sys

from jaxgen import starting

if sys.argv[0] == "-m":  # a command, whose module is being looked for
    module = next((word for word in sys.orig_argv if "experiments." in word), "")
    starting.begin(module.rpartition(".")[2])
