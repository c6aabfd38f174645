"""What crosses the layers of the package: plain frozen data, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NotRequired, Protocol, TypedDict

if TYPE_CHECKING:
    from torch import Tensor

NormStats = Literal["update", "frozen"]


@dataclass(frozen=True)
class Block:
    """One step of depth of a model: a residual block, a transformer layer, the stem, the head.

    Args:
        name: Short name, unique in its layout, for example ``blocks.3``.
        parameters: Parameter name in the model -> number of elements, in the order of the model.
        norms: Those of its parameters that belong to a normalisation layer.
    """

    name: str
    parameters: Mapping[str, int]
    norms: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        """Number of elements in the block's parameters."""
        return sum(self.parameters.values())


@dataclass(frozen=True)
class ModelLayout:
    """A backbone's blocks from the input to the output, then the head; each parameter stands in exactly one.

    Args:
        blocks: Of the backbone.
        head: What is always new.
        notes: What a reader of the results should know about the blocks, in whole sentences.
    """

    blocks: tuple[Block, ...]
    head: Block
    notes: tuple[str, ...] = ()

    @property
    def all_blocks(self) -> tuple[Block, ...]:
        """The blocks of the backbone, then the head."""
        return (*self.blocks, self.head)

    def names(self) -> set[str]:
        """Every parameter name of the model."""
        return {name for block in self.all_blocks for name in block.parameters}

    def trained_blocks(self, phase: Phase) -> set[str]:
        """Names of the blocks of which ``phase`` trains something."""
        return {block.name for block in self.all_blocks if phase.lr_multiplier.keys() & block.parameters.keys()}


@dataclass(frozen=True)
class Phase:
    """What trains from one moment on: everything a fit needs to know about freezing.

    Args:
        start_fraction: When the phase begins, as a share of the run's optimizer steps, in [0, 1).
        lr_multiplier: Parameter name -> multiple of the base learning rate. A parameter that is not named is frozen.
        norm_stats: Whether running statistics in the trained blocks are updated (``update``) or used as they
            are (``frozen``). Blocks that do not train never update theirs.
    """

    start_fraction: float
    lr_multiplier: Mapping[str, float]
    norm_stats: NormStats = "update"


class Batch(TypedDict):
    """One batch of ``n`` images, or of what a frozen prefix makes of them.

    Args:
        image: uint8 ``(n, channels, size, size)``; float32 of the same range where images are mixed.
        label: int64 ``(n,)``.
        index: Positions in the source, int64 ``(n,)``.
        target: Share of each class, float32 ``(n, n_classes)``, where labels are mixed; it takes the label's place.
        whole: Labels of the batch over all processes, int64 ``(N,)``, where this is one process's share of it.
        activations: What crosses the cut after the frozen prefix, ``(n, ...)`` each; then ``image`` is missing.
    """

    image: NotRequired[Tensor]
    activations: NotRequired[tuple[Tensor, ...]]
    label: Tensor
    index: Tensor
    target: NotRequired[Tensor]
    whole: NotRequired[Tensor]


class Objective(Protocol):
    """What a run minimises. Objectives of later kinds may own parameters, so it is built once a run."""

    def loss(self, model: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
        """The mean over a batch, a scalar in float32."""
        ...

    def total_weight(self, batch: Batch) -> Tensor | float:
        """What the mean divides by: the batch's loss is that of its parts, each by its share of this."""
        ...


@dataclass(frozen=True)
class DataSpec:
    """What the rest of the tool knows about a dataset.

    Args:
        classes: Class names; a label is a position in this tuple, and only names leave the process.
        sizes: Split (``train``, ``val``, ``test``) -> number of images used.
        fingerprint: sha256 over names and contents of all images and over the splits' definition.
        notes: What a reader of the results must know, for example that no test split was found.
        channels: Of an image.
        skipped: Id -> reason, of images that were left out because they cannot be decoded.
    """

    classes: tuple[str, ...]
    sizes: Mapping[str, int]
    fingerprint: str
    notes: tuple[str, ...] = ()
    channels: int = 3
    skipped: Mapping[str, str] = field(default_factory=dict)
