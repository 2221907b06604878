"""The one error of this package that a user is meant to see."""


class UnsupportedModelError(ValueError):
  """A model these networks cannot express: what, where and what to do."""
