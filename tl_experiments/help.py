"""Help and listings: examples first, from the files of ``conf/``, without importing torch or Hydra."""

from __future__ import annotations

import fnmatch

from tl_experiments.config.compose import choices, groups
from tl_experiments.config.timm_names import timm_names
from tl_experiments.config.typed import did_you_mean
from tl_experiments.errors import UserError

_EXAMPLES = {
    "train": """\
tl train: train one job, or with -m a sweep whose arms are then compared

  tl train                                        a linear probe on handwritten digits
  tl train dataset=image_folder dataset.root=$HOME/photos backbone=resnet18 \\
           freeze_strategy=last_n_blocks freeze_strategy.n=2 trainer.max_epochs=20
  tl train -m dataset=image_folder dataset.root=$HOME/photos backbone=resnet18,vit_small \\
           freeze_strategy=feature_extraction,last_n_blocks,full,from_scratch \\
           optimizer.lr_factor=0.3,1,3 seed=0,1,2
  tl train -m experiment=digits_5_shots           a sweep that a file describes
  tl train backbone=vit_tiny print_layout=true    blocks, parameters, phases, learning rates
  tl train --cfg job                              the whole config of a job

The same command again runs only what is not done. retry_failed=true runs failed jobs again.
""",
    "tune": """\
tl tune: search the settings of each arm with the same number of trials, chosen on val, then compare the arms

  tl tune freeze_strategy=feature_extraction,full seed=0,1,2 'optimizer.lr_factor=tag(log,interval(0.03,30))' \\
          'optimizer.weight_decay=tag(log,interval(1e-5,1e-1))' trainer.max_epochs=5,10 tune.trials=20
  tl tune dataset=image_folder dataset.root=$HOME/photos backbone=resnet18,vit_tiny \\
          freeze_strategy=feature_extraction,full,from_scratch seed=0,1,2 \\
          'optimizer.lr_factor=tag(log,interval(0.03,30))' tune.trials=20 tune.pruner=median
  tl tune freeze_strategy=full 'trainer.max_epochs=int(interval(2,20))' 'tune.objectives=[accuracy,seconds]'

Datasets, backbones, heads and freeze strategies are arms; seeds repeat them; all else that has several values is
searched: a,b,c by choice, interval(a,b) and range(a,b,step) by number, tag(log,...) on a logarithmic scale.
Also tune.parallel=N of an arm at once, tune.sampler=tpe|random, tune.pruner=none|median|hyperband, tuning_seed=N.
The same command again goes on; with more tune.trials it searches on. dry_run=true shows the first trials.
""",
    "lr": """\
tl lr: find learning rates; a short training at a rate that rises from step to step, for each strategy

  tl lr dataset=image_folder dataset.root=$HOME/photos backbone=resnet18 freeze_strategy=full
  tl lr -m dataset=image_folder dataset.root=$HOME/photos backbone=resnet18 \\
        freeze_strategy=feature_extraction,discriminative,full seed=0,1,2
  tl lr lr_range.min_lr=1e-5 lr_range.max_lr=10 lr_range.steps=200 optimizer=sgd

It prints what the curves suggest beside each strategy's rule, and writes lr.json and lr.png below outputs/lr/.
""",
    "pretrain": """\
tl pretrain: train a source model from random weights

  tl pretrain dataset=letters backbone=resnet10t backbone.preprocessing.image_size=32 name=source
  tl train backbone=resnet10t backbone.preprocessing.image_size=32 backbone.weights=outputs/source
""",
}


def verb_help(verb: str) -> str:
    """Examples, then every group with its choices."""
    names = groups()
    width = max(map(len, names))
    lines = [f"  {group:<{width}}  {' | '.join(choices(group))}" for group in names]
    return (
        f"{_EXAMPLES[verb]}\nGroups (group=choice; options as group.option=value; tl list GROUP explains):\n"
        + "\n".join([*lines, ""])
    )


def listing(group: str | None = None, pattern: str = "*") -> str:
    """The choices of a group, singular or plural; for backbones, timm's models that match the pattern too.

    Raises:
        UserError: No such group, or nothing matches.
    """
    if group is None:
        return "\n".join([*groups(), ""])
    known = {plural: name for name in groups() for plural in (name, f"{name}s", f"{name[:-1]}ies")}
    if group not in known:
        raise UserError(f"tl list {group}", "no such group", did_you_mean(group, groups()))
    found = {name: text for name, text in choices(known[group]).items() if fnmatch.fnmatch(name, pattern)}
    width = max(map(len, found), default=0)
    lines = [f"{name:<{width}}  {text}" for name, text in found.items()]
    if known[group] == "backbone":
        lines += _timm_lines(pattern, found)
    if not lines:
        raise UserError(f"tl list {group} {pattern}", "nothing matches", f"tl list {group} lists all")
    return "\n".join([*lines, ""])


def _timm_lines(pattern: str, presets: dict[str, str]) -> list[str]:
    if pattern == "*":
        return ["", f"and {len(timm_names())} models of timm: tl list backbones 'vit*'"]
    names = fnmatch.filter(timm_names(), pattern)
    gap = [""] if presets and names else []
    return [*gap, *(f"backbone=timm backbone.name={name}" for name in names)]
