"""Choices of the group ``head``. Defaults are those of ``conf/head/``: a label shows what differs from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tl_experiments.config.ranges import require


@dataclass(frozen=True, kw_only=True)
class _HeadOptions:
    """What every head has.

    Args:
        dropout: Share of the units set to zero in training, in [0, 1).
    """

    dropout: float = 0.0
    reads_tokens: ClassVar[bool] = False  # the backbone's tokens instead of its pooled features
    is_solved: ClassVar[bool] = False  # from the features at once, without epochs

    def __post_init__(self) -> None:
        require(0 <= self.dropout < 1, "dropout", self.dropout, "[0, 1)")


@dataclass(frozen=True, kw_only=True)
class Linear(_HeadOptions):
    """One linear layer on the pooled features; dropout acts on the features."""

    name: Literal["linear"] = "linear"


@dataclass(frozen=True, kw_only=True)
class MLP(_HeadOptions):
    """A multilayer perceptron on the pooled features; dropout acts after each hidden layer's activation.

    Args:
        hidden_sizes: Units of each hidden layer, one or more.
        activation: After each hidden layer.
        layer_norm: Whether a LayerNorm stands before each activation. There is no BatchNorm to choose: a probe keeps
            running statistics as they are, and a new head's are of no data.
    """

    name: Literal["mlp"] = "mlp"
    hidden_sizes: tuple[int, ...] = (512,)
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    layer_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = len(self.hidden_sizes) > 0 and min(self.hidden_sizes) > 0
        require(ok, "hidden_sizes", list(self.hidden_sizes), "one or more numbers of 1 or more")


@dataclass(frozen=True, kw_only=True)
class Cosine(_HeadOptions):
    """A cosine classifier (Gidaris & Komodakis, 2018; Chen et al., 2019); dropout acts on the features.

    Args:
        temperature: Cosines are divided by it; above 0. The start, where it is learnt.
        learn_temperature: Whether it is trained with the head.
    """

    name: Literal["cosine"] = "cosine"
    temperature: float = 0.1
    learn_temperature: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, "temperature", self.temperature, "a number above 0")


@dataclass(frozen=True, kw_only=True)
class AttentionPool(_HeadOptions):
    """A learnt query attends over the backbone's tokens, then a linear layer; dropout acts between the two.

    Args:
        num_heads: Attention heads; they divide the backbone's feature dimension.
    """

    name: Literal["attention_pool"] = "attention_pool"
    num_heads: int = 8
    reads_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_heads > 0, "num_heads", self.num_heads, "1 or more")


@dataclass(frozen=True, kw_only=True)
class _PathOptions:
    """What heads with a path of penalties have: each is solved, val chooses one (at a tie the strongest), test is read
    once. Features are standardised by the training images, with a floor under the deviation.

    Args:
        penalties: Strengths of the L2 penalty on the weights (never on biases), above 0.
    """

    penalties: tuple[float, ...]
    reads_tokens: ClassVar[bool] = False
    is_solved: ClassVar[bool] = True

    def __post_init__(self) -> None:
        ok = len(self.penalties) > 0 and min(self.penalties) > 0
        require(ok, "penalties", list(self.penalties), "one or more numbers above 0")

    @property
    def path(self) -> tuple[str, tuple[float, ...]]:
        """What is tried, and its values."""
        return "penalty", self.penalties


@dataclass(frozen=True, kw_only=True)
class Ridge(_PathOptions):
    """Least squares on one-hot labels with an L2 penalty (Hoerl & Kennard, 1970).

    It minimises ``|XW + b - Y|^2 + n * penalty * |W|^2`` over n images.
    """

    name: Literal["ridge"] = "ridge"
    penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class Logistic(_PathOptions):
    """Softmax regression to convergence by L-BFGS: mean cross-entropy + ``penalty / 2 * |W|^2``."""

    name: Literal["logistic"] = "logistic"
    penalties: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True, kw_only=True)
class KNN:
    """Weighted votes of the nearest training images by cosine (Wu et al., 2018): no parameter is trained.

    Args:
        neighbours: Numbers of neighbours to try, 1 or more each; val chooses one.
        temperature: A neighbour's vote weighs ``exp(cosine / temperature)``; above 0.
    """

    name: Literal["knn"] = "knn"
    neighbours: tuple[int, ...] = (1, 5, 10, 20)
    temperature: float = 0.07
    reads_tokens: ClassVar[bool] = False
    is_solved: ClassVar[bool] = True

    def __post_init__(self) -> None:
        ok = len(self.neighbours) > 0 and min(self.neighbours) > 0
        require(ok, "neighbours", list(self.neighbours), "one or more numbers of 1 or more")
        require(self.temperature > 0, "temperature", self.temperature, "a number above 0")

    @property
    def path(self) -> tuple[str, tuple[float, ...]]:
        """What is tried, and its values."""
        return "neighbours", self.neighbours


SolvedHead = Ridge | Logistic | KNN
Head = Linear | MLP | Cosine | AttentionPool | Ridge | Logistic | KNN
