"""The engine: what turns questions into completions on the devices."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from reft_jax import types
from reft_jax.config import schema
from reft_jax.data import batches, encode
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.models import networks as networks_lib
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.sampling import sampler as sampler_lib
from reft_jax.tasks import grader as grader_lib


@dataclasses.dataclass(frozen=True)
class Engine:
  """What all sampling of a run shares.

  Attributes:
    config: the run's settings.
    networks: the pure functions of the model.
    mesh: the learner's devices, where rollouts end up.
    sampling_mesh: the same devices, in the layout that decodes soonest; the
      learner's mesh itself where the sampler has no layout of its own.
    tokenizer: ids to text and back.
    grader: completions to grades.
    prompt_slots: P; one width for all prompts, so one compilation.
  """

  config: schema.Config
  networks: networks_lib.Networks
  mesh: jax.sharding.Mesh
  sampling_mesh: jax.sharding.Mesh
  tokenizer: tokenizer_lib.Tokenizer
  grader: grader_lib.Grader
  prompt_slots: int

  def publish(self, policy: Any) -> Any:
    """A policy's fp32 shards as what the sampler reads, where it reads it."""
    with jax.set_mesh(self.sampling_mesh):
      return self._publish(policy)

  @functools.cached_property
  def _publish(self) -> Callable[[Any], Any]:
    return jax.jit(self.networks.publish)

  def make_sampler(
    self, *, temperature: float, top_k: int = 0, samples: int = 1
  ) -> sampler_lib.Sampler:
    """A sampler of the run's responses, which compiles on its first call."""
    return sampler_lib.Sampler(
      self.networks,
      response_tokens=self.config.data.max_response_tokens,
      eos_ids=self.tokenizer.eos_ids,
      pad_id=self.tokenizer.pad_id,
      temperature=temperature,
      top_k=top_k,
      samples=samples,
    )

  def sample(
    self,
    sampler: sampler_lib.Sampler,
    published: Any,
    prompts: types.Prompts,
    key: jax.Array,
    on_ended: sampler_lib.OnEnded,
  ) -> types.Rollout:
    """A sampler's rollout, on the learner's mesh."""
    if self.sampling_mesh is self.mesh:
      return sampler(published, prompts, key, on_ended=on_ended)
    bits = jax.device_get(jax.random.key_data(key))
    with jax.set_mesh(self.sampling_mesh):
      # A key, too, belongs to the mesh on which it was made.
      key = jax.random.wrap_key_data(bits)
      sampled = sampler(published, prompts, key, on_ended=on_ended)
    return mesh_lib.put_batch(self.mesh, sampled)

  def prompts(
    self,
    examples: Sequence[encode.Example],
    requests: Sequence[int],
    batch: int,
  ) -> types.Prompts:
    """Prompts where they are answered; `requests` names the random streams."""
    host = batches.prompts(
      [example.prompt for example in examples],
      requests,
      batch=batch,
      slots=self.prompt_slots,
      pad_id=self.tokenizer.pad_id,
    )
    return mesh_lib.put_batch(self.sampling_mesh, host)


def prompt_slots(examples: Sequence[encode.Example]) -> int:
  """The longest prompt, rounded up."""
  return batches.round_up(max(len(each.prompt) for each in examples))
