"""How a run that raised an error is listed. Imports torch only where an error has to be told from others."""

from __future__ import annotations

from tl_experiments.errors import DivergedError, PrunedError, StorageError, UserError, first_line

OUT_OF_MEMORY_HINT = "lower trainer.batch_size or backbone.preprocessing.image_size"


def how_it_ended(error: Exception) -> tuple[str, str]:
    """State (diverged, pruned, failed, oom or interrupted) and one-line cause of a run that raised ``error``."""
    if isinstance(error, DivergedError):
        return "diverged", str(error)
    if isinstance(error, PrunedError):
        return "pruned", str(error)
    if isinstance(error, StorageError):  # the same command goes on when there is room
        return "interrupted", str(error)
    if isinstance(error, UserError):
        return "failed", str(error)
    from tl_experiments.training.environment import peak_memory_bytes
    from tl_experiments.training.memory import is_out_of_device_memory, is_out_of_memory

    if is_out_of_memory(error):
        where = "gpu" if is_out_of_device_memory(error) else "cpu"
        peak = f"peak {peak_memory_bytes(where) / 2**30:.2f} GiB"
        return "oom", f"{first_line(error)}; {peak} -> {OUT_OF_MEMORY_HINT}"
    return "failed", f"{type(error).__name__}: {first_line(error)}"
