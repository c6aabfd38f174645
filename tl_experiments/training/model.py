"""Backbone + head, and the modes that a phase asks for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tl_experiments.backbones.timm_backbone import TimmBackbone
from tl_experiments.strategies.apply import modules_held_in_eval, set_requires_grad
from tl_experiments.types import Batch, ModelLayout, Phase

_MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class TransferModel(nn.Module):
    """uint8 images to logits; frozen parts stay frozen whatever mode the model is put in.

    Args:
        backbone: Images to features.
        head: Features to logits.
        layout: Of both, with the parameter names of this module.
        memory_format: ``contiguous`` or ``channels_last``, of convolution weights and images.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: TimmBackbone, head: nn.Module, layout: ModelLayout, memory_format: str = "contiguous"
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.layout = layout
        self.memory_format = memory_format
        self._held_in_eval: list[nn.Module] = []
        for name, values in (("mean", backbone.input_spec.mean), ("std", backbone.input_spec.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1) * 255, persistent=False)
        wanted = _MEMORY_FORMATS[memory_format]
        if any(p.ndim == 4 and not p.is_contiguous(memory_format=wanted) for p in backbone.parameters()):
            backbone.to(memory_format=wanted)

    def forward(self, image: Tensor) -> Tensor:
        """Images ``(n, channels, size, size)`` in [0, 255] to logits ``(n, n_classes)``; normalised here."""
        return self.head(self.features(image))

    def features(self, image: Tensor) -> Tensor:
        """What the head reads of images ``(n, channels, size, size)`` in [0, 255]."""
        normalised = (image.to(self.mean.dtype) - self.mean) / self.std
        return self.backbone(normalised.contiguous(memory_format=_MEMORY_FORMATS[self.memory_format]))

    def logits(self, batch: Batch) -> Tensor:
        """Those of a batch of images."""
        return self(batch["image"])

    def begin(self, phase: Phase) -> None:
        """Freeze and unfreeze as ``phase`` says, from now on."""
        set_requires_grad(self, phase)
        self._held_in_eval = modules_held_in_eval(self, self.layout, phase)
        self.train(self.training)

    def train(self, mode: bool = True) -> TransferModel:
        """Like ``nn.Module.train``, except that frozen parts stay in eval mode."""
        super().train(mode)
        for module in self._held_in_eval:
            nn.Module.train(module, False) if module is self else module.eval()  # itself, where nothing trains
        return self
