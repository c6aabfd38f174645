"""TensorBoard's event files, a folder a run in ``<sweep>/tensorboard``, with the HParams table."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from tl_experiments.metrics.scores import confusion
from tl_experiments.tracking.entries import ARM, Entered, folder_name, new_points, split_key, summary
from tl_experiments.tracking.runs import Run

_NAME = "tensorboard"
_PICTURE_SIDE = 320  # pixels, about


class TensorBoard:
    """Scalars under the keys of ``metrics.jsonl``; at the last step the summary, and confusion matrices as pictures."""

    whole = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder / _NAME
        self._writers: dict[str, EventFileWriter] = {}

    def update(self, run: Run) -> None:
        entered = Entered.read(run, _NAME)
        if not run.facts or entered.completes(run):
            return
        writer = self._writers.get(run.id)
        if writer is None:
            writer = self._writers[run.id] = EventFileWriter(str(self._folder / folder_name(run)))
            if entered.step < 0:
                writer.add_event(Event(wall_time=run.began, summary=hparams_pb(_hparams(run))))
        step, now = entered.step, run.began
        for step, values in new_points(run, entered.step):
            now = run.began + values["seconds"]
            writer.add_event(_scalars(step, now, values))
        if run.ended:
            writer.add_event(_scalars(max(step, 0), now, summary(run)))
            for split, predictions in run.predictions().items():
                picture = _picture(f"confusion_matrix/{split_key(split)}", confusion(predictions))
                writer.add_event(Event(step=max(step, 0), wall_time=now, summary=picture))
            writer.add_event(Event(wall_time=now, summary=_session_end(run, now)))
            self._writers.pop(run.id).close()
        else:
            writer.flush()
        Entered(state=run.state if run.ended else None, step=step).write(run, _NAME)

    def flush(self) -> None:
        """Each run is flushed as it is entered."""

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def holds(self, run: Run) -> Entered:
        return Entered.read(run, _NAME)

    def forget(self, run: Run) -> None:
        """Its folder goes too, or every step would stand there twice."""
        shutil.rmtree(self._folder / folder_name(run), ignore_errors=True)
        Entered.forget(run, _NAME)

    def missing(self) -> Iterator[str]:
        yield from ()


def _hparams(run: Run) -> dict[str, Any]:
    arm = {key: run.facts["arm"][key] for key in ARM}
    return {**arm, "seed": run.facts["seed"], "learning_rate": run.facts["learning_rate"]}


def _scalars(step: int, now: float, values: Mapping[str, float]) -> Event:
    points = [Summary.Value(tag=key, simple_value=float(value)) for key, value in values.items()]
    return Event(step=step, wall_time=now, summary=Summary(value=points))


def _picture(tag: str, matrix: NDArray[np.int64]) -> Summary:
    """Actual classes downwards, predicted ones to the right; the darker, the larger the share of the actual class."""
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = Image.fromarray(np.rint(255 * (1 - share)).astype(np.uint8))
    side = len(matrix) * max(1, _PICTURE_SIDE // len(matrix))
    stream = io.BytesIO()
    image.resize((side, side), Image.Resampling.NEAREST).save(stream, "PNG")
    encoded = Summary.Image(height=side, width=side, colorspace=1, encoded_image_string=stream.getvalue())
    return Summary(value=[Summary.Value(tag=tag, image=encoded)])


def _session_end(run: Run, now: float) -> Summary:
    status = api_pb2.STATUS_SUCCESS if run.state == "ok" else api_pb2.STATUS_FAILURE
    data = plugin_data_pb2.HParamsPluginData(
        session_end_info=plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=now)
    )
    value = Summary.Value(
        tag=metadata.SESSION_END_INFO_TAG, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR
    )
    return Summary(value=[value])
