"""Digits and letters: the same on every machine, and what they claim to be."""

from __future__ import annotations

import dataclasses
import pickle
import string
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from tl_experiments.config.datasets import Digits, ImageFolder, Letters
from tl_experiments.data.digits import open_digits
from tl_experiments.data.items import Item, Source, fingerprint, source_fingerprint
from tl_experiments.data.letters import FONTS, open_letters, render
from tl_experiments.data.sources import open_source


def _pixels(source: Source) -> np.ndarray:
    return np.stack([np.asarray(source.load(index)) for index in range(len(source.items))])


@pytest.fixture(scope="module")
def letters() -> Source:
    return open_letters(images_per_class=60, size=8, render_seed=0)


def test_digits_are_scikit_learns() -> None:
    source, reference = open_digits(), load_digits()
    assert source.classes == tuple("0123456789")
    assert source.items[17] == Item("digits/17", int(reference.target[17]), None)
    pixels = _pixels(source)
    assert pixels.shape == (1797, 8, 8, 3)
    assert pixels.dtype == np.uint8
    assert pixels.max() == 255
    assert np.array_equal(pixels[..., 0], np.rint(reference.images / 16 * 255))
    assert np.array_equal(pixels[..., 0], pixels[..., 2])
    assert source.fingerprint == open_digits().fingerprint


def test_letters_have_equal_classes_and_unique_ids(letters: Source) -> None:
    assert letters.classes == tuple(string.ascii_uppercase)
    assert set(Counter(item.label for item in letters.items).values()) == {60}
    assert len({item.id for item in letters.items}) == 26 * 60
    assert {item.split for item in letters.items} == {None}


def test_letters_are_deterministic_and_follow_their_options(letters: Source) -> None:
    again = open_letters(60, 8, 0)
    assert again.fingerprint == letters.fingerprint
    assert np.array_equal(_pixels(again), _pixels(letters))
    others = {open_letters(*options).fingerprint for options in [(60, 8, 1), (60, 9, 0), (61, 8, 0)]}
    assert len(others | {letters.fingerprint}) == 4


def test_more_letters_keep_the_first_ones(letters: Source) -> None:
    fewer = open_letters(5, 8, 0)
    position = {item.id: index for index, item in enumerate(letters.items)}
    for index, item in enumerate(fewer.items):
        assert np.array_equal(fewer.load(index), letters.load(position[item.id]))


@pytest.mark.parametrize("size", [8, 13, 28, 64, 100])
def test_letters_come_in_any_size(size: int) -> None:
    image = render("A", size, [0])
    assert image.shape == (size, size)
    assert image.max() > 120
    assert image.min() == 0


def test_no_letter_is_empty_and_none_repeats(letters: Source) -> None:
    pixels = _pixels(letters)[..., 0]
    assert pixels.reshape(len(pixels), -1).max(1).min() > 80
    assert len({image.tobytes() for image in pixels}) == len(pixels)


def test_letters_stand_on_black_and_each_in_its_own_pose(letters: Source) -> None:
    pixels = _pixels(letters)[..., 0]
    assert 0.3 < (pixels == 0).mean() < 0.6  # 0.49 of the digits' pixels are black
    ink = pixels.reshape(26, 60, 64).mean(2)
    between = np.corrcoef(ink)[~np.eye(26, dtype=bool)]
    assert abs(between.mean()) < 0.1  # letters drawn with the same numbers would be bold or thin together


def test_letters_have_the_grey_levels_of_the_digits(letters: Source) -> None:
    assert _pixels(letters).mean() == pytest.approx(_pixels(open_digits()).mean(), rel=0.15)


def test_every_font_has_its_own_capitals() -> None:
    from tl_experiments.data.letters import _glyph

    for font in FONTS:
        assert len({_glyph(letter, font, 0.0, 64).tobytes() for letter in string.ascii_uppercase}) == 26, font


def test_letters_can_be_told_apart_by_a_linear_classifier(letters: Source) -> None:
    pixels = _pixels(letters)[..., 0].reshape(len(letters.items), -1) / 255
    labels = np.array([item.label for item in letters.items])
    held_out = np.arange(len(labels)) % 4 == 0
    classifier = LogisticRegression(max_iter=200).fit(pixels[~held_out], labels[~held_out])
    assert classifier.score(pixels[held_out], labels[held_out]) > 0.7  # 0.86 seen; chance is 0.04


def test_letters_are_made_quickly() -> None:
    start = time.perf_counter()
    open_letters(200, 8, 3)
    assert time.perf_counter() - start < 6  # 0.8 s seen on one core


def test_sources_reach_worker_processes(letters: Source) -> None:
    again = pickle.loads(pickle.dumps(letters))
    assert np.array_equal(again.load(7), letters.load(7))


def test_open_source_knows_every_dataset(
    digits_cfg: Callable[..., Digits],
    folder_cfg: Callable[..., ImageFolder],
    make_folder: Callable[..., object],
) -> None:
    assert open_source(digits_cfg()).classes == tuple("0123456789")
    root = make_folder({"a": 1, "b": 1})
    assert open_source(folder_cfg(root)).classes == ("a", "b")
    options = {key: getattr(digits_cfg(), key) for key in dataclasses.asdict(digits_cfg())}
    cfg = Letters(**{**options, "name": "letters", "images_per_class": 2, "size": 8, "render_seed": 4})
    assert open_source(cfg).fingerprint == open_letters(2, 8, 4).fingerprint


def test_fingerprints_see_where_entries_and_parts_end() -> None:
    variants = [[["ab"]], [["a", "b"]], [["a"], ["b"]], [["a", "b"], []], [["b", "a"]], [[b"ab", ""]]]
    assert len({fingerprint(*parts) for parts in variants}) == len(variants)
    assert fingerprint(["a"]) == fingerprint([b"a"])
    assert len(fingerprint(["\udcff"])) == 64


def test_source_fingerprints_cover_classes_ids_labels_and_contents() -> None:
    items = (Item("x", 0), Item("y", 1))
    variants = {
        source_fingerprint(("a", "b"), items, ["1", "2"]),
        source_fingerprint(("a", "c"), items, ["1", "2"]),
        source_fingerprint(("a", "b"), (Item("x", 0), Item("z", 1)), ["1", "2"]),
        source_fingerprint(("a", "b"), (Item("x", 1), Item("y", 1)), ["1", "2"]),
        source_fingerprint(("a", "b"), items, ["1", "3"]),
    }
    assert len(variants) == 5
