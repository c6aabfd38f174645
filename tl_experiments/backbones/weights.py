"""Loading weights, with an account of every tensor: what does not fit is an error, never skipped in silence."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import clean_state_dict, load_pretrained
from torch import Tensor, nn

from tl_experiments.backbones.hub import find_pretrained
from tl_experiments.backbones.locate import Base, base_of, check_base, checkpoint_facts, file_sha256, lineage_of, locate
from tl_experiments.backbones.nets import Net, create_net, input_channels
from tl_experiments.config.backbones import BackboneConfig, Preprocessing
from tl_experiments.errors import WeightsError, first_line

# Counts batches for BatchNorm's cumulative average; older files lack it and nothing that we run reads it.
_COUNTER = re.compile(r"(^|\.)num_batches_tracked$")
# Arguments of create_model that change no output in eval mode, or that the checkpoint's tensors are adapted to.
_MAY_DIFFER = re.compile(r"drop|^img_size$|^in_chans$|^cache_dir$")
_EXAMPLES = 10
AS_PRETRAINED = Preprocessing(image_size=None, mean=None, std=None, interpolation=None, crop_fraction=None)


@dataclass(frozen=True)
class Names:
    """How many tensors, and the first of their names."""

    count: int = 0
    first: tuple[str, ...] = ()

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        every = list(names)
        return cls(len(every), tuple(every[:_EXAMPLES]))


@dataclass(frozen=True, kw_only=True)
class WeightsReport:
    """Where weights came from, and what became of each tensor.

    Args:
        source: ``random``, ``owner/repo/file`` on the hub, a URL, or the file's path.
        sha256: Of the file; None for random weights.
        repo: The hub's repository.
        commit: The repository's commit.
        in_file: Tensors of the file; timm's filter of the family may split, merge or leave some of them out.
        total: Tensors of the backbone.
        matched: Those that the source filled.
        missing: Those that it did not: counters that nothing reads, and norms that timm puts behind weights which have
            none, still at a scale of 1 and a shift of 0.
        unexpected: Tensors of the source that the backbone has no place for, all of them beside the backbone: more of
            its own classifier, or an auxiliary head.
        shape_mismatched: Always none after loading; counted in the error that refuses them.
        classifier_dropped: Tensors of the source's own classifier, which a new head replaces.
        resized: Tensor -> how it was interpolated to this input size or patch size, such as ``14x14 to 8x8``.
        adapted: Input convolution -> channels, such as ``3 to 1``.
        own_loader: Whether timm read the file with a loader of the model's own; ``matched`` then are the tensors
            that it changed.
        lineage: The own runs behind the weights, from the origin to the latest; see ``locate.lineage_of``.
        pretraining_s: Seconds of own pretraining that made the file, all links of the lineage together.
        image_size: Side in pixels of the images that an own checkpoint was trained on; None where it is not known.
    """

    source: str
    sha256: str | None = None
    repo: str | None = None
    commit: str | None = None
    in_file: int = 0
    total: int = 0
    matched: int = 0
    missing: Names = Names()
    unexpected: Names = Names()
    shape_mismatched: Names = Names()
    classifier_dropped: int = 0
    resized: Mapping[str, str] = field(default_factory=dict)
    adapted: Mapping[str, str] = field(default_factory=dict)
    own_loader: bool = False
    lineage: tuple[Mapping[str, Any], ...] = ()
    pretraining_s: float = 0.0
    image_size: int | None = None

    def adaptations(self) -> tuple[str, ...]:
        """What was changed to fit, a sentence each."""
        sentences = []
        if self.resized:
            name, how = next(iter(self.resized.items()))
            more = f" and {len(self.resized) - 1} more" if len(self.resized) > 1 else ""
            sentences.append(f"The weights were resized to this input: {name} from {how}{more}.")
        for name, channels in self.adapted.items():
            sentences.append(f"The first convolution was adapted from {channels} channels ({name}).")
        if new := [name for name in self.missing.first if not (_COUNTER.search(name) or self.own_loader)]:
            sentences.append(f"The weights have no {' and '.join(new)}: timm adds a norm that starts at 1 and 0.")
        if self.own_loader:
            sentences.append(
                f"timm read {self.source} with a loader of its own: tensors that changed are counted as matched."
            )
        return tuple(sentences)


def load_weights(net: Net, cfg: BackboneConfig, base: Base | None = None) -> WeightsReport:
    """Fill ``net`` from ``cfg.weights``; every tensor of the backbone must be matched.

    An earlier run's checkpoint gives its backbone alone: a run that continues from it always gets a new head, also
    where the classes are the same.

    Args:
        net: Freshly built.
        cfg: Whose ``weights`` are loaded.
        base: Where the weights are the base of a checkpoint: they must be these to the bit.

    Raises:
        WeightsError: Missing, unexpected or misshapen tensors, an unreadable file, or another backbone's checkpoint.
    """
    if cfg.weights == "random":
        return WeightsReport(source="random", total=len(net.module.state_dict()))
    path = locate(cfg.weights)
    if path is not None:
        check_base(base, file_sha256(path))
        return _from_path(net, path, cfg)
    found = find_pretrained(net.module.pretrained_cfg, net.kwargs.get("cache_dir"), base and base.commit)  # type: ignore[arg-type]
    digest = file_sha256(found.path)
    check_base(base, digest)
    report = _run_own_loader(net, found.path) if found.custom else _fill(net, _read(found.path), found.source)
    return replace(report, source=found.source, sha256=digest, repo=found.repo, commit=found.commit)


def _from_path(net: Net, path: Path, cfg: BackboneConfig) -> WeightsReport:
    facts = checkpoint_facts(path)
    if facts is None:
        report = _fill(net, _backbone_part(_read(path), own=False), str(path))
        size = None
    else:
        _check_backbone(path, facts, cfg)
        report = _fill(net, _complete(path, facts), str(path), facts["kwargs"].get("in_chans"))
        size = facts["input"]["image_size"]
    lineage = lineage_of(path)
    return replace(
        report,
        sha256=file_sha256(path),
        lineage=lineage,
        pretraining_s=math.fsum(link["wall_clock_s"] for link in lineage),
        image_size=size,
    )


def _check_backbone(path: Path, facts: Mapping[str, Any], cfg: BackboneConfig) -> None:
    theirs = facts["backbone"]
    if theirs != cfg.name:
        raise WeightsError(
            "backbone.weights", f"{path} holds {theirs}, the backbone is {cfg.name}", f"backbone.name={theirs}"
        )
    kwargs = facts["kwargs"]
    for key in sorted({*kwargs, *cfg.kwargs}):
        if not _MAY_DIFFER.search(key) and kwargs.get(key) != cfg.kwargs.get(key):
            raise WeightsError(
                "backbone.kwargs",
                f"{key} is {cfg.kwargs.get(key)}, and {path} was trained with {kwargs.get(key)}",
                f"backbone.kwargs.{key}={kwargs[key]}" if key in kwargs else f"leave {key} out",
            )


def _complete(path: Path, facts: Mapping[str, Any]) -> dict[str, Tensor]:
    """The backbone's tensors of an own checkpoint: what it holds, over the base where that is not everything."""
    held = _backbone_part(_read(path), own=True)
    base = base_of(path, facts)
    if facts["holds"] == "all" or base is None:
        return held
    net = create_net(facts["backbone"], facts["kwargs"], facts["input"]["image_size"], seed=0, for_weights=True)
    cfg = BackboneConfig(
        name=facts["backbone"], weights=base.weights, kwargs=facts["kwargs"], preprocessing=AS_PRETRAINED
    )
    load_weights(net, cfg, base)
    whole = net.module.state_dict()
    if wrong := [name for name in held if name not in whole or whole[name].shape != held[name].shape]:
        raise WeightsError(
            str(path), f"{len(wrong)} of its tensors do not fit its base, e.g. {wrong[0]}", "run its job again"
        )
    return {**whole, **held}


