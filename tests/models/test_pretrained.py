"""Hugging Face folders to parameters and back."""

import dataclasses
import functools
import json
import pathlib
import socket
import subprocess
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny

from reft_jax.learning import classifier
from reft_jax.models import config as configs
from reft_jax.models import errors, networks
from reft_jax.models.hf import families, tensor_files
from reft_jax.models.hf import read as reader
from reft_jax.models.hf import write as writer
from reft_jax.models.hf.families import table
from reft_jax.runtime import mesh as mesh_lib

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BIASES = {"qkv_bias": True, "o_bias": True, "mlp_bias": True}
TINY = dataclasses.replace(
  tiny.CONFIG, vocab_size=13, layers=3, head_size=6, ffn=20, **BIASES
)
TIED = dataclasses.replace(
  tiny.CONFIG,
  **{"vocab_size": 7, "width": 8, "layers": 1, "heads": 2, "kv_heads": 1},
  ffn=12,
  tied_head=True,
)
TOKENS_BS = np.arange(12, dtype=np.int32).reshape(2, 6)
LENGTHS_B = np.array([6, 6], np.int32)


def random_policy(config):
  random = np.random.default_rng(0)
  shapes = jax.eval_shape(networks.Networks(config).init, jax.random.key(0))
  return jax.tree.map(
    lambda leaf: random.standard_normal(leaf.shape).astype(np.float32), shapes
  )


def assert_equal(got, want):
  """That two trees have the same leaves, bit by bit."""
  jax.tree.map(np.testing.assert_array_equal, got, want)


def stored(folder):
  return safetensors.numpy.load_file(folder / "model.safetensors")


def contents(folder):
  return {file.name: file.read_bytes() for file in folder.iterdir()}


def store(folder, tensors, name="model.safetensors"):
  safetensors.numpy.save_file(tensors, folder / name)


def edit_config(folder, **fields):
  file = folder / "config.json"
  content = json.loads(file.read_text()) | fields
  content = {key: value for key, value in content.items() if value != "absent"}
  file.write_text(json.dumps(content))


def refused(folder, message, load=reader.load):
  """Loading fails with one line that matches and names the folder."""
  with pytest.raises(errors.UnsupportedModelError, match=message) as error:
    load(folder)
  assert "\n" not in str(error.value)
  assert str(folder) in str(error.value)
  return str(error.value)


@pytest.fixture
def folder(tmp_path):
  writer.save(tmp_path, TIED, random_policy(TIED))
  return tmp_path


ROPES = {
  "default": {"theta": 500.0},
  "linear": {"factor": 2.0},
  "dynamic": {"factor": 2.0},
  "llama3": {"low_freq_factor": 1.5, "high_freq_factor": 3.0},
  "yarn": {"beta_fast": 8.0, "beta_slow": 2.0, "truncate": False},
  "longrope": {"short_factor": (1.0, 2.0), "long_factor": (3.0, 4.0)},
}


@pytest.mark.parametrize("kind", ROPES)
def test_every_field_of_a_config_survives(kind, tmp_path):
  fields = ROPES[kind]
  if kind in ("llama3", "yarn", "longrope"):
    fields |= {"factor": 4.0, "original_max_positions": 64}
  if kind in ("yarn", "longrope"):
    fields |= {"attention_factor": 1.25}
  config = dataclasses.replace(
    TIED,
    norm_eps=1e-3,
    rope=configs.RopeConfig(kind=kind, **fields),
    **BIASES,
    activation="gelu",
    max_positions=256,
    init_scale=0.5,
  )
  writer.save(tmp_path, config, random_policy(config))
  assert reader.read_config(tmp_path) == config


# Files and shards.


def store_sharded(ending, write, folder, tensors):
  """The tensors in three files with an index, as transformers names them."""
  weight_map = {}
  for number in range(3):
    names = sorted(tensors)[number::3]
    stem, _, suffix = ending.partition(".")
    file = f"{stem}-{number + 1:05d}-of-00003.{suffix}"
    write(folder / file, {name: tensors[name] for name in names})
    weight_map |= dict.fromkeys(names, file)
  index = json.dumps({"metadata": {}, "weight_map": weight_map})
  (folder / f"{ending}.index.json").write_text(index)


