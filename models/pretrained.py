"""Hugging Face folders to parameters and back, on the host.

A folder holds config.json and safetensors, in one file or in shards that
model.safetensors.index.json lists. It is a language model, or a classifier of
the solutions that one writes.
"""

import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from reft_jax.models import config as configs
from reft_jax.models import errors, layers
from reft_jax.models.families import llama, table

UnsupportedModelError = errors.UnsupportedModelError

_FAMILIES = {"llama": llama}
_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_CLASSIFIER = "ForSequenceClassification"
_DTYPES = ("F32", "F16", "BF16")
_LISTED = 5  # Problems an error message spells out before it counts the rest.


def read_config(path: str | pathlib.Path) -> configs.ModelConfig:
  """The architecture of the model in a folder.

  Raises:
    UnsupportedModelError: no readable config.json, or one that asks for
      something these networks do not do.
  """
  file = pathlib.Path(path) / _CONFIG
  fields = _read_json(file)
  family = _family(fields.get("model_type"), file)
  if fields.get("quantization_config"):
    raise UnsupportedModelError(
      f"{file}: quantized weights cannot be trained; use the original model."
    )
  try:
    config = family.read_config(fields)
  except KeyError as missing:
    raise UnsupportedModelError(
      f"{file}: the field {missing} is missing."
    ) from None
  except UnsupportedModelError as error:
    raise UnsupportedModelError(f"{file}: {error}") from None
  if config.activation not in layers.ACTIVATIONS:
    raise UnsupportedModelError(
      f"{file}: hidden_act {config.activation!r} is not one of "
      f"{', '.join(layers.ACTIVATIONS)}."
    )
  return config


def load(
  path: str | pathlib.Path,
) -> tuple[configs.ModelConfig, dict[str, Any]]:
  """Reads a model: its architecture and its policy in fp32 numpy arrays.

  Stored fp16 and bf16 weights are widened, which is exact.

  Raises:
    UnsupportedModelError: as `read_config`; or a file is missing; or tensors
      are missing, unexpected, of another shape or of no known type, listed by
      the checkpoint's names and ours.
  """
  config = read_config(path)
  folder = pathlib.Path(path)
  if is_classifier(folder):
    raise UnsupportedModelError(
      f"{folder} holds a classifier, such as a reward model, where a language "
      "model is needed; give the folder of one."
    )
  return config, _read(folder, config, _FAMILIES[config.family].tensors(config))


def load_classifier(
  path: str | pathlib.Path,
) -> tuple[configs.ModelConfig, dict[str, Any]]:
  """Reads a scorer, as `load` reads a policy.

  Raises:
    UnsupportedModelError: as `load`; or the folder holds a language model.
  """
  config = read_config(path)
  folder = pathlib.Path(path)
  if not is_classifier(folder):
    raise UnsupportedModelError(
      f"{folder} holds no classifier; give the folder of a reward model, such "
      "as a run's models/reward_model."
    )
  return config, _read(folder, config, _classifier_tensors(config))


def check(path: str | pathlib.Path) -> None:
  """Raises what `load` or `load_classifier` would, but reads no weights.

  Raises:
    UnsupportedModelError: as they do, except for a model of the other kind.
  """
  config = read_config(path)
  folder = pathlib.Path(path)
  rows = _FAMILIES[config.family].tensors(config)
  if is_classifier(folder):
    rows = _classifier_tensors(config)
  _checked_files(folder, config, rows)


def save(
  path: str | pathlib.Path,
  config: configs.ModelConfig,
  policy: Mapping[str, Any],
  *,
  extra: Mapping[str, Any] | None = None,
) -> None:
  """Writes a folder that AutoModelForCausalLM.from_pretrained opens, in fp32.

  Args:
    path: the folder, made if need be; its model files are replaced.
    config: the architecture.
    policy: the parameters, in host or device memory.
    extra: more fields of config.json; the tokenizer's `bos_token_id`,
      `eos_token_id` and `pad_token_id` belong here, and are null otherwise.
  """
  _write(path, config, _FAMILIES[config.family].tensors(config), policy, extra)


def save_classifier(
  path: str | pathlib.Path,
  config: configs.ModelConfig,
  scorer: Mapping[str, Any],
  *,
  extra: Mapping[str, Any] | None = None,
) -> None:
  """Writes a folder that AutoModelForSequenceClassification opens, in fp32.

  transformers finds a row's last token by `pad_token_id`, so `extra` should
  name it; here it follows from the row's length.
  """
  fields = {
    "architectures": [_FAMILIES[config.family].CLASSIFIER],
    "num_labels": len(configs.CLASSES),
    "id2label": dict(enumerate(configs.CLASSES)),
    "label2id": {name: label for label, name in enumerate(configs.CLASSES)},
    **(extra or {}),
  }
  _write(path, config, _classifier_tensors(config), scorer, fields)


def _classifier_tensors(config: configs.ModelConfig) -> list[table.Tensor]:
  """The tensors of a classifier: a family's trunk below a head of its own."""
  return [
    *(
      row
      for row in _FAMILIES[config.family].tensors(config)
      if row.path.startswith("trunk/")
    ),
    table.Tensor("score.weight", "score_DC", "C D"),
  ]


