"""From a dataset's config to batches: ``sources`` -> ``splits`` -> ``transforms`` -> ``datamodule``."""
