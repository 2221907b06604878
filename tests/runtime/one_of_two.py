"""`python one_of_two.py FOLDER ARGUMENT...`: reft_jax.train, one of several.

A process that writes no metrics is made to write those it knows into FOLDER, so
that a test can compare them with the first one's.
"""

import json
import pathlib
import sys

from reft_jax import train
from reft_jax.runtime import metrics

known = pathlib.Path(sys.argv[1]) / metrics.FILE


def log(self, step, values, *, stage):
  """As a recorder's: one row a line."""
  row = {"stage": stage, "step": int(step)}
  row |= {name: float(value) for name, value in values.items()}
  known.parent.mkdir(exist_ok=True)
  with known.open("a") as file:
    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
  metrics.Silent.log = log
  sys.exit(train.main(sys.argv[2:]))
