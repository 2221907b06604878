"""Families: how each architecture's checkpoints are named and laid out.

A family is a module with

  read_config(fields) -> ModelConfig      the fields of its config.json
  write_config(config) -> dict            those fields again
  tensors(config) -> list[table.Tensor]   one row for each stored tensor
  CLASSIFIER                              its classifiers' architecture
  IGNORED                                 a pattern of tensors with no weights
"""