def write_pickle(file, tensors, **options):

  def tensor(array):
    if array.dtype == jnp.bfloat16:  # torch takes none from numpy.
      return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())

  state = {name: tensor(array) for name, array in tensors.items()}
  torch.save(state, file, **options)


def store_pickle(folder, tensors, **options):
  write_pickle(folder / "pytorch_model.bin", tensors, **options)


FORMATS = {
  "sharded safetensors": functools.partial(
    store_sharded,
    "model.safetensors",
    lambda file, tensors: store(file.parent, tensors, file.name),
  ),
  "pickle": store_pickle,
  "old pickle": functools.partial(
    store_pickle, _use_new_zipfile_serialization=False
  ),
  "sharded pickles": functools.partial(
    store_sharded, "pytorch_model.bin", write_pickle
  ),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_holds_the_same(kind, dtype, folder):
  tensors = {
    name: array.astype(dtype) for name, array in stored(folder).items()
  }
  store(folder, tensors)
  _, want = reader.load(folder)
  np.testing.assert_array_equal(
    want["trunk"]["embed_VD"],
    tensors["model.embed_tokens.weight"].astype(np.float32),
  )
  (folder / "model.safetensors").unlink()
  FORMATS[kind](folder, tensors)
  _, got = reader.load(folder)
  assert_equal(got, want)
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(got))
  reader.check_policy(folder)


def test_safetensors_come_before_pickles(folder):
  _, want = reader.load(folder)
  zeros = {name: array * 0 for name, array in stored(folder).items()}
  FORMATS["pickle"](folder, zeros)
  FORMATS["sharded safetensors"](folder, zeros)
  _, got = reader.load(folder)
  assert_equal(got, want)


