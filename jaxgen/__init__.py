"""jaxgen: deep generative models as pure functions over JAX arrays and Flax modules.

Import what you compose from its own place: ``jaxgen.losses``, ``jaxgen.diffusion``,
``jaxgen.models``, ``jaxgen.training``, ``jaxgen.data``, ``jaxgen.evaluation``.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("jaxgen")
except PackageNotFoundError:  # a checkout that was not installed
    __version__ = "unknown"
