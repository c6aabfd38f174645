"""A model that is divided over the processes: each holds its share of every parameter, of its gradient and of the
optimizer's state (FSDP2 of torch; Zhao et al., 2023).

The shares of a block are put together while it computes, forward and backward. Names, modules and everything that asks
for them stay as they are; a tensor of the state is a ``DTensor``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tl_experiments.training.model import TransferModel

_MOST_OF_A_BLOCK = 0.5  # of its numbers; what is less is put together with the whole model's remainder


def shard(model: TransferModel, device: torch.device) -> None:
    """Divide ``model``, equal on all processes, and put the shares on ``device``, one block after the other."""
    model.to(memory_format=torch.contiguous_format)  # images keep theirs; a share is a piece of rows
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in units(model):
        module.register_forward_hook(_own_memory)
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)  # what is left: the head, and what belongs to no block's module


def units(model: TransferModel) -> list[nn.Module]:
    """Of each block of the layout the module that holds most of it, where there is one that is called as a whole."""
    block_of = {name: block for block in model.layout.blocks for name in block.parameters}
    size_of = {name: parameter.numel() for name, parameter in model.named_parameters()}
    found: dict[str, nn.Module] = {}
    for prefix, module in model.named_modules():  # outer ones first
        # The elements of a container may be called one by one
        if not prefix or isinstance(module, nn.Sequential | nn.ModuleList):
            continue
        names = [f"{prefix}.{name}" for name, _ in module.named_parameters()]
        blocks = {block_of[name].name for name in names if name in block_of}
        if len(blocks) != 1 or blocks & found.keys():
            continue
        block = block_of[names[0]]
        if sum(size_of[name] for name in names) >= _MOST_OF_A_BLOCK * sum(size_of[name] for name in block.parameters):
            found[block.name] = module
    return list(found.values())


def _own_memory(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    """A view that somebody changes in place would lose the hook that puts the shares together in the backward pass."""
    return output.clone() if isinstance(output, Tensor) and output._is_view() else output


def local(tensor: Tensor) -> Tensor:
    """This process's share; of a tensor that is not divided, all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def undivided(model: nn.Module) -> dict[str, Tensor]:
    """What every process has of a model's state, all of it where the model is not divided."""
    return {name: tensor for name, tensor in model.state_dict().items() if not isinstance(tensor, DTensor)}


def share(tensor: Tensor, example: Tensor) -> Tensor:
    """This process's share of ``tensor``, which all processes have, divided and placed like ``example``."""
    if not isinstance(example, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor, example.device_mesh, example.placements, src_data_rank=None)


def shares(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Tensors of a model's state, divided as the model is."""
    own = model.state_dict()
    return {name: share(tensor, own[name]) for name, tensor in state.items()}


def whole(value: Any, keep: bool) -> Any:
    """Dicts, lists and tuples with every divided tensor put together on the CPU; all processes must call it.

    Args:
        value: Of the same structure in every process.
        keep: Whether this process wants it; it is told of empty tensors otherwise.
    """
    match value:
        case DTensor():
            full: Tensor = value.detach().full_tensor()  # type: ignore[attr-defined]
            return full.cpu() if keep else torch.empty(0)
        case dict():
            return {key: whole(one, keep) for key, one in value.items()}
        case list() | tuple():
            return type(value)(whole(one, keep) for one in value)
        case _:
            return value