def test_names_of_a_bare_trunk(folder):
  _, want = reader.load(folder)
  tensors = {
    name.removeprefix("model."): array for name, array in stored(folder).items()
  }
  tensors["layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(2, np.float32)
  store(folder, tensors)
  _, got = reader.load(folder)
  assert_equal(got, want)
  del tensors["norm.weight"]
  store(folder, tensors)
  refused(
    folder, r"config.json: model.norm.weight \(trunk/norm_D\) is missing\.$"
  )


def test_a_tied_head_that_is_stored_has_its_familys_name(tmp_path):
  fields = {
    "model_type": "gpt_neox",
    "vocab_size": 7,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 12,
    "tie_word_embeddings": True,
  }
  config = families.read_config(fields)
  writer.save(tmp_path, config, random_policy(config))
  head = np.zeros((7, 8), np.float32)
  store(tmp_path, stored(tmp_path) | {"embed_out.weight": head})
  reader.load(tmp_path)
  store(tmp_path, stored(tmp_path) | {"lm_head.weight": head})
  refused(tmp_path, r"lm_head\.weight is unexpected")


# Fused tensors.


def test_parts_of_a_tensor_by_hand():
  q, k, v = table.parts(2, 1, 1)
  assert [part.index.tolist() for part in (q, k, v)] == [[0, 1], [2], [3]]
  a, b = table.alternating(2, (1, 2), axis=1)
  assert (a.axis, a.size, b.size) == (1, 6, 6)
  assert [a.index.tolist(), b.index.tolist()] == [[0, 3], [1, 2, 4, 5]]


FUSED = {
  # Columns one after the other, of a matrix stored in x out.
  "gpt2": (
    {"vocab_size": 5, "n_embd": 4, "n_layer": 3, "n_head": 2},
    "transformer.h.{}.attn.c_attn.weight",
    lambda whole: [whole[:, start : start + 4] for start in (0, 4, 8)],
    lambda matrix: matrix.reshape(4, 2, 2),
  ),
  # Four blocks of rows, each with some of q, v and k, stored out x in.
  "codegen": (
    {"vocab_size": 5, "n_embd": 8, "n_layer": 3, "n_head": 4, "rotary_dim": 2},
    "transformer.h.{}.attn.qkv_proj.weight",
    lambda whole: [
      whole.reshape(4, 3, 2, 8)[:, number].reshape(8, 8) for number in (0, 2, 1)
    ],
    lambda matrix: matrix.reshape(4, 2, 8).transpose(2, 0, 1),
  ),
}


@pytest.mark.parametrize("family", FUSED)
@pytest.mark.parametrize("placed", [False, True], ids=["host", "placed"])
def test_fused_tensors_are_taken_apart_and_put_together(
  family, placed, tmp_path
):
  fields, name, split, own = FUSED[family]
  config = families.read_config({"model_type": family, **fields})
  policy = random_policy(config)
  writer.save(tmp_path / "one", config, policy)
  tensors = stored(tmp_path / "one")
  place = mesh_lib.placement(tiny.mesh((1, 2, 2))) if placed else None
  _, again = reader.load(tmp_path / "one", place)
  assert_equal(again, policy)
  attention = again["trunk"]["blocks"]["attention"]
  for layer in range(config.layers):
    for part, parameter in zip(
      split(tensors[name.format(layer)]),
      ("q_DNH", "k_DKH", "v_DKH"),
      strict=True,
    ):
      np.testing.assert_array_equal(own(part), attention[parameter][layer])
  writer.save(tmp_path / "two", config, again)
  assert contents(tmp_path / "two") == contents(tmp_path / "one")


# Onto devices.


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2), (8, 1, 1)])
def test_a_placed_policy_is_the_same_and_each_device_has_its_part(
  shape, tmp_path
):
  config = dataclasses.replace(TINY, vocab_size=14)
  writer.save(tmp_path, config, random_policy(config))
  mesh = tiny.mesh(shape)
  got_config, got = reader.load(tmp_path, mesh_lib.placement(mesh))
  _, want = reader.load(tmp_path)
  assert got_config == config
  assert_equal(got, want)

  def check(leaf, sharding):
    assert leaf.dtype == np.float32
    assert leaf.sharding == sharding
    assert len(leaf.addressable_shards) == 8
    for shard in leaf.addressable_shards:
      assert shard.data.shape == sharding.shard_shape(leaf.shape)

  jax.tree.map(check, got, mesh_lib.shardings(mesh, want))
  q_LDNH = got["trunk"]["blocks"]["attention"]["q_DNH"]
  _, fsdp, tensor = shape
  assert q_LDNH.addressable_shards[0].data.shape == (
    *(3, 16 // fsdp, 4 // tensor, 6),
  )


def test_only_parts_are_asked_for(tmp_path, monkeypatch):
  """What is put on a device is never more than its part."""
  writer.save(tmp_path, TINY, random_policy(TINY))
  made, asked = jax.make_array_from_callback, []

  def make(shape, sharding, callback):
    def counted(index):
      part = callback(index)
      asked.append((part.shape, sharding.shard_shape(shape)))
      return part

    return made(shape, sharding, counted)

  monkeypatch.setattr(jax, "make_array_from_callback", make)
  reader.load(tmp_path, mesh_lib.placement(tiny.mesh((1, 8, 1))))
  assert len(asked) >= 3 * 8 * 4  # Layers, devices, matrices.
  assert all(part == shard for part, shard in asked)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 1031])
