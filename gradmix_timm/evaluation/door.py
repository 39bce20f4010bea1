""":func:`evaluate`: evaluation of a live module, a checkpoint or a timm model on loaders, data sets or folders."""
from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gradmix_timm.checkpoint import load_checkpoint
from gradmix_timm.data import ClassSplit, CutDataset, ImageSource, class_names, is_flat, split_flat
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.openset.extract import without_unknown_output
from gradmix_timm.openset.near_far import near_and_far
from gradmix_timm.registry import nearest

from .accuracy import check_gate
from .handed import HandedImages, as_unknown, in_head_order, open_handed
from .images import EvaluationImages, UnknownImages, check_held_out
from .model import EvaluatedModel
from .opening import head_is_imagenet, head_names, open_place, some_classes, with_sets
from .result import Evaluation
from .settings import EvaluationSettings, listed, one_or_more
from .steps import evaluate_images
from .unknown import UnknownOptions, open_unknown
from .validation_unknown import check_validation_unknown, open_validation_unknown

__all__ = ['evaluate', 'open_known']

_KNOWN = 'known test images'
_SCHEMES = ('folder:', 'torchvision:', 'timm:', 'noise:', 'made:')


def evaluate(model: nn.Module | str | os.PathLike[str], *, known: Any, unknown: Any, train: Any = None,
             scores: Sequence[str] | None = None, held_out: Any = None, known_classes: Sequence[str] | None = None,
             preprocessing: Preprocessing | None = None, pretrained: bool = True, img_size: int | None = None,
             device: torch.device | str | None = None, gate: str = 'warn', reference_top1: float | None = None,
             near: Sequence[str] = (), far: Sequence[str] = (), overlap: str = 'refuse', tune: Any = None,
             unknown_output: bool = False, **settings: Any) -> Evaluation:
    """Evaluate how well a model classifies known images and separates unknown images from them.

    Images are a DataLoader (or any iterable of batches of images and labels), a data set of (image, label), tensors or
    arrays (images [N, C, H, W], labels [N]), unknown ones also without labels, or a folder of class folders. Tensors
    are read as they are, pictures and folders through the model's own preprocessing, at the same size. Labels of a data
    set that names its classes (``classes`` or ``class_to_idx``, as those of torchvision and timm) are matched with the
    head's by name, as class folders are; others are positions in the head.

    Args:
        model: A live module that gives logits [B, K], which is left as it was (mode, hooks, requires_grad, device);
            the path of a checkpoint; or timm's name of a model.
        known: Test images of known classes.
        unknown: Images of other classes, or a dict from name to such images: each a group of its own. A string may
            also be 'noise:uniform', 'torchvision:svhn', ... as ``openset ood`` takes them.
        train: Training images, un-augmented. Without them scores that are fitted are left out by name.
        scores: Names, options in them: 'mls', 'knn:k=5'. None: all that can be served.
        held_out: Known images that took no part in training, to set the threshold on.
        known_classes: Names in head order. None: the checkpoint's, the data set's, ImageNet's, or numbers.
        preprocessing: Of pictures and folders, for a live module; None: as its ``pretrained_cfg`` says. Its size has to
            be that of tensors that are passed beside them.
        pretrained: Whether a model by timm's name comes with its weights.
        img_size: Side in pixels in place of the checkpoint's or the model's; not of a live module.
        device: Of a checkpoint or timm's model; a live module stays where it is.
        gate: What to do about a model that is less accurate than its reference: 'refuse', 'warn', 'off'.
        reference_top1: Percent that it should reach on the known images, from 1 to 100.
        near: Names of unknown sets that count as near.
        far: The same for far.
        overlap: What to do about unknown classes named like a known one: 'refuse', 'drop', 'keep'.
        tune: Unknown images, apart from all others, on which options of scores are picked against ``held_out``, by
            OpenOOD's grids; ``results['tuning']`` says what was tried.
        unknown_output: The last output of a live module is for no class: a copy is evaluated whose logits are
            z_k - z_unknown. A checkpoint says so itself.
        **settings: Of :class:`EvaluationSettings`: ``batch_size``, ``bootstrap``, ``seed``, ``cache``, ...

    Raises:
        ValueError: Images or classes that do not fit the model, images of two sizes, test or held-out images that are
            training images, a validation set (``tune``) that shares an image or a class with what is evaluated.
        TypeError: An unknown setting, or images of another kind.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> images, labels = torch.randn(20, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2
        >>> data = torch.utils.data.TensorDataset(images, labels)
        >>> result = evaluate(net, known=data, unknown=torch.utils.data.TensorDataset(3 - images, labels),
        ...                   scores=('msp', 'mls'), bootstrap=0)
        >>> list(result.scores), len(result.predictions)
        (['msp', 'mls'], 40)
    """
    allowed = [field.name for field in fields(EvaluationSettings)]
    if strays := [name for name in settings if name not in allowed]:
        raise TypeError(f'evaluate() has no setting {strays[0]!r}: {nearest(strays[0], allowed)}')
    check_gate(gate, reference_top1)
    if tune is not None and held_out is None:
        raise ValueError('tune= is set against known images that were held out from training; add held_out=IMAGES, or '
                         'leave out tune=')
    chosen, known_classes = EvaluationSettings(scores=scores, **settings), listed(known_classes)
    if unknown_output not in (True, False):
        raise ValueError(f'unknown_output={unknown_output!r}: expected True or False')
    if unknown_output:
        if not isinstance(model, nn.Module):
            raise ValueError('unknown_output=True is for live modules; a checkpoint of train.py --unknown-output '
                             'records it')
        model = without_unknown_output(model)
    with _random_state_kept():
        subject = _model_of(model, chosen, preprocessing, pretrained, img_size, device, known_classes)
        images = _images_of(subject, known, train, held_out, known_classes)
        images = _with_unknown(subject, images, unknown, UnknownOptions(
            sets=(), overlap=overlap, made_seed=chosen.seed, near=one_or_more(near), far=one_or_more(far)))
        picked = None if tune is None else _validation_unknown(subject, images, tune)
        _check_sizes(subject, {**images.cuts(), **({} if picked is None else {'tune': picked[1]})})
        return evaluate_images(subject, images, gate=gate, reference_top1=reference_top1, tune=picked,
                               command='gradmix_timm.evaluate(...)')


