"""Every test runs on the CPU, with jaxtyping's shapes checked at run time. Set before anything imports jax.

Nearly all the time of the tests goes into compiling programs that then run for microseconds: XLA is asked for its quickest compilation, and what it made is
kept in the user's cache folder for the next run, and for the processes that tests start.
"""

import os
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "revision_jax" / "test-programs"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

from jaxtyping import install_import_hook  # noqa: E402

import tests.typecheck  # noqa: E402, F401  the hook looks it up by name

install_import_hook("revision_jax", "tests.typecheck.check")