def test_threads_widen_as_one_would(rows, dtype):
  random = np.random.default_rng(0)
  stored = random.standard_normal((2**20 // rows + 1, rows), np.float32)
  piece = stored.astype(dtype).T
  got = reader._widen(piece)
  np.testing.assert_array_equal(got, piece.astype(np.float32))
  assert got.flags["C_CONTIGUOUS"]


def test_a_shape_compiles_once(tmp_path):
  writer.save(tmp_path, TINY, random_policy(TINY))
  reader._put_layer.cache_clear()
  _, policy = reader.load(tmp_path, mesh_lib.placement(tiny.mesh((1, 8, 1))))
  stacked = jax.tree.leaves(policy["trunk"]["blocks"])
  kinds = {(leaf.shape, leaf.sharding) for leaf in stacked}
  assert sum(
    reader._put_layer(sharding)._cache_size()
    for sharding in {sharding for _, sharding in kinds}
  ) == len(kinds)


@pytest.mark.slow
def test_the_host_never_holds_the_model(tmp_path):
  config = dataclasses.replace(
    TINY, width=128, ffn=512, layers=20, vocab_size=64
  )
  policy = random_policy(config)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(policy))
  largest = 128 * 512 * 4
  assert size > 60 * largest
  place = mesh_lib.placement(tiny.mesh((1, 8, 1)))
  writer.save(tmp_path / "one", config, policy)
  del policy

  def peak(act):
    act()  # What compiles is not measured.
    tracemalloc.start()
    try:
      made = act()
      return tracemalloc.get_traced_memory()[1], made
    finally:
      tracemalloc.stop()

  reading, (_, placed) = peak(lambda: reader.load(tmp_path / "one", place))
  writing, _ = peak(lambda: writer.save(tmp_path / "two", config, placed))
  # A tensor as stored, as it is here, and what its layers are known by.
  assert largest < reading < 10 * largest
  assert largest < writing < 10 * largest
  assert contents(tmp_path / "one") == contents(tmp_path / "two")


# One of two processes, each with two devices.
PROCESS = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
folder, port, process = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(process))
import numpy as np
from reft_jax.models.hf import read, write
from reft_jax.runtime import mesh as mesh_lib
mesh = mesh_lib.make_mesh(data=1, fsdp=2, tensor=2)
config, policy = read.load(f"{folder}/one", mesh_lib.placement(mesh))
_, whole = read.load(f"{folder}/one")
q_LDNH = policy["trunk"]["blocks"]["attention"]["q_DNH"]
assert len(jax.devices()) == 4 and not q_LDNH.is_fully_addressable
def check(leaf, array):
  assert len(leaf.addressable_shards) == 2
  for shard in leaf.addressable_shards:
    np.testing.assert_array_equal(shard.data, array[shard.index])
