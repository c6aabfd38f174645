"""Predicting files: a run's model through our pipeline against a plain DataLoader and timm, seconds of the same images.

    TL_SHARED_DATA=... python benchmarks/predict.py [--short]

Both sides have two cores and one thread a computation. The peer decodes in a worker process beside the one that
computes, with torchvision's transforms, and is the faster one of one and two workers. Models are loaded and files are
listed beforehand; every turn reads, decodes, resizes and predicts all images.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from measure import Report, Row, alternate, arguments, fix_threads, ratios, require_equal, same_side_noise, spread
from photos import make_photos

SIZES = {"eurosat": 64, "photos": 128}


def main() -> None:
    given = arguments(__doc__).parse_args()
    fix_threads(2)
    import torch

    torch.set_num_threads(1)
    shared = Path(os.environ["TL_SHARED_DATA"])
    report = Report("predict", given.short)
    with tempfile.TemporaryDirectory(prefix="tl-predict-") as folder:
        photos = Path(folder, "photos")
        make_photos(photos, train=100 if given.short else 600, val=10, test=10)
        for name, root in {"eurosat": shared / "eurosat", "photos": photos}.items():
            measure(report, name, root, shared, Path(folder), 1 if given.short else given.repeats)
    report.write()


def measure(report: Report, name: str, root: Path, shared: Path, home: Path, repeats: int) -> None:
    """One row: the images of one folder."""
    from tl_experiments.inference.inputs import list_inputs

    size = SIZES[name]
    run_folder = train(root, shared, home / f"run-{name}", size)
    paths = [one.path for one in list_inputs([root / "train"])]
    ours = our_side(run_folder, paths)
    sides: dict[str, Any] = {"ours": ours, **{f"{n} workers": peer_side(run_folder, paths, size, n) for n in (1, 2)}}
    outputs = {side: call()[1] for side, call in sides.items()}
    for side in ("1 workers", "2 workers"):
        require_equal(f"{name}, {side}", outputs["ours"], outputs[side], 1e-3)
    times = alternate({side: (lambda call=call: call()[0]) for side, call in sides.items()}, repeats, again="ours")
    peer = [min(pair) for pair in zip(times["1 workers"], times["2 workers"], strict=True)]
    report.details[name] = {"seconds": times, "images": len(paths), "px": size}
    rate = len(paths) / spread(times["ours"])["value"]
    report.add(
        Row(
            bar="p1" if name == "eurosat" else "p2",
            what=f"predicting {len(paths)} files ({'64x64' if name == 'eurosat' else '500x375'}) at {size} px",
            peer="DataLoader and timm",
            **spread(ratios(peer, times["ours"])),
            sense=">=",
            target=1.0,
            limit="decoding and forward pass",
            noise=same_side_noise(times["ours"], times["again"]),
            remark=f"mobilenetv2_100, batches of 64; ours {rate:.0f} images/s",
        )
    )


def train(root: Path, shared: Path, folder: Path, size: int) -> Path:
    """A linear probe, solved."""
    from tl_experiments import compose, run

    weights = shared / "weights" / "tf_mobilenetv2_100_in1k.safetensors"
    cfg = compose(
        [
            *("backbone=timm", "backbone.name=mobilenetv2_100", f"backbone.weights={weights}", "head=ridge"),
            *("backbone.kwargs.pad_type=same", "backbone.kwargs.bn_eps=1e-3"),
            *(f"backbone.preprocessing.image_size={size}", "dataset=image_folder", f"dataset.root={root}"),
            *("dataset.shots=5", f"output_dir={folder.parent / 'outputs'}"),
        ]
    )
    run(cfg, folder)
    return folder


def our_side(folder: Path, paths: list[Path]) -> Any:
    """What ``tl predict`` does between loading the model and writing the table."""
    from tl_experiments import load_model
    from tl_experiments.inference.pipeline import run_through

    model = load_model(folder, "cpu")

    def call() -> tuple[float, list[float]]:
        started = time.perf_counter()
        outputs = run_through(model, lambda number: model.read(paths[number]), len(paths), 64)
        return time.perf_counter() - started, outputs.probabilities.max(1).tolist()

    return call


class Files:
    """A dataset as anybody writes it."""

    def __init__(self, paths: list[Path], transform: Any) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def peer_side(folder: Path, paths: list[Path], size: int, workers: int) -> Any:
    """timm's model with the run's weights, torchvision's transforms, a DataLoader."""
    import timm
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms

    from tl_experiments import load_run

    ours = load_run(folder)
    spec, head = ours.backbone.input_spec, ours.head.state_dict()
    model = timm.create_model("mobilenetv2_100", pad_type="same", bn_eps=1e-3, num_classes=len(head["bias"]))
    model.load_state_dict(ours.backbone.net.state_dict(), strict=False)
    model.get_classifier().load_state_dict(head)
    transform = transforms.Compose(
        [
            transforms.Resize(int(size / spec.crop_fraction), transforms.InterpolationMode(spec.interpolation)),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ]
    )
    loader = partial(DataLoader, Files(paths, transform), batch_size=64, num_workers=workers)
    model.eval()

    def call() -> tuple[float, list[float]]:
        started = time.perf_counter()
        with torch.inference_mode():
            found = torch.cat([model(images).softmax(1) for images in loader()])
        return time.perf_counter() - started, found.max(1).values.tolist()

    return call


if __name__ == "__main__":
    sys.exit(main())
