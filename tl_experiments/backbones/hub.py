"""timm's pretrained weights as a file on this disk: from the hub, a URL or a path."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled
from timm.models._hub import check_cached_file, download_cached_file

from tl_experiments.errors import WeightsError, first_line
from tl_experiments.network import REQUEST_S, answer

_SAFE = {"pytorch_model.bin": "model.safetensors", "open_clip_pytorch_model.bin": "open_clip_model.safetensors"}


@dataclass(frozen=True)
class PretrainedFile:
    """A file that holds timm's weights for a model.

    Args:
        path: On this disk.
        source: Where it came from: ``owner/repo/file`` on the hub, a URL, or the path.
        repo: The hub's repository.
        commit: The repository's commit.
        custom: Whether timm reads it with a loader of the model's own (for example ``.npz`` of another framework).
    """

    path: Path
    source: str
    repo: str | None
    commit: str | None
    custom: bool


def find_pretrained(cfg: Mapping[str, Any], cache_dir: str | None, commit: str | None = None) -> PretrainedFile:
    """The file that timm would load for a ``pretrained_cfg``; fetched once, then taken from the cache.

    Args:
        cfg: timm's description of the weights, with the keys of ``timm.models.PretrainedCfg``.
        cache_dir: Of the hub; None is the hub's own choice.
        commit: Of the hub's repository; None is what the cache holds as its main revision, or the newest.

    Raises:
        WeightsError: There are no such weights, or they are not on this disk and cannot be fetched.
    """
    file, custom = cfg.get("file"), cfg.get("custom_load", False)
    if file:
        path = Path(file)
        if path.is_dir():
            path = next((path / name for name in _SAFE.values() if (path / name).is_file()), path / "model.safetensors")
        if not path.is_file():
            raise WeightsError("backbone.weights", f"no file {path}", "give the path of a file with weights")
        return PretrainedFile(path, str(path), None, None, bool(custom))
    if cfg.get("hf_hub_id"):
        repo, _, revision = str(cfg["hf_hub_id"]).partition("@")
        filename = cfg.get("hf_hub_filename")
        path = fetch_from_hub(repo, _candidates(filename or "pytorch_model.bin"), commit or revision or None, cache_dir)
        # <cache>/models--owner--name/snapshots/<commit>/<file>
        snapshot = next(parent for parent in path.parents if parent.parent.name == "snapshots")
        inside = path.relative_to(snapshot).as_posix()
        return PretrainedFile(path, f"{repo}/{inside}", repo, snapshot.name, bool(filename) and custom == "hf")
    if cfg.get("url"):
        path, url = _from_url(cfg["url"], cache_dir)
        return PretrainedFile(path, url, None, None, bool(custom))
    raise WeightsError(
        "backbone.weights",
        f"timm has no pretrained weights for {cfg.get('architecture') or 'this model'}",
        "choose another backbone.name, or give backbone.weights=<file> or random",
    )


def fetch_from_hub(repo: str, filenames: tuple[str, ...], revision: str | None, cache_dir: str | None) -> Path:
    """The first of ``filenames`` that the cache holds; failing that, the first that the hub has, downloaded.

    Raises:
        WeightsError: Not in the cache, and the hub cannot be reached or has none of them.
    """
    for name in filenames:
        cached = huggingface_hub.try_to_load_from_cache(repo, name, cache_dir=cache_dir, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what fails in the end is said below
    reason = "the repository has no such file"
    for name in filenames:
        url = huggingface_hub.hf_hub_url(repo, name, revision=revision)
        try:
            # One question without retries first: the download itself would ask for most of a minute.
            answer(lambda url=url: huggingface_hub.get_hf_file_metadata(url, timeout=REQUEST_S))  # type: ignore[misc]
            return Path(huggingface_hub.hf_hub_download(repo, name, revision=revision, cache_dir=cache_dir))
        except EntryNotFoundError:
            continue
        except OfflineModeIsEnabled:
            reason = "HF_HUB_OFFLINE is set"
            break
        except Exception as error:
            reason = first_line(error)
            break
    raise _not_here(filenames[0], f"of {repo}", reason, f"hf download {repo} {filenames[0]}")


def _candidates(filename: str) -> tuple[str, ...]:
    """timm takes the safetensors file beside a pickled one where there is one."""
    if filename.endswith(".safetensors"):
        return (filename,)
    return _SAFE.get(filename, f"{Path(filename).with_suffix('.safetensors')}"), filename


def _from_url(url: str | tuple[str, str], cache_dir: str | None) -> tuple[Path, str]:
    address = url if isinstance(url, str) else url[0]

    def ask() -> None:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=REQUEST_S):
            pass

    try:
        if not check_cached_file(url, check_hash=False, cache_dir=cache_dir):
            answer(ask)
        return Path(download_cached_file(url, check_hash=False, cache_dir=cache_dir)), address
    except Exception as error:
        raise _not_here(Path(address).name, f"from {address}", first_line(error), f"curl -LO {address}") from None


def _not_here(file: str, where: str, reason: str, command: str) -> WeightsError:
    return WeightsError(
        "backbone.weights",
        f"{file} {where} is not on this disk and cannot be fetched ({reason})",
        f"fetch it with network ({command}) into the cache of this machine, or backbone.weights=<that file> or random",
    )
