"""Prices that the book does not have, measured in a process that has torch."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from typing import Any

from tl_experiments.config.schema import TrainConfig
from tl_experiments.sweeps.costs import CostBook, Price
from tl_experiments.sweeps.local import Slots, job_environment, server
from tl_experiments.training.groups import source_key, why_live


def complete(book: CostBook, prices: Sequence[TrainConfig], sources: Sequence[TrainConfig], where: Slots) -> None:
    """Measure, for about a second each, and enter what can be measured.

    Args:
        book: Where prices go.
        prices: A config for each price.
        sources: A config for each source of which the decoding is wanted.
        where: The sweep's slots.
    """
    if not prices and not sources:
        return
    context = server(alone=False)
    receiver, sender = context.Pipe(duplex=False)
    arguments = (prices, sources, where.threads, job_environment(where.devices[0], where.threads), sender)
    process = context.Process(target=_measure, args=arguments, name="pricing")
    process.start()
    sender.close()
    try:
        while True:
            kind, config, value = receiver.recv()
            if kind == "decoding":
                book.learn_decoding(source_key(config.dataset), value)
            else:
                book.learn(config, Price(**value))
    except EOFError:  # all is said, or it died: what is missing stays unknown
        process.join()
    finally:
        process.kill()
        receiver.close()
    book.write()


def _measure(
    prices: Sequence[TrainConfig],
    sources: Sequence[TrainConfig],
    threads: int,
    environment: Mapping[str, str],
    report: connection.Connection,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(environment)
    import torch

    from tl_experiments.training import pricing

    torch.set_num_threads(threads)
    for config in sources:
        seconds = pricing.measure_decoding(config)
        if seconds is not None:
            report.send(("decoding", config, seconds))
    for config in prices:
        try:
            measured = pricing.measure(config, why_live(config) is None)
        except Exception:
            continue  # the run itself will say what is wrong with it
        value: dict[str, Any] = dataclasses.asdict(measured)
        report.send(("price", config, value))
    report.close()