jax.tree.map(check, policy, whole)
write.save(f"{folder}/process-{process}", config, policy)
"""


@pytest.mark.slow
def test_several_processes_hold_their_parts(tmp_path):
  writer.save(tmp_path / "one", TINY, random_policy(TINY))
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", PROCESS, str(tmp_path), str(port), str(number)],
      cwd=pathlib.Path(__file__).parents[2],
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in range(2)
  ]
  try:
    for process in processes:
      _, said = process.communicate(timeout=200)
      assert process.returncode == 0, said
  finally:
    for process in processes:
      process.kill()
  for number in range(2):
    assert contents(tmp_path / f"process-{number}") == contents(
      tmp_path / "one"
    )


# Writing.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("placed", [False, True], ids=["host", "placed"])
def test_import_export_import_gives_the_same_bytes(dtype, placed, tmp_path):
  policy = random_policy(TINY)
  table_VD = policy["trunk"]["embed_VD"]
  # Of both types: the least above 0, the largest, and a 0 with a sign.
  table_VD[0, :3] = [9.2e-41, 3.38953138925e38, -0.0]
  options = {"dtype": dtype, "max_shard_bytes": 4000}
  writer.save(tmp_path / "new/one", TINY, policy, **options)
  place = mesh_lib.placement(tiny.mesh((1, 4, 2))) if placed else None
  config, again = reader.load(tmp_path / "new/one", place)
  assert config == TINY
  for leaf in () if placed else jax.tree.leaves(again):
    assert leaf.dtype == np.float32
    assert leaf.flags["C_CONTIGUOUS"]
    assert leaf.flags["WRITEABLE"]
  if dtype == "float32":
    assert_equal(again, policy)
  else:
    rounded = jax.tree.map(
      lambda leaf: leaf.astype(jnp.bfloat16).astype(np.float32), policy
    )
    assert_equal(again, rounded)
  first = np.asarray(again["trunk"]["embed_VD"])[0, :3]
  assert first[0] > 0
  assert np.signbit(first[2])
  writer.save(tmp_path / "two", config, again, **options)
  files = contents(tmp_path / "two")
  assert len(files) > 4
  assert files == contents(tmp_path / "new/one")
  fields = json.loads(files["config.json"])
  assert fields["dtype"] == dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_reads_and_writes_the_same_shards(dtype, tmp_path):
  policy = random_policy(TINY)
  extra = {"bos_token_id": 1, "eos_token_id": [5, 2], "pad_token_id": 3}
  writer.save(
    tmp_path / "ours",
    TINY,
    policy,
    extra=extra,
    dtype=dtype,
    max_shard_bytes=4000,
  )
  index = json.loads(
    (tmp_path / "ours/model.safetensors.index.json").read_text()
  )
  files = set(index["weight_map"].values())
  assert files == {
    f"model-{number:05d}-of-{len(files):05d}.safetensors"
    for number in range(1, len(files) + 1)
  }
  model, report = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "ours", dtype="auto", output_loading_info=True
  )
  assert not any(report.values())
  assert model.dtype == getattr(torch, dtype)
  for config in (model.config, model.generation_config):
    assert {name: getattr(config, name) for name in extra} == extra
  assert not model.generation_config.do_sample
  for name, tensor in model.state_dict().items():
    shard = safetensors.safe_open(
      tmp_path / "ours" / index["weight_map"][name], framework="pt"
    )
    assert torch.equal(shard.get_tensor(name), tensor)
  model.save_pretrained(tmp_path / "theirs", max_shard_size="4KB")
  theirs = json.loads(
    (tmp_path / "theirs/model.safetensors.index.json").read_text()
  )
  assert theirs["metadata"] == index["metadata"]
  assert theirs["weight_map"].keys() == index["weight_map"].keys()
  config, again = reader.load(tmp_path / "theirs")
  assert config == TINY
  assert_equal(again, reader.load(tmp_path / "ours")[1])


def test_a_file_is_as_large_as_it_may_be_and_no_larger(tmp_path):
  shapes = {"a": (3,), "b": (2,), "c": (9,), "d": (1,), "e": ()}
  tensor_files.write(
    tmp_path,
    shapes,
    "F32",
    lambda name: np.full(shapes[name], ord(name), np.float32),
    max_shard_bytes=20,
  )
  index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
  assert index["metadata"] == {"total_parameters": 16, "total_size": 64}
  found = {}
  for number, names in enumerate(("ab", "c", "de"), 1):
    file = f"model-{number:05d}-of-00003.safetensors"
    tensors = safetensors.numpy.load_file(tmp_path / file)
    assert "".join(sorted(tensors)) == names
    assert {index["weight_map"][name] for name in names} == {file}
    found |= tensors
  for name, shape in shapes.items():
    np.testing.assert_array_equal(
      found[name], np.full(shape, ord(name), np.float32)
    )


def test_files_of_the_model_before_are_removed(tmp_path):
  policy = random_policy(TINY)
  writer.save(tmp_path, TINY, policy, max_shard_bytes=4000)
  writer.save_value(tmp_path, TINY, random_value(TINY, "separate"))
  FORMATS["pickle"](tmp_path, {"a": np.zeros(1, np.float32)})
  (tmp_path / "tokenizer.json").write_text("kept")
  (tmp_path / "value/notes").write_text("kept")
  writer.save(tmp_path, TINY, policy)
  assert {
    str(file.relative_to(tmp_path))
    for file in tmp_path.rglob("*")
    if file.is_file()
  } == {
    *("config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "value/notes"),
  }


def test_generation_has_fields_of_its_own(tmp_path):
  writer.save(
    tmp_path,
    TIED,
    random_policy(TIED),
    extra={"eos_token_id": [5]},
    generation={"max_new_tokens": 9},
  )
  fields = json.loads((tmp_path / "generation_config.json").read_text())
  assert fields == {
    "bos_token_id": None,
    "eos_token_id": [5],
    "pad_token_id": None,
    "max_new_tokens": 9,
  }
  config = json.loads((tmp_path / "config.json").read_text())
  del fields["max_new_tokens"]
  assert config == config | fields


# Value functions.


def random_value(config, kind):
  network = networks.Networks(config)
  value = jax.device_get(network.init_value(random_policy(config), kind))
  value["head"]["w_D"] = np.linspace(-1, 1, config.width, dtype=np.float32)
  value["head"]["b"] = np.float32(0.25)
  if kind == "separate":
    value["trunk"]["norm_D"] = value["trunk"]["norm_D"] + 1
  return value


@pytest.mark.parametrize("kind", networks.VALUE_KINDS)
def test_values_can_be_had_from_what_is_written(kind, tmp_path):
  policy, value = random_policy(TINY), random_value(TINY, kind)
  writer.save(tmp_path, TINY, policy)
  writer.save_value(tmp_path, TINY, jax.device_put(value))
  head = safetensors.numpy.load_file(tmp_path / "value_head.safetensors")
  assert {name: array.shape for name, array in head.items()} == {
    "w_D": (16,),
    "b": (),
  }
  assert (tmp_path / "value").is_dir() == (kind == "separate")
  if kind == "shared":
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
  else:
    model, report = transformers.AutoModel.from_pretrained(
      tmp_path / "value", output_loading_info=True
    )
    assert not any(report.values())
  with torch.no_grad():
    hidden_BSD = model(
      torch.tensor(TOKENS_BS).long(), output_hidden_states=True
    ).hidden_states[-1]
  net = networks.Networks(TINY)
  own_BSD = net.hidden(
    value.get("trunk", policy["trunk"]), TOKENS_BS, LENGTHS_B
  )
  want_BS = net.values(value["head"], own_BSD)
  got_BS = hidden_BSD.numpy() @ head["w_D"] + head["b"]
  assert np.ptp(want_BS) > 1
  np.testing.assert_allclose(got_BS, want_BS, rtol=1e-4, atol=1e-4)


# What is read leniently.


def test_rope_defaults_follow_from_the_context(folder):
  edit_config(
    folder,
    max_position_embeddings=256,
    original_max_position_embeddings=64,
    rope_parameters={"rope_type": "yarn", "rope_theta": 1e4},
  )
  rope = reader.read_config(folder).rope
  assert (rope.factor, rope.original_max_positions) == (4.0, 64)
  np.testing.assert_allclose(rope.attention_factor, 0.1 * np.log(4) + 1)


# Classifiers.


def random_scorer(config):
  init = networks.Networks(config).init_scorer
  return jax.device_get(init(random_policy(config), jax.random.key(0)))


def test_transformers_opens_a_classifier_and_finds_the_same(tmp_path):
  scorer, pad = random_scorer(TINY), 12
  writer.save_classifier(
    tmp_path / "ours", TINY, scorer, extra={"pad_token_id": pad}
  )
  auto = transformers.AutoModelForSequenceClassification
  model, report = auto.from_pretrained(
    tmp_path / "ours", output_loading_info=True
  )
  assert not any(report.values())
  assert model.config.num_labels == 2
  assert model.config.id2label == {0: "incorrect", 1: "correct"}
  assert model.config.label2id == {"incorrect": 0, "correct": 1}

  lengths_B = np.int32([6, 2, 4, 1])
  tokens_BS = np.random.default_rng(0).integers(0, pad, (4, 7))
  inside_BS = np.arange(7)[None] < lengths_B[:, None]
  tokens_BS = np.where(inside_BS, tokens_BS, pad).astype(np.int32)
  with torch.no_grad():
    want_BC = model(
      torch.tensor(tokens_BS).long(),
      attention_mask=torch.tensor(inside_BS).long(),
    ).logits.softmax(-1)
  got_B = classifier.make_scores(networks.Networks(TINY))(
    scorer, tokens_BS, lengths_B
  )
  np.testing.assert_allclose(got_B, want_BC[:, 1], atol=1e-4)

  model.save_pretrained(tmp_path / "theirs")
  config, again = reader.load_classifier(tmp_path / "theirs")
  assert config == TINY
  assert_equal(again, scorer)


def test_classifiers_and_language_models_are_not_mixed_up(folder, tmp_path):
  refused(folder, "holds no classifier", reader.load_classifier)
  writer.save_classifier(tmp_path / "scorer", TIED, random_scorer(TIED))
  for load in (reader.load, reader.check_policy):
    refused(tmp_path / "scorer", "scorer holds a classifier", load)
  for model in (folder, tmp_path / "scorer"):
    reader.check(model)


def test_a_classifier_on_a_tied_trunk(tmp_path):
  scorer = random_scorer(TIED)
  writer.save_classifier(tmp_path, TIED, scorer)
  config, again = reader.load_classifier(tmp_path)
  assert config == TIED
  assert_equal(again, scorer)
  tensors = stored(tmp_path)
  assert "lm_head.weight" not in tensors
  store(tmp_path, tensors | {"score.weight": np.zeros((3, 8), np.float32)})
  message = r"score.weight \(score_DC\) has shape \(3, 8\) and not"
  for load in (reader.load_classifier, reader.check):
    refused(tmp_path, message, load)


# Mistakes.


def rope(**fields):
  return {"rope_parameters": fields}


LONGROPE = functools.partial(
  rope, rope_type="longrope", short_factor=[1.0, 2.0], long_factor=[3.0, 4.0]
)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"model_type": "rwkv"}, "model_type 'rwkv' is not supported.*llama"),
    ({"model_type": "absent"}, "model_type None is not supported"),
    ({"hidden_size": "absent"}, "the field 'hidden_size' is missing"),
    ({"hidden_act": "mish"}, "hidden_act 'mish' is not one of silu"),
    ({"num_key_value_heads": 3}, "heads=2 must be a multiple of kv_heads=3"),
    ({"quantization_config": {"bits": 4}}, "quantized"),
    (rope(rope_type="mrope"), "rope type 'mrope' is not one of default, line"),
    (rope(rope_type="linear"), "type 'linear' needs the field 'factor'"),
    ({"model_type": ["llama"]}, r"model_type \['llama'\] is not supported"),
    ({"hidden_act": ["silu"]}, "'hidden_act' .*must be text"),
    ({"num_hidden_layers": "5"}, "'num_hidden_layers' is '5' .*whole number"),
    ({"num_hidden_layers": 0}, "'num_hidden_layers' is 0 .*above 0"),
    ({"num_hidden_layers": True}, "'num_hidden_layers' is True .*whole number"),
    ({"hidden_size": 64.5}, "'hidden_size' is 64.5 .*whole number"),
    ({"hidden_size": None}, "the field 'hidden_size' is missing"),
    ({"rms_norm_eps": "x"}, "'rms_norm_eps' is 'x' .*must be a number"),
    ({"rms_norm_eps": True}, "'rms_norm_eps' is True .*must be a number"),
    ({"initializer_range": float("nan")}, "'initializer_range' is nan"),
    ({"tie_word_embeddings": 1}, "'tie_word_embeddings' is 1 .*true or false"),
    ({"rope_parameters": ["linear"]}, "'rope_parameters' .*object with fields"),
    ({"rope_parameters": []}, "'rope_parameters' .*object with fields"),
    (rope(rope_type=["linear"]), "'rope_parameters.rope_type' .*must be text"),
    (
      {"rope_parameters": None, "rope_scaling": {"factor": "2"}},
      "'rope_scaling.factor' is '2' .*number above 0",
    ),
    ({"rope_parameters": None, "rope_theta": 0}, "'rope_theta' is 0 .*above 0"),
    (LONGROPE(short_factor=[1.0, 2.0, 3.0]), "short_factor holds 3 .* hold 2"),
    (LONGROPE(long_factor=[]), "long_factor holds 0 numbers .* 2"),
    (LONGROPE(long_factor=["a"]), "'rope_parameters.long_factor'"),
    (LONGROPE(long_factor=2.0), "'rope_parameters.long_factor'"),
  ],
)
def test_configs_that_are_refused(fields, message, folder):
  edit_config(folder, **fields)
  refused(folder, message)


def test_all_that_is_wrong_with_the_tensors_is_listed_by_both_names(folder):
  tensors = stored(folder)
  del tensors["model.layers.0.self_attn.q_proj.weight"]
  tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(8, np.float32)
  tensors["model.norm.weight"] = np.zeros(9, np.float32)
  up = "model.layers.0.mlp.up_proj.weight"
  tensors[up] = tensors[up].astype(np.int8)
  store(folder, tensors)
  message = refused(folder, "do not fit config.json")
  for part in (
    "model.layers.0.self_attn.q_proj.weight (trunk/blocks/attention/q_DNH) "
    "is missing",
    "model.norm.weight (trunk/norm_D) has shape (9,) and not (8,)",
    f"{up} (trunk/blocks/mlp/up_DF) has type I8",
    "model.layers.0.self_attn.q_proj.bias is unexpected",
  ):
    assert part in message


def test_a_long_list_of_mistakes_is_cut(folder):
  store(folder, {"other": np.zeros(1, np.float32)})
  refused(folder, "and 7 more")


@pytest.mark.parametrize(
  "index",
  [
    {},
    {"weight_map": ["a"]},
    {"weight_map": {"lm_head.weight": 1}},
    {"weight_map": {"model.norm.weight": "../elsewhere"}},
  ],
)
def test_an_index_that_names_no_files_of_its_folder(index, folder):
  (folder / "model.safetensors").rename(folder.parent / "elsewhere")
  file = folder / "model.safetensors.index.json"
  file.write_text(json.dumps(index))
  message = refused(folder, "the field 'weight_map' must be")
  assert message.startswith(f"{file}: ")


def test_missing_files(folder):
  refused(folder / "nowhere", "nowhere/config.json does not exist")
  (folder / "model.safetensors").unlink()
  refused(folder, "neither model.safetensors nor pytorch_model.bin")
  index = {"weight_map": {"model.norm.weight": "model-1-of-2.safetensors"}}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  for load in (reader.load, reader.check):
    refused(folder, "model-1-of-2.safetensors cannot be read: it does", load)
  (folder / "config.json").write_text("{")
  refused(folder, "config.json cannot be read")
  (folder / "config.json").write_text("[]")
  refused(folder, "does not hold a JSON object")


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("load", [reader.load, reader.check])
@pytest.mark.parametrize(
  "damage",
  [
    lambda content: content[:-1],
    lambda content: content[: len(content) // 2],
    lambda content: content[:5],
    lambda content: b"",
    lambda content: b"<!DOCTYPE html>\n<html>\n" * 20,
    lambda content: b"\xff" * 8 + content[8:],
  ],
  ids=["a byte", "half", "most", "all", "a web page", "the start"],
)
def test_damaged_files(damage, load, file, folder):
  if file == "pytorch_model.bin":
    write_pickle(folder / file, stored(folder))
    (folder / "model.safetensors").unlink()
  content = (folder / file).read_bytes()
  (folder / file).write_bytes(damage(content))
  refused(folder, f"{file} cannot be read: .+; fetch it again", load)


def test_a_file_that_is_cut_while_it_is_read(folder):
  tensors = tensor_files.find(folder)
  file = folder / "model.safetensors"
  file.write_bytes(file.read_bytes()[:-4])
  last = max(tensors, key=lambda name: tensors[name].read.args[1])
  refused(folder, "it has become shorter", lambda _: tensors[last].read())


class Hostile:
  """A pickle that, read as any other, makes a file."""

  def __init__(self, file):
    self._file = file

  def __reduce__(self):
    return pathlib.Path.touch, (self._file,)


def test_pickles_run_nothing(folder, tmp_path):
  (folder / "model.safetensors").unlink()
  mark = tmp_path / "was-here"
  torch.save({"lm_head.weight": Hostile(mark)}, folder / "pytorch_model.bin")
  refused(folder, "pytorch_model.bin holds more than tensors and could run")
  assert not mark.exists()
  torch.load(folder / "pytorch_model.bin", weights_only=False)
  assert mark.exists()


@pytest.mark.parametrize(
  "content", [[1], {"step": 3}, {1: torch.zeros(1)}], ids=repr
)
def test_pickles_of_something_else(content, folder):
  (folder / "model.safetensors").unlink()
  torch.save(content, folder / "pytorch_model.bin")
  refused(folder, "something else than tensors by their names")


def test_a_pickle_without_torch(folder, monkeypatch):
  write_pickle(folder / "pytorch_model.bin", stored(folder))
  (folder / "model.safetensors").unlink()
  monkeypatch.setitem(sys.modules, "torch", None)
  refused(folder, "pytorch_model.bin is a pickle, .*pip install torch")


def test_a_pickles_tensors_of_other_types(folder):
  tensors = stored(folder)
  tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int8)
  write_pickle(folder / "pytorch_model.bin", tensors)
  (folder / "model.safetensors").unlink()
  refused(folder, r"model.norm.weight \(trunk/norm_D\) has type torch.int8")