# ---- the model

def _model_of(model: Any, settings: EvaluationSettings, preprocessing: Preprocessing | None, pretrained: bool,
              img_size: int | None, device: Any, known_classes: Sequence[str] | None) -> EvaluatedModel:
    if isinstance(model, nn.Module):
        if img_size is not None or device is not None:
            raise ValueError('img_size=N and device=NAME are for checkpoints and models by name; a live module stays '
                             'where it is: preprocessing=Preprocessing(...), module.to(device)')
        return EvaluatedModel.of(model, settings, preprocessing)
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f'model is {type(model).__name__}; expected a module, the path of a checkpoint, or a name of '
                        "timm's")
    if preprocessing is not None:
        raise ValueError('preprocessing=Preprocessing(...) is for live modules; a checkpoint and a model by name bring '
                         'their own')
    path = Path(model)
    if path.exists() or isinstance(model, os.PathLike) or path.suffix in ('.pth', '.pt', '.tar', '.safetensors'):
        loaded = load_checkpoint(path)
        return EvaluatedModel.build(settings, loaded, num_classes=None if known_classes is None else len(known_classes),
                                    img_size=img_size, device=device)
    return EvaluatedModel.build(settings, None, str(model), pretrained=pretrained, img_size=img_size, device=device)


# ---- the images

