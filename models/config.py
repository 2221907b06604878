"""ModelConfig: every switch of every supported family.

The letters are the same in the whole repository: B sequences, S slots,
V vocabulary, D width, F feed-forward, N query heads, K key-value heads,
H head size, L layers. Parameters alone also have: E width of the embeddings, M
learned positions, R rank of an adapter, C classes of a classifier's head.
"""

import dataclasses
import re

from reft_jax.models import errors

CLASSES = ("incorrect", "correct")
ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
_CHOICES = {
  "norm": ("rms", "layer"),
  "norm_place": ("pre", "post", "both", "sum"),
  "parallel": ("none", "shared_norm", "own_norms"),
  "qk_norm": ("none", "head", "whole"),
}


@dataclasses.dataclass(frozen=True)
class RopeConfig:
  """Rotary positions. A field that a kind does not use keeps its default."""

  kind: str = "default"  # One of ROPE_KINDS.
  theta: float = 10000.0  # The base of the wavelengths.
  # By how much the context was extended (linear, dynamic, llama3, yarn), and
  # what it was before (llama3, yarn, longrope).
  factor: float = 1.0
  original_max_positions: int = 0
  attention_factor: float = 1.0  # Of cosine and sine (yarn, longrope).
  # llama3: wavelengths above original_max_positions / low_freq_factor are
  # scaled in full, those below original_max_positions / high_freq_factor not.
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  # yarn: frequencies with more turns than beta_fast over the original context
  # are unchanged, those with fewer than beta_slow scaled in full. The bounds of
  # the ramp between them are rounded to whole dimensions if `truncate`.
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True
  # longrope: a divisor for each frequency, for rows within the original context
  # and for longer ones.
  short_factor: tuple[float, ...] = ()
  long_factor: tuple[float, ...] = ()
  size: int | None = None  # How many first coordinates of a head; None: all.
  # Whether pairs are coordinates 2r and 2r + 1 (CodeGen) instead of r and
  # r + size / 2.
  interleaved: bool = False


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder's architecture; hashable, so it can be static under jit."""

  vocab_size: int  # V.
  width: int  # D, the size of the residual stream.
  layers: int  # L.
  heads: int  # N, query heads.
  kv_heads: int  # K, key-value heads; each serves N / K query heads.
  head_size: int  # H; need not be width / heads.
  ffn: int  # F, the inner size of the feed-forward layer.
  family: str = "llama"  # The architecture's `model_type` in config.json.
  max_positions: int = 2048  # The length of the model's context.
  init_scale: float = 0.02  # Standard deviation of initial weights.

  # E, where the embeddings' width is not the stream's and they are projected to
  # it and back (OPT-350m); None: D.
  embed_size: int | None = None
  # Multiplies embeddings, rounded to the compute dtype (Gemma).
  embed_scale: float = 1.0
  tied_head: bool = False  # Whether the LM head is the embedding table.
  head_bias: bool = False  # Whether the LM head has a bias.
  logit_cap: float | None = None  # c in c tanh(logits / c); None: no cap.

  # Rotary positions; None: learned ones, added to the embeddings.
  rope: RopeConfig | None = RopeConfig()
  # Those of layers with a window, where they differ (Gemma 3).
  local_rope: RopeConfig | None = None
  # For each layer, whether it rotates (SmolLM3); (): all do.
  rope_layers: tuple[bool, ...] = ()
  position_offset: int = 0  # The row of learned position 0 (OPT: 2).
  # For each layer, how many tokens a query attends to, itself included; 0: no
  # limit. (): no layer has a window.
  windows: tuple[int, ...] = ()

  norm: str = "rms"  # Or "layer", which also subtracts the mean and has a bias.
  norm_eps: float = 1e-5  # Added to the mean square.
  norm_offset: float = 0.0  # Added to stored scales (Gemma: 1).
  norm_affine: bool = True  # Whether norms have parameters.
  # Where a block's norms are: "pre", before its layers; "post", on their
  # outputs (OLMo 2); "both" (Gemma 2); or "sum", on the stream after each
  # addition (OPT-350m).
  norm_place: str = "pre"
  final_norm: bool = True  # Whether a norm follows the last block.
  # Whether attention and the feed-forward layer read the same stream: "none",
  # they run in sequence; "shared_norm", with one norm for both (CodeGen);
  # "own_norms" (GPT-NeoX).
  parallel: str = "none"

  qkv_bias: bool = False  # Whether the q, k and v projections have biases.
  o_bias: bool = False  # Whether the output projection has one.
  # Norm of queries and keys before rotation: "none", of each "head" (Qwen 3),
  # or of all heads' coordinates together, "whole" (OLMo 2).
  qk_norm: str = "none"
  score_scale: float | None = None  # Of attention scores; None: H ** -0.5.
  scale_by_layer: bool = False  # Whether layer l's are divided by l, from 1.
  score_cap: float | None = None  # c in c tanh(scores / c); None: no cap.

  # Whether the feed-forward layer is down(act(gate x) * up x) instead of
  # down(act(up x)).
  gated: bool = True
  mlp_bias: bool = False  # Whether its projections have biases.
  activation: str = "silu"  # Its name in config.json.

  def __post_init__(self) -> None:
    for letter, size in self.sizes.items():
      _require(
        size >= 1,
        f"the size of {letter} is {size}; every size must be at least 1.",
      )
    _require(
      self.heads % self.kv_heads == 0,
      f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}.",
    )
    for name, choices in _CHOICES.items():
      _require(
        getattr(self, name) in choices,
        f"{name}={getattr(self, name)!r} is not one of {', '.join(choices)}.",
      )
    _require(
      self.parallel == "none" or self.norm_place == "pre",
      f"parallel={self.parallel} needs norm_place=pre, not {self.norm_place}.",
    )
    for name in ("windows", "rope_layers"):
      count = len(getattr(self, name))
      _require(
        count in (0, self.layers),
        f"{name} lists {count} layers, but the model has {self.layers}.",
      )
    for rope in (self.rope, self.local_rope):
      if rope is not None:
        self._check_rope(rope)

  def _check_rope(self, rope: RopeConfig) -> None:
    size = self.turning(rope)
    _require(
      size % 2 == 0 and 0 < size <= self.head_size,
      f"positions rotate {size} of a head's {self.head_size} coordinates; "
      "that number must be even, and above 0.",
    )
    for name in ("short_factor", "long_factor"):
      count = len(getattr(rope, name))
      _require(
        rope.kind != "longrope" or count == size // 2,
        f"rope's {name} holds {count} numbers but must hold {size // 2}: "
        f"one for each pair of the {size} rotated coordinates.",
      )

  def turning(self, rope: RopeConfig) -> int:
    """How many of a head's coordinates are rotated."""
    return self.head_size if rope.size is None else rope.size

  @property
  def outer(self) -> str:
    """The letter of the embeddings' width: D, or E where they are projected."""
    return "D" if self.embed_size is None else "E"

  @property
  def embed_name(self) -> str:
    """The name of the embedding table, such as embed_VD."""
    return f"embed_V{self.outer}"

  @property
  def head_name(self) -> str:
    """The name of the LM head where it is not the embedding table."""
    return f"lm_{self.outer}V"

  @property
  def sizes(self) -> dict[str, int]:
    """The size of each axis letter that a parameter of this model can have."""
    sizes = {
      "V": self.vocab_size,
      "D": self.width,
      "F": self.ffn,
      "N": self.heads,
      "K": self.kv_heads,
      "H": self.head_size,
      "C": len(CLASSES),
    }
    if self.embed_size is not None:
      sizes["E"] = self.embed_size
    if self.rope is None:
      sizes["M"] = self.max_positions + self.position_offset
    return sizes

  def shape(self, name: str) -> tuple[int, ...]:
    """The shape of one layer's parameter, from the letters of its name."""
    return tuple(self.sizes[letter] for letter in letters(name))


def _require(holds: bool, message: str) -> None:
  if not holds:
    raise errors.UnsupportedModelError(message)


def letters(name: str) -> str:
  """The axis letters at the end of a parameter's name; '' if there are none."""
  match = re.search(r"_([VDEFNKHMRC]+)$", name)
  return match.group(1) if match else ""
