"""One module a system: ``python -m experiments.ddpm``, ``experiments.vae``, ``experiments.gan``."""

import sys

from jaxgen import starting

if sys.argv[0] == "-m":  # a command, whose module is being looked for
    starting.begin(sys.orig_argv[sys.orig_argv.index("-m") + 1].rpartition(".")[2])