def _images_of(model: EvaluatedModel, known: Any, train: Any, held_out: Any, known_classes: Sequence[str] | None,
               ) -> EvaluationImages:
    """Known images, opened; those in memory are embedded on the way."""
    record = model.loaded.record if model.loaded is not None else None
    names = tuple(known_classes) if known_classes is not None else record.known_classes if record is not None else ()
    source = {'dataset': '', 'data_dir': None, 'train': _described(train), 'test': _described(known)}
    if _is_path(known):
        folder = _opened(model, known, _KNOWN)
        names = names or head_names(model.net, class_names(folder), str(known))
        test = some_classes(folder, names, f'known={known}')
    else:
        test = open_handed(known, _KNOWN, model)
        names = names or _handed_names(model, test)
        test = in_head_order(test, names, _KNOWN)
    split = ClassSplit(known=names, unknown=())
    held = open_known(model, held_out, names, 'held-out images')
    fitted: CutDataset | None
    if _is_path(known) and _is_path(train) and Path(train) == Path(known) and is_flat('', known, ('train', 'test')):
        source['flat_test'] = 'of each class a fifth, seed 0'
        fitted, test = split_flat(test)
    else:
        fitted = open_known(model, train, names, 'known training images', 'train')
    check_held_out(fitted, held)
    return EvaluationImages(test, split, None, fitted, held, source)


def open_known(model: EvaluatedModel, data: Any, names: Sequence[str], title: str, split: str = 'test',
               ) -> CutDataset | None:
    """A caller's images of known classes, opened, as :func:`evaluate` takes them.

    Args:
        model: That they are for.
        data: A loader, a data set or a folder; None: there are none.
        names: Known classes in head order.
        title: What they are, for messages.
        split: Of a folder that has several.

    Raises:
        TypeError: Images of another kind.
        ValueError: No image, or one of another class.
    """
    if data is None:
        return None
    if _is_path(data):
        return some_classes(_opened(model, data, title, split), names, str(data))
    return in_head_order(open_handed(data, title, model), names, title)


def _opened(model: EvaluatedModel, place: str | os.PathLike[str], title: str, split: str = '') -> ImageSource:
    reading = model.reading()
    if not Path(place).exists():
        raise ValueError(f'{title}: no folder or tar at {place}')
    return open_place(place, reading, split)


def _handed_names(model: EvaluatedModel, test: CutDataset) -> tuple[str, ...]:
    """Names of the head's classes: the data set's, if it has as many, ImageNet's, or numbers."""
    count = model.outputs(test)
    if len(test.classes) == count:
        return test.classes
    return head_names(model.net, test.classes, _KNOWN) if head_is_imagenet(model.net) else tuple(
        map(str, range(count)))


def _with_unknown(model: EvaluatedModel, images: EvaluationImages, unknown: Any, options: UnknownOptions,
                  ) -> EvaluationImages:
    """The known images with the unknown ones: one set, or a group a name."""
    parts = dict(unknown) if isinstance(unknown, Mapping) else {'unknown': unknown}
    if not parts:
        raise ValueError('unknown={}: expected one set of unknown images at least')
    names = [str(name) for name in parts]
    if taken := [name for name in names if name in ('', 'all') or names.count(name) > 1]:
        raise ValueError(f'unknown={{{taken[0]!r}: ...}}: expected a name of its own for each set; all is what results '
                         'call all of them together')
    words = {str(name): _word(str(name), data) for name, data in parts.items() if isinstance(data, str | os.PathLike)}
    opened = None
    if words:
        opened = open_unknown(replace(options, sets=tuple(words.values())), images, model.reading())
    of_word = {} if opened is None else dict(zip(words, opened.sets.items(), strict=True))
    sets, facts = {}, {}
    for name, data in ((str(name), data) for name, data in parts.items()):
        if opened is not None and name in of_word:
            given, sets[name] = of_word[name]
            facts[name] = opened.facts[given]
        else:
            sets[name] = as_unknown(open_handed(_labelled(data), f'images of {name}', model))
            images.check_unknown(name, sets[name])
            facts[name] = {'source': _described(data), 'kind': None, 'dropped_classes': [], 'dropped_images': 0,
                           'known_classes_kept': []}
    for kind, names in near_and_far(None, list(sets), options.near, options.far).items():
        for name in names:
            facts[name]['kind'] = kind
    if isinstance(unknown, Mapping):
        return with_sets(images, UnknownImages.named(sets, facts))
    only = sets['unknown']
    return replace(images, unknown=UnknownImages({'': only}, np.zeros(len(only), np.int64)), split=ClassSplit(
        known=images.split.known, unknown=('unknown',), unknown_dataset='unknown'))