def is_classifier(folder: pathlib.Path) -> bool:
  """Whether config.json says so; one that says nothing is a language model."""
  architectures = _read_json(folder / _CONFIG).get("architectures")
  return isinstance(architectures, list) and any(
    str(name).endswith(_CLASSIFIER) for name in architectures
  )


def _read(folder, config, rows) -> dict[str, Any]:
  """The parameters that the rows of a family's table name."""
  files = _checked_files(folder, config, rows)
  params: dict[str, Any] = {}
  for row in rows:
    names = row.names(config.layers)
    array = np.empty((len(names), *config.shape(row.path)), np.float32)
    for layer, name in enumerate(names):
      array[layer] = row.from_stored(files[name].get_tensor(name), config.sizes)
    table.put(params, row.path, array if row.stacked else array[0])
  return params


def _write(path, config, rows, params, extra) -> None:
  """The folder of parameters that the rows of a family's table name."""
  folder = pathlib.Path(path)
  folder.mkdir(parents=True, exist_ok=True)
  params = dict(table.walk(params))
  stored = {}
  for row in rows:
    array = np.asarray(params[row.path], np.float32)
    names = row.names(config.layers)
    arrays = array if row.stacked else array[None]
    for name, one in zip(names, arrays, strict=True):
      stored[name] = row.to_stored(one, config.sizes)
  # "pt" is what transformers insists on; the layout has no other meaning.
  safetensors.numpy.save_file(
    stored, folder / _WEIGHTS, metadata={"format": "pt"}
  )
  fields = {
    **_FAMILIES[config.family].write_config(config),
    "dtype": "float32",
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    **(extra or {}),
  }
  (folder / _CONFIG).write_text(json.dumps(fields, indent=2) + "\n")


def _family(model_type, file):
  if model_type not in list(_FAMILIES):  # It need not be hashable.
    raise UnsupportedModelError(
      f"{file}: model_type {model_type!r} is not supported; "
      f"supported: {', '.join(_FAMILIES)}."
    )
  return _FAMILIES[model_type]


def _read_json(file: pathlib.Path) -> dict[str, Any]:
  try:
    content = json.loads(file.read_text())
  except FileNotFoundError:
    raise UnsupportedModelError(
      f"{file} does not exist; give a folder in the Hugging Face layout, "
      "with config.json and model.safetensors."
    ) from None
  except (OSError, ValueError) as error:
    raise UnsupportedModelError(f"{file} cannot be read: {error}.") from None
  if not isinstance(content, dict):
    raise UnsupportedModelError(f"{file} does not hold a JSON object.")
  return content


def _tensor_files(folder: pathlib.Path) -> dict[str, Any]:
  """The open file that holds each tensor."""
  if (folder / _WEIGHTS).is_file():
    shards = [_WEIGHTS]
  elif (folder / _INDEX).is_file():
    shards = _shards(folder / _INDEX)
  else:
    raise UnsupportedModelError(
      f"{folder} holds neither {_WEIGHTS} nor {_INDEX}; pickled weights "
      "(pytorch_model.bin) must be saved again with safetensors first."
    )
  files = {}
  for shard in shards:
    file = _open(folder / shard)
    files.update(dict.fromkeys(file.keys(), file))
  return files


def _shards(index: pathlib.Path) -> list[str]:
  """The files that an index spreads the tensors over."""
  weight_map = _read_json(index).get("weight_map")
  if not isinstance(weight_map, dict) or not all(
    isinstance(shard, str) for shard in weight_map.values()
  ):
    raise UnsupportedModelError(
      f"{index}: the field 'weight_map' must be an object that names the file "
      "of each tensor; fetch the index again."
    )
  return sorted(set(weight_map.values()))


def _open(file: pathlib.Path):
  try:
    return safetensors.safe_open(file, framework="np")
  except (OSError, safetensors.SafetensorError) as error:
    raise UnsupportedModelError(f"{file} cannot be read: {error}.") from None


def _checked_files(folder, config, rows) -> dict[str, Any]:
  """The open file of each tensor; an error lists all that is wrong."""
  files = _tensor_files(folder)
  ignored = _FAMILIES[config.family].IGNORED
  expected = {name: row for row in rows for name in row.names(config.layers)}
  problems = [
    *_problems(config, expected, files),
    *(
      f"{name} is unexpected"
      for name in sorted(files.keys() - expected.keys())
      if not re.fullmatch(ignored, name)
      # Some tied checkpoints store the head all the same.
      and not (config.tied_head and name == "lm_head.weight")
    ),
  ]
  if problems:
    more = len(problems) - _LISTED
    listed = problems[:_LISTED] + ([f"and {more} more"] if more > 0 else [])
    raise UnsupportedModelError(
      f"{folder}: the tensors do not fit config.json: {'; '.join(listed)}."
    )
  return files


def _problems(config, expected, files) -> Iterator[str]:
  for name, row in expected.items():
    if name not in files:
      yield f"{name} ({row.path}) is missing"
      continue
    tensor = files[name].get_slice(name)
    shape = row.stored_shape(config.sizes)
    if tuple(tensor.get_shape()) != shape:
      yield (
        f"{name} ({row.path}) has shape {tuple(tensor.get_shape())} "
        f"and not {shape}"
      )
    elif tensor.get_dtype() not in _DTYPES:
      yield (
        f"{name} ({row.path}) has type {tensor.get_dtype()} and not one of "
        f"{', '.join(_DTYPES)}"
      )
