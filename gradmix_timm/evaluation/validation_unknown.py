"""The validation set of unknown images for choosing options of scores, disjoint from all evaluated images."""
from __future__ import annotations

from gradmix_timm.data import CutDataset, class_names, open_outside, parse_unknown, shared_classes
from gradmix_timm.data.identity import overlap
from gradmix_timm.data.preprocessing import Preprocessing

from .images import EvaluationImages

__all__ = ['open_validation_unknown']


def open_validation_unknown(word: str, images: EvaluationImages, preprocessing: Preprocessing,
                            data_dir: str | None = None) -> CutDataset:
    """Open the set of a specification.

    Args:
        word: As of ``--unknown``: folder:NAME=DIR, torchvision:NAME, timm:NAME=DIR, noise:NAME.
        images: What is evaluated.
        preprocessing: How files are decoded.
        data_dir: Folder of sets specified without one.

    Raises:
        ValueError: It shares an image or a class with the evaluated images or the known classes; or no known images
            were held out to compare it with.
    """
    assert images.unknown is not None
    if images.held_out is None or not len(images.held_out):
        raise ValueError(f'tune={word} is set against known images that were held out from training, and none were; '
                         'train with --osr-val-fraction, or leave out tune=')
    spec = parse_unknown(word)
    tests = {name or 'the unknown classes': part for name, part in images.unknown.sets.items()}
    if spec.name in images.unknown.sets and spec.kind in ('noise', 'made'):
        raise ValueError(f'tune={word} is a set that is evaluated; with options picked on it its figures would be '
                         'no test: name another set')
    found = open_outside(spec, images.split.known, root=data_dir or images.source.get('data_dir'),
                         mode=preprocessing.image_mode, exif=preprocessing.exif).images
    for name, part in {**tests, 'the known test images': images.known}.items():
        if not isinstance(part, CutDataset):
            continue  # tensors have no file names to compare
        if shared := overlap(part, found):
            raise ValueError(f'tune={word} shares {shared.paths + shared.contents} of its {len(found)} images with '
                             f'{name} ({shared.examples[0][0]}, ...), which are evaluated; name a set apart from them')
        if spec.kind == 'folder' and name != 'the known test images' and (
                both := shared_classes(_classes(found), images.split.unknown if '' in images.unknown.sets
                                       else _classes(part))):
            raise ValueError(f'tune={word} has {len(both)} classes of {name} ({next(iter(both.values()))!r}, ...), '
                             'which are evaluated; name a set of other classes')
    return found


def _classes(images: CutDataset) -> tuple[str, ...]:
    """Names of the class folders; () of sets without them."""
    try:
        return class_names(images.source)
    except (ValueError, TypeError):
        return ()