def _validation_unknown(model: EvaluatedModel, images: EvaluationImages, data: Any) -> tuple[str, CutDataset]:
    """What options of scores are picked on: how results record it, and the images."""
    if _is_path(data):
        word = _word('validation', data)
        return word, open_validation_unknown(word, images, model.reading())
    found = as_unknown(open_handed(_labelled(data), 'validation images of unknown classes', model))
    check_validation_unknown(_described(data), found, images, found.classes)
    return _described(data), found


def _labelled(data: Any) -> Any:
    """Unknown images alone, [N, C, H, W], with the labels that a data set has."""
    alone = isinstance(data, torch.Tensor | np.ndarray) and data.ndim == 4
    return (torch.as_tensor(data), torch.zeros(len(data), dtype=torch.int64)) if alone else data


def _check_sizes(model: EvaluatedModel, cuts: Mapping[str, CutDataset]) -> None:
    """Reject tensors of another size than other images are read at, which would tell the sets apart by size."""
    read = next((name for name, images in cuts.items() if not isinstance(images, HandedImages)), None)
    if read is None:
        _check_alike({name: images.sizes for name, images in cuts.items() if isinstance(images, HandedImages)})
        return
    channels, *size = model.reading().input_size
    for name, images in cuts.items():
        for height, width in images.sizes if isinstance(images, HandedImages) else ():
            if [height, width] != size:
                live = model.loaded is None and not model.weights
                way = (f"preprocessing=Preprocessing.of({{'input_size': ({channels}, {height}, {width})}}, model), of "
                       'gradmix_timm.data.preprocessing' if live else f'img_size={height}')
                raise ValueError(
                    f'images of {name} are tensors of {height} x {width} pixels and those of {read} are read at '
                    f'{size[0]} x {size[1]}, so that their scores would not compare; read them at the size of the '
                    f'tensors, {way}, or pass tensors of {size[0]} x {size[1]}')


def _check_alike(sizes: Mapping[str, Sequence[tuple[int, int]]]) -> None:
    """Reject tensors of another size than a set whose tensors are of one size."""
    first, side = next(((name, found[0]) for name, found in sizes.items() if len(found) == 1), ('', (0, 0)))
    for name, found in sizes.items() if first else ():
        for other in found:
            if other != side:
                raise ValueError(
                    f'images of {name} are tensors of {other[0]} x {other[1]} pixels and those of {first} of '
                    f'{side[0]} x {side[1]}, so that their scores would not compare; pass tensors of one size')


def _word(name: str, data: Any) -> str:
    text = os.fspath(data)
    if text.startswith(_SCHEMES):
        return text
    if '=' in name:
        raise ValueError(f'unknown={{{name!r}: {text!r}}}: expected a name without "=", which ends the name in '
                         'folder:NAME=DIR')
    return f'folder:{name}={text}'


def _is_path(data: Any) -> bool:
    return isinstance(data, str | os.PathLike)


def _described(data: Any) -> str:
    return str(data) if data is None or _is_path(data) else type(data).__name__


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Restore the caller's random states on exit, since loaders draw a seed from torch's."""
    numpy, python = np.random.get_state(), random.getstate()  # noqa: NPY002 - the caller's own
    with torch.random.fork_rng():
        try:
            yield
        finally:
            np.random.set_state(numpy)  # noqa: NPY002
            random.setstate(python)
