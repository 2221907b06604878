"""`python one_cannot_read.py FOLDER`: two checkpoints, one of several.

The last process cannot read the newer one. Prints which was restored.
"""

import contextlib
import pathlib
import sys

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from reft_jax.runtime import checkpoints, multihost
from reft_jax.runtime import mesh as mesh_lib

readable = ocp.StandardCheckpointHandler.restore


def restore(self, directory, *args, **kwargs):
  """As every handler's, but on a disk that has lost the newer one."""
  if directory.parent.name == "2":
    raise OSError("a broken disk")
  return readable(self, directory, *args, **kwargs)


def main(folder: pathlib.Path) -> int:
  """What to do; the exit code."""
  multihost.initialize("auto")
  mesh = mesh_lib.make_mesh(data=1, fsdp=-1, tensor=1)
  zeros = {"x_D": jnp.zeros(8)}
  state = mesh_lib.put(mesh, zeros)
  with contextlib.closing(checkpoints.Checkpoints(folder, keep=2)) as saved:
    for step in (1, 2):
      saved.save(step, jax.tree.map(lambda x: x + 1, state), {"step": step})
  if jax.process_index() == 1:
    ocp.StandardCheckpointHandler.restore = restore
  with contextlib.closing(checkpoints.Checkpoints(folder, keep=2)) as saved:
    _, notes = saved.restore(state)
  print(f"restored {notes}")
  return 0


if __name__ == "__main__":
  sys.exit(multihost.run(lambda: main(pathlib.Path(sys.argv[1]))))
