"""Frozen dataclasses of arrays, which jax maps over and checkers understand."""

import typing
from typing import TypeVar

import chex

_Class = TypeVar("_Class", bound=type)


@typing.dataclass_transform(kw_only_default=True, frozen_default=True)
def dataclass(cls: _Class) -> _Class:
  """chex.dataclass(frozen=True), as a type checker can follow it.

  Fields are given by name. `dataclasses.replace` makes a changed copy.
  """
  return chex.dataclass(cls, frozen=True)
