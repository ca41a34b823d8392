"""jaxgen: deep generative models as pure functions over JAX arrays and Flax modules.

Import what you compose from its own place: ``jaxgen.losses``, ``jaxgen.diffusion``,
``jaxgen.models``, ``jaxgen.training``, ``jaxgen.data``, ``jaxgen.evaluation``.
"""


def __getattr__(name: str) -> str:
    """``__version__``, looked up where it is asked for."""
    if name != "__version__":
        raise AttributeError(f"module 'jaxgen' has no attribute '{name}'")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("jaxgen")
    except PackageNotFoundError:  # a checkout that was not installed
        return "unknown"
