"""Every test runs on the CPU, with jaxtyping's shapes checked at run time. Set before anything imports jax."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  the hook looks it up by name

install_import_hook("revision_jax", "tests.typecheck.check")