def starts_random(cfg: BackboneConfig) -> bool:
    """Whether no weights from elsewhere stand at the start of the chain that ``cfg.weights`` ends."""
    path = locate(cfg.weights)
    if path is None:
        return cfg.weights == "random"
    facts = checkpoint_facts(path)
    return facts is not None and facts["base"] is None


def _fill(net: Net, state: dict[str, Tensor], source: str, channels: int | None = None) -> WeightsReport:
    """Hand a checkpoint to timm's own loading of the family, and account for what it makes of it.

    Names are mapped, position embeddings resized, the input convolution adapted, the classifier dropped by timm; what
    it would then load is compared with the net before a single tensor is.
    """
    module, wanted = net.module, net.module.state_dict()
    if state.keys() == wanted.keys() and all(state[name].shape == wanted[name].shape for name in wanted):
        module.load_state_dict(state)  # an own checkpoint of this very net
        return WeightsReport(source=source, in_file=len(state), total=len(wanted), matched=len(wanted))
    loading = net.loading or create_net(net.name, net.kwargs, None, seed=0, for_weights=True).loading
    filtered = _filtered(loading["filter_fn"], state, module)
    reports = []

    def account(_module: nn.Module, final: dict[str, Tensor], *_: Any) -> None:
        reports.append(
            _account(net, source, state, filtered, final, strict=loading["strict"], channels=int(cfg["input_size"][0]))
        )

    hook = module.register_load_state_dict_pre_hook(account)
    cfg = {**loading["pretrained_cfg"], "state_dict": dict(filtered), "source": None}
    if channels is not None:
        cfg["input_size"] = (channels, *cfg["input_size"][1:])
    try:
        # num_classes=-1 is no file's number of classes: the classifier goes in any case
        load_pretrained(module, cfg, num_classes=-1, in_chans=input_channels(module), strict=False)
    except RuntimeError as error:  # an input convolution that timm cannot adapt
        raise WeightsError(
            "backbone.weights", f"{source} does not fit: {first_line(error)}", "check backbone.kwargs against the file"
        ) from None
    finally:
        hook.remove()
    return reports[0]


