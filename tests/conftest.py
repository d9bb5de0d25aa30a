"""Every test runs on the CPU, with jaxtyping's shapes checked at run time. Set before anything imports jax."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook


def check(function):
    """beartype with the numeric tower: an int is a fine float."""
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)


install_import_hook("revision_jax", "tests.conftest.check")
