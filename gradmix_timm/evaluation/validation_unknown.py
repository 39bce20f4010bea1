"""The validation set of unknown images for choosing options of scores, disjoint from all evaluated images."""
from __future__ import annotations

from gradmix_timm.data import CutDataset, open_outside, parse_unknown, shared_classes
from gradmix_timm.data.preprocessing import Preprocessing

from .images import EvaluationImages, shared_count

__all__ = ['check_validation_unknown', 'open_validation_unknown']


def open_validation_unknown(word: str, images: EvaluationImages, preprocessing: Preprocessing,
                            data_dir: str | None = None) -> CutDataset:
    """Open the set of a specification.

    Args:
        word: As of ``--unknown``: folder:NAME=DIR, torchvision:NAME, timm:NAME=DIR, noise:NAME.
        images: What is evaluated.
        preprocessing: How files are decoded.
        data_dir: Folder of sets specified without one.

    Raises:
        ValueError: As of :func:`check_validation_unknown`, or there is no such set.
    """
    assert images.unknown is not None
    _check_held_out(word, images)
    spec = parse_unknown(word)
    if spec.name in images.unknown.sets and spec.kind in ('noise', 'made'):
        raise ValueError(f'tune={word} is a set that is evaluated; with options picked on it its figures would be '
                         'no test: name another set')
    found = open_outside(spec, images.split.known, root=data_dir or images.source.get('data_dir'),
                         mode=preprocessing.image_mode, exif=preprocessing.exif).images
    check_validation_unknown(word, found, images, found.classes if spec.kind == 'folder' else ())
    return found


def check_validation_unknown(word: str, found: CutDataset, images: EvaluationImages, classes: tuple[str, ...]) -> None:
    """Reject a validation set that is not apart from what is evaluated.

    Args:
        word: What the caller typed, for messages.
        found: The set.
        images: What is evaluated.
        classes: Names of the set's classes; () where they mean nothing to other data sets, as numbers.

    Raises:
        ValueError: It shares an image or a class with the evaluated images or the known classes, or an image with
            training images; or no known images were held out to compare it with.
    """
    assert images.unknown is not None
    _check_held_out(word, images)
    tests = {name or 'the unknown classes': part for name, part in images.unknown.sets.items()}
    for name, part in {**tests, 'the known test images': images.known}.items():
        if shared := shared_count(part, found):
            raise ValueError(f'tune={word} shares {shared} of its {len(found)} images with {name}, which are '
                             'evaluated; name a set apart from them')
    images.check_unknown(f'tune={word}', found)
    for name, others in {**{name: part.classes for name, part in tests.items()},
                         'the known images': images.split.known}.items():
        if both := shared_classes(classes, others):
            raise ValueError(f'tune={word} has {len(both)} classes of {name} ({next(iter(both.values()))!r}, ...), '
                             'which are evaluated; name a set of other classes')


def _check_held_out(word: str, images: EvaluationImages) -> None:
    if images.held_out is None or not len(images.held_out):
        raise ValueError(f'tune={word} is set against known images that were held out from training, and none were; '
                         'train with --osr-val-fraction (in Python: held_out=IMAGES), or leave out tune=')
