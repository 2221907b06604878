"""The one error a user is meant to see: what is wrong, where, what to do."""


class UserError(ValueError):
  """Bad input. Entry points print its one line and exit with code 2."""
