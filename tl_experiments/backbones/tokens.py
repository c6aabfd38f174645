"""A backbone's output before pooling, as tokens, whichever way its family lays it out."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from tl_experiments.errors import ConfigError

# of forward_head without pooling: (n, tokens, dim), (n, dim, height, width) or (n, height, width, dim)
TokenFormat = Literal["NLC", "NCHW", "NHWC"]


def remove_pooling(net: nn.Module, name: str) -> None:
    """Take the pooling out of a timm model whose weights are loaded, with the parameters that only it had.

    Raises:
        ConfigError: The family cannot do without.
    """
    try:
        net.reset_classifier(0, "")  # type: ignore[operator]
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise _no_tokens(name, str(error) or type(error).__name__) from None


def token_format(net: nn.Module, features: Tensor, dim: int, name: str) -> TokenFormat:
    """How ``features``, a model's output without pooling, is laid out; ``dim`` is the size of a token.

    Raises:
        ConfigError: It is not a sequence or a map of tokens of that size.
    """
    shape = features.shape
    if features.ndim == 3 and shape[2] == dim:
        return "NLC"
    if features.ndim == 4 and dim in (shape[1], shape[3]):
        said = str(getattr(net, "output_fmt", "NCHW"))  # decides only where a map is as wide as its tokens
        return "NHWC" if shape[3] == dim and (shape[1] != dim or said.endswith("NHWC")) else "NCHW"
    raise _no_tokens(name, f"its output is of shape {tuple(shape)}")


def as_tokens(features: Tensor, layout: TokenFormat) -> Tensor:
    """A model's output without pooling as ``(n, tokens, dim)``."""
    match layout:
        case "NLC":
            return features
        case "NCHW":
            return features.flatten(2).transpose(1, 2)
        case "NHWC":
            return features.flatten(1, 2)


def _no_tokens(name: str, reason: str) -> ConfigError:
    return ConfigError(
        "head", f"attention_pool needs tokens, and {name} gives none ({reason})", "choose another head or backbone"
    )
