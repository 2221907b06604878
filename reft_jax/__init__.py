"""ReFT: reasoning with reinforced fine-tuning, in JAX."""

import pathlib

# In a checkout the networks live in the top-level folder `models/`; installed,
# they lie inside this package. Either way they import as `reft_jax.models`.
_ROOT = pathlib.Path(__file__).resolve().parent
if not (_ROOT / "models").is_dir():
  __path__.append(str(_ROOT.parent))

__version__ = "0.1.0"
