"""From a config to a record: the model, the fits of a plan's phases, and ``run``, the one assembly point."""