def _filtered(filter_fn: Any, state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    if filter_fn is None:
        return state
    try:
        return dict(filter_fn(dict(state), module))
    except Exception:  # written for the family's own files; another's is counted as it stands
        return state


def _account(
    net: Net, source: str, state: Mapping[str, Tensor], filtered: Mapping[str, Tensor], final: dict[str, Tensor],
    *, strict: bool, channels: int,
) -> WeightsReport:  # fmt: skip
    """Compare what timm is about to load with the net; takes out of ``final`` what has no place there.

    Args:
        net: Still random.
        source: Named in errors.
        state: The tensors of the file.
        filtered: Those that the family's filter makes of them.
        final: Those that timm would load: without classifier, input convolution adapted.
        strict: Whether timm expects every tensor of the file to have a place.
        channels: Of the images that the file was trained on.
    """
    wanted = net.module.state_dict()
    missing = [name for name in wanted if name not in final]
    unexpected = [name for name in final if name not in wanted]
    mismatched = [name for name in final if name in wanted and final[name].shape != wanted[name].shape]
    beside = _beside_the_backbone(net) if unexpected and strict else set(unexpected)
    lost = [name for name in missing if not (_COUNTER.search(name) or (not strict and _does_nothing_yet(wanted[name])))]
    foreign = [name for name in unexpected if name not in beside]
    if lost or foreign or mismatched:
        raise WeightsError(
            "backbone.weights",
            f"{source} does not fit: {len(lost)} tensors missing, {len(foreign)} unexpected, {len(mismatched)} of "
            f"another shape, e.g. {(lost or foreign or mismatched)[0]}, of {len(wanted)} expected",
            "check backbone.name and backbone.kwargs against the file",
        )
    for name in unexpected:
        final.pop(name)
    resized = [name for name in final if name in state and state[name].numel() != filtered[name].numel()]
    prefix = int(getattr(net.module, "num_prefix_tokens", 0))
    return WeightsReport(
        source=source,
        in_file=len(state),
        total=len(wanted),
        matched=len(final),
        missing=Names.of(missing),
        unexpected=Names.of(unexpected),
        classifier_dropped=len(filtered) - len(final) - len(unexpected),
        resized={name: f"{_grid(state[name], prefix)} to {_grid(filtered[name], prefix)}" for name in resized},
        adapted={
            name: f"{channels} to {input_channels(net.module)}"
            for name in final
            if final[name].shape != filtered[name].shape
        },
    )


def _does_nothing_yet(tensor: Tensor) -> bool:
    """A norm's scale of 1 or shift of 0."""
    return bool((tensor == tensor.flatten()[0]).all()) and tensor.flatten()[0].item() in (0, 1)


def _beside_the_backbone(net: Net) -> set[str]:
    """Tensors that the model with its classifier has and the net has not: nothing that features are made of."""
    with torch.random.fork_rng(devices=[]):
        whole = timm.create_model(net.name, **net.kwargs)
    return whole.state_dict().keys() - net.module.state_dict().keys()


def _grid(tensor: Tensor, prefix: int) -> str:
    """``14x14`` for position embeddings ``(1, prefix + 14 * 14, dim)`` or a bias table ``(14 * 14, heads)``."""
    tokens = tensor.shape[1] if tensor.ndim == 3 else tensor.shape[0]
    for count in (tokens - prefix, tokens):
        side = math.isqrt(max(count, 0))
        if tensor.ndim in (2, 3) and side * side == count:
            return f"{side}x{side}"
    return "x".join(str(length) for length in tensor.shape)


def _run_own_loader(net: Net, path: Path) -> WeightsReport:
    """timm's loader of the model's own fills the net without naming tensors; count those that it changed."""
    before = {name: tensor.clone() for name, tensor in net.module.state_dict().items()}
    try:
        net.module.load_pretrained(str(path))  # type: ignore[operator]
    except Exception as error:
        raise WeightsError(
            str(path), f"timm's loader for it fails ({first_line(error)})", "give backbone.weights=<another file>"
        ) from None
    after = net.module.state_dict()
    same = [name for name in before if torch.equal(before[name], after[name])]
    return WeightsReport(
        source=str(path), total=len(after), matched=len(after) - len(same), missing=Names.of(same), own_loader=True
    )


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Stated here, the environment cannot change it: TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD only moves torch's default.
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, expected a state_dict")
    except Exception as error:
        raise WeightsError(
            str(path), f"cannot be read ({first_line(error)})", "give a .safetensors file or a plain state_dict"
        ) from None
    for key in ("state_dict", "model"):
        content = content[key] if isinstance(content, dict) and isinstance(content.get(key), dict) else content
    return clean_state_dict({str(name): value for name, value in content.items() if isinstance(value, Tensor)})


def _backbone_part(state: dict[str, Tensor], own: bool) -> dict[str, Tensor]:
    """An own checkpoint holds ``backbone.net.*`` and ``head.*``; a timm checkpoint holds the bare names."""
    prefix = "backbone.net."
    part = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return part if own or part else state
