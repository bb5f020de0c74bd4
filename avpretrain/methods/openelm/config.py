"""What can be configured of a language model: sizes, text, loss. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from avpretrain.config.model import require
from avpretrain.config.scaling import LayerScaling, LayerSizes
from avpretrain.config.text import PackConfig
from avpretrain.config.train import MECHANICS, EngineConfig, LengthConfig, OptimConfig, RunConfig, mechanics

MAX_VOCABULARY = 1 << 22
MAX_SIZE = 1 << 17
"""Largest width, hidden width and context; a config of a stranger's may say anything, and sizes become memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageModelShape:
    """What a model is built from, as it lies beside its weights: lists, not the formula that they came from."""

    vocabulary: int
    """Tokens."""
    context: int
    """Tokens of a training window; generation stops there."""
    width: int
    """Of the residual stream, in all blocks."""
    head_width: int
    """Of one head, in all blocks."""
    heads_per_group: int
    """Query heads that share a key and value head."""
    heads: tuple[int, ...]
    """Query heads of each block."""
    hidden: tuple[int, ...]
    """Width of the MLP's hidden layer in each block."""
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        require(1 <= self.vocabulary <= MAX_VOCABULARY, f"vocabulary must lie in [1, {MAX_VOCABULARY}]")
        for name in ("context", "width", "head_width"):
            value = getattr(self, name)
            require(1 <= value <= MAX_SIZE, f"{name} must lie in [1, {MAX_SIZE}], got {value}")
        require(self.head_width % 2 == 0, f"head_width must be even, got {self.head_width}")
        require(1 <= self.heads_per_group <= 1024, f"heads_per_group must lie in [1, 1024], got {self.heads_per_group}")
        require(self.rope_base > 1, f"rope_base must be above 1, got {self.rope_base}")
        count = len(self.heads)
        require(count == len(self.hidden), f"heads has {count} entries and hidden {len(self.hidden)}; one a block each")
        require(1 <= count <= 1024, f"heads needs an entry a block, 1 to 1024 of them, got {count}")
        for heads, hidden in zip(self.heads, self.hidden, strict=True):
            divides = heads >= 1 and heads % self.heads_per_group == 0
            require(divides, f"heads must be multiples of heads_per_group {self.heads_per_group}, got {heads}")
            require(
                heads * self.head_width <= MAX_SIZE, f"{heads} heads of {self.head_width} are wider than {MAX_SIZE}"
            )
            require(1 <= hidden <= MAX_SIZE, f"hidden must lie in [1, {MAX_SIZE}], got {hidden}")

    @property
    def kv_heads(self) -> tuple[int, ...]:
        """Key and value heads of each block."""
        return tuple(heads // self.heads_per_group for heads in self.heads)


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageModelConfig:
    """The model: a stack of causal blocks over tied embeddings."""

    vocabulary: int = 0
    """Tokens; 0 = those of the tokenizer."""
    context: int = 2048
    """Tokens of a training window."""
    width: int = 1280
    """Of the residual stream."""
    depth: int = 16
    """Blocks."""
    head_width: int = 64
    heads_per_group: int = 4
    """Query heads that share a key and value head; 1 = every query head has its own."""
    scaling: LayerScaling = field(default_factory=lambda: LayerScaling(divisor=256))
    """Heads and hidden widths by block, as multipliers of the first and the last; equal ones make all blocks alike."""
    heads: tuple[int, ...] = ()
    """Query heads of each block in place of what `scaling` gives."""
    hidden: tuple[int, ...] = ()
    """Hidden width of each block in place of what `scaling` gives."""
    rope_base: float = 10_000.0
    """Of the rotary positions' wavelengths."""

    def __post_init__(self) -> None:
        require(self.vocabulary >= 0, f"vocabulary must not be negative, got {self.vocabulary}")
        require(1 <= self.depth <= 1024, f"depth must lie in [1, 1024], got {self.depth}")
        for name in ("heads", "hidden"):
            count = len(getattr(self, name))
            require(count in (0, self.depth), f"{name} has {count} entries, but depth is {self.depth}")
        self.shape(self.vocabulary or 1)

    @property
    def sizes(self) -> LayerSizes:
        """Heads and hidden widths of each block."""
        scaled = self.scaling.sizes(self.width, self.depth, self.head_width, self.heads_per_group)
        return LayerSizes(self.heads or scaled.heads, self.hidden or scaled.hidden)

    def shape(self, vocabulary: int | None = None) -> LanguageModelShape:
        """What the model is built from.

        Args:
            vocabulary: in place of the config's.
        """
        sizes = self.sizes
        return LanguageModelShape(
            vocabulary=self.vocabulary if vocabulary is None else vocabulary,
            context=self.context,
            width=self.width,
            head_width=self.head_width,
            heads_per_group=self.heads_per_group,
            heads=sizes.heads,
            hidden=sizes.hidden,
            rope_base=self.rope_base,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig(PackConfig):
    """Where the text comes from, and how it is packed if it is not yet."""

    shards: tuple[str, ...] = mechanics(())
    """Folders of packed tokens (see `avpretrain tokens`); or text files and folders of them, which are packed once into
    a cache. What counts is what they hold."""
    split: str = "train"
    """Which split to train on."""
    held_out: str = mechanics("val")
    """Split whose perplexity is measured at checkpoints, where the data have it; empty = none is."""
    held_out_windows: int = mechanics(256)
    """Windows of it, from its beginning, that are measured at checkpoints; 0 = all."""
    mask_documents: bool = False
    """A token sees tokens of its own document alone; false = all before it in its window."""

    def __post_init__(self) -> None:
        PackConfig.__post_init__(self)
        require(bool(self.split), "split must name a split")
        require(self.held_out_windows >= 0, f"held_out_windows must not be negative, got {self.held_out_windows}")


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenELMConfig(EngineConfig):
    """Everything a training run of a language model is made of."""

    method: str = "openelm"
    init: str = ""
    """Run folder, checkpoint or imported model whose weights a fresh run starts from; empty = all start afresh."""
    z_loss: float = 1e-4
    """Weight of the squared logarithm of the softmax's normaliser, which keeps logits from drifting."""
    average: int = 5
    """The final model is the mean of so many of the last checkpoints; 1 = the last one."""
    schedule: LengthConfig = field(default_factory=LengthConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: TextConfig = field(default_factory=TextConfig)
    model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(keep_checkpoints=5), metadata={MECHANICS: True})

    def __post_init__(self) -> None:
        require(self.z_loss >= 0, f"z_loss must not be negative, got {self.z_loss}")
        require(self.average >= 1, f"average must be at least 1, got {self.average}")
        kept = self.run.keep_checkpoints
        require(
            kept == 0 or self.average <= kept,
            f"average {self.average} needs as many checkpoints, but run.keep_checkpoints is {kept}",
        )
