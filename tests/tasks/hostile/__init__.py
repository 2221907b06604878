"""Programs that a policy might write to do harm, in groups.

Policies explore: these are endless loops and memory bombs that they meet by
chance, and attacks that a reward could teach. None damages a machine that does
not guard against it by more than a few processes and a file in /tmp.
"""

import importlib
import pkgutil

GROUPS = {
  module.name: importlib.import_module(f"hostile.{module.name}").PROGRAMS
  for module in pkgutil.iter_modules(__path__)
  if module.name != "program"
}
