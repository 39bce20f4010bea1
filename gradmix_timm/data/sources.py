"""Open a data set by name: timm's ``create_dataset`` with errors that name the remedy, and the embedded digits."""
from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import create_dataset
from torch.utils.data import IterableDataset

from gradmix_timm.registry import nearest

from .images import DIGITS_SPLITS, DigitsReader, ImageSource, digits
from .listing import said_once
from .opening import expected_files
from .readers import FolderReader, TarReader
from .shortcut import PREFIX, ShortcutSource, inner_name, parse_shortcut
from .subsets import as_source, class_names, stratified

__all__ = ['check_root', 'evaluated_split', 'is_flat', 'list_splits', 'open_dataset']

_logger = logging.getLogger(__name__)
# Prefixes of timm's dataset factory.
_TRAIN = ('train', 'training')
_EVAL = ('val', 'valid', 'validation', 'eval', 'evaluation')
_TEST = ('test', 'testing')
_TORCH = ('cifar10', 'cifar100', 'mnist', 'kmnist', 'fashion_mnist', 'qmnist', 'imagenet', 'places365', 'inaturalist',
          'inat', 'image_folder', 'folder')
# torchvision sets with a train and a test part; timm takes any other split name for the test part.
_TWO_PARTS = _TORCH[:6]
_PREFIXES = ('torch', 'hfds', 'hfids', 'tfds', 'wds', 'sklearn')
_DIGITS_SEED = 0
# Of headers and data in a tar, bytes.
_TAR_BLOCK = 512


def open_dataset(name: str, root: str | os.PathLike[str] | None = None, split: str = 'train', *,
                 class_map: str | dict[str, int] = '', download: bool = False, img_mode: str | None = 'RGB',
                 exif: str = 'ignore', min_classes: int = 2, timm_rule: bool = False, **options: Any) -> Any:
    """A data set of timm's names, or ``sklearn/digits``; an unreadable image in it is an error with its path.

    Args:
        name: '' or 'folder' for class folders or a tar, 'torch/...', 'hfds/...', 'hfids/...', 'tfds/...', 'wds/...',
            or 'sklearn/digits' (splits 'train' and 'test', 80 to 20, stratified, always the same); 'shortcut:NAME' or
            'shortcut:NAME:option=value,...': one of these with a shortcut drawn on its images, see
            :class:`~gradmix_timm.data.Shortcut`.
        root: Folder or tar.
        split: As the data set calls it; for folders a folder or a tar in ``root`` (or timm's synonyms), or ``root``
            itself where it holds none.
        class_map: Class name to label, for folders, tars and Hugging Face.
        download: Fetch it, for torch/ and hfids/.
        img_mode: PIL mode of the images: 'RGB', 'L', ...
        exif: 'ignore' or 'apply' the orientation that a camera wrote beside the pixels.
        min_classes: 2; 1 for images whose classes do not matter (they may lie in ``root`` directly).
        timm_rule: List folders and tars as timm's script does, see :mod:`~gradmix_timm.data.listing`.
        **options: More of ``timm.data.create_dataset``.

    Returns:
        An :class:`~gradmix_timm.data.images.ImageSource` with a settable ``transform``; for streamed sets timm's own.

    Raises:
        ValueError: No such data set, folder or split; no images, an empty class folder, fewer classes than
            ``min_classes``.
    """
    if name.startswith(PREFIX):
        return _with_shortcut(name, root, split, class_map=class_map, download=download, img_mode=img_mode, exif=exif,
                              min_classes=min_classes, timm_rule=timm_rule, **options)
    prefix, slash, rest = name.partition('/')
    prefix = prefix.lower() if slash else ''
    if slash and prefix not in _PREFIXES:
        raise ValueError(f'no data set {name!r}: names begin with {", ".join(p + "/" for p in _PREFIXES)} or are empty '
                         'for a folder')
    if prefix == 'sklearn':
        return _digits(rest, split, class_map, img_mode)
    if prefix == 'torch':
        _check_torch(name, root, split, class_map)
    folder = not prefix or rest.lower() in _TORCH[-2:]
    if folder:
        root = _split_root(name, root, split)
    with _opening_errors(name, root, split):
        if not prefix:
            source = _class_folders(str(root), class_map, img_mode, min_classes, timm_rule, options)
        else:
            arguments: dict[str, Any] = {**options, 'class_map': class_map, 'input_img_mode': img_mode}
            dataset = create_dataset(
                name, root=None if root is None else str(root), split=split, search_split=not folder, download=download,
                **arguments)
            if isinstance(dataset, IterableDataset):
                if exif != 'ignore':
                    raise ValueError(f'{name} is streamed, and decoded by timm, which ignores orientation; type '
                                     '--exif ignore')
                return dataset
            source = as_source(dataset)
    source.input_img_mode, source.exif = img_mode, exif  # torchvision's sets know neither
    if folder and min_classes > 1:
        _check_classes(Path(str(root)), source, min_classes, takes_empty=timm_rule or bool(class_map))
    return source


def list_splits(name: str, root: str | os.PathLike[str] | None = None) -> tuple[str, ...]:
    """Splits of a data set if they are known without opening it; else empty.

    Example:
        >>> list_splits('sklearn/digits')
        ('train', 'test')
    """
    name = inner_name(name)
    if name.lower().startswith('sklearn/'):
        return DIGITS_SPLITS
    if name.lower().removeprefix('torch/') in _TWO_PARTS:
        return ('train', 'test')
    if root is None or not Path(root).is_dir():
        return ()
    there = {p.name if p.is_dir() else p.stem for p in Path(root).iterdir() if p.is_dir() or p.suffix == '.tar'}
    return tuple(sorted(there & {*_TRAIN, *_EVAL, *_TEST}))


def evaluated_split(name: str, root: str | os.PathLike[str] | None = None) -> str:
    """The split to evaluate on: 'test' or 'val', by the name of it that a data set has; 'test' if none is known."""
    there = list_splits(name, root)
    return next((split for split in (*_TEST, *_EVAL) if split in there), 'test')


def is_flat(name: str, root: str | os.PathLike[str] | None, splits: Iterable[str]) -> bool:
    """Whether the root itself holds class folders, so that every split is read as the whole folder (or tar).

    Args:
        name: As in :func:`open_dataset`.
        root: Folder or tar.
        splits: Names of splits that are wanted.
    """
    prefix, slash, rest = inner_name(name).partition('/')
    if not root or (slash and not (prefix.lower() == 'torch' and rest.lower() in _TORCH[-2:])):
        return False
    return not list_splits(name, root) and all(_split_root(name, root, split) == str(Path(root)) for split in splits)


def _with_shortcut(name: str, root: Any, split: str, **options: Any) -> ShortcutSource:
    inner, shortcut = parse_shortcut(name)
    if options.get('target_transform') is not None:
        raise ValueError(f'{name}: a shortcut marks one class per image, and --task multilabel has several')
    opened = open_dataset(inner, root, split, **options)
    if not isinstance(opened, ImageSource):
        raise ValueError(f'{name}: a shortcut needs rows by number, and {inner} is streamed; use its form on disk')
    return ShortcutSource(opened, shortcut)


def _digits(rest: str, split: str, class_map: Any, img_mode: str | None) -> ImageSource:
    if rest.lower() != 'digits':
        raise ValueError(f"no data set 'sklearn/{rest}'; scikit-learn embeds one of images: sklearn/digits")
    if split not in DIGITS_SPLITS:
        raise ValueError(f'no split {split!r} in sklearn/digits: {nearest(split, DIGITS_SPLITS)}')
    if class_map:
        raise ValueError('sklearn/digits takes no class map; leave out --class-map')
    labels = digits()[1]
    test = stratified(labels, 0.2, _DIGITS_SEED)
    rows = test if split == 'test' else np.setdiff1d(np.arange(len(labels)), test)
    return ImageSource(DigitsReader(split, rows), img_mode)


def _check_torch(name: str, root: Any, split: str, class_map: Any) -> None:
    rest = name.split('/', 2)[-1].lower()
    if rest not in _TORCH:
        raise ValueError(f'no data set {name!r}: {nearest("torch/" + rest, ["torch/" + known for known in _TORCH])}')
    if not root:
        raise ValueError(f'{name} needs the folder that holds it, or where to put it: --data-dir DIR')
    if class_map:
        raise ValueError(f'{name} takes no class map; leave out --class-map')
    if rest in _TWO_PARTS and split not in _TRAIN + _EVAL + _TEST:
        raise ValueError(f'no split {split!r} in {name}: {nearest(split, ("train", "test"))}')


def check_root(root: str | os.PathLike[str]) -> Path:
    """The path of the data, where there is something.

    Raises:
        ValueError: There is not.
    """
    path = Path(root)
    if not path.exists():
        raise ValueError(f'no folder at {path}; --data-dir names the folder that holds the data')
    return path


def _split_root(name: str, root: Any, split: str) -> str:
    """The folder (or tar) of a split, found as timm does; without split folders timm reads the root as every split."""
    if not root:
        hint = f' (the embedded data set is sklearn/{name})' if name == 'digits' else ''
        raise ValueError(f'no data given: --data-dir DIR, or --dataset sklearn/digits{hint}')
    path = check_root(root)
    if not path.is_dir():
        if path.suffix != '.tar':
            raise ValueError(f'{path} is a file; --data-dir names a folder of class folders or a .tar of one')
        return str(path)
    wanted = split.split('[')[0]
    group = next((names for names in (_TRAIN, _EVAL) if wanted in names), ())
    found = next((path / f'{other}{end}' for other in (wanted, *group) for end in ('', '.tar')
                  if (path / f'{other}{end}').exists()), None)
    if found is not None:
        return str(found)
    there = list_splits('', path)
    if there:
        raise ValueError(f'no split {split!r} in {path}, which has {", ".join(there)}; name one with --train-split or '
                         '--val-split')
    _note_flat(str(path))
    return str(path)


@functools.cache
def _note_flat(path: str) -> None:
    """Said once, however often the folder is opened."""
    _logger.info(f'{path} has no split folders: each split is read from the whole folder')


def _class_folders(root: str, class_map: str | dict[str, int], img_mode: str | None, min_classes: int,
                   timm_rule: bool, options: dict[str, Any]) -> ImageSource:
    """A folder or tar of class folders."""
    if options.get('target_key') is not None:
        raise ValueError(f'--target-key {options["target_key"]} names a column of hfds/, and class folders have none')
    extensions = (options.get('input_key') or '').split(';') if options.get('input_key') else None
    if os.path.isfile(root):
        _check_tar(Path(root))
        reader: Any = TarReader(root, class_map, timm_rule, one_class=min_classes < 2)
    else:
        reader = FolderReader(root, class_map, timm_rule, extensions)
    return ImageSource(reader, img_mode, target_transform=options.get('target_transform'))


def _check_tar(path: Path) -> None:
    """Reject a truncated tar, which would silently be read in part: a complete one ends with a block of zeros."""
    with path.open('rb') as file:
        plain = file.read(_TAR_BLOCK)[257:262] == b'ustar'
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAR_BLOCK))
        if plain and file.read().strip(b'\0'):
            raise ValueError(f'{path} is cut short at {size:,} bytes (a tar ends with zeros): fetch it again')


@contextmanager
def _opening_errors(name: str, root: Any, split: str) -> Iterator[None]:
    """Convert exceptions of readers to a ValueError with the remedy."""
    where = f' in {root}' if root else ''
    try:
        yield
    except ImportError as error:
        package = {'hfds': 'datasets', 'hfids': 'datasets', 'tfds': 'tensorflow-datasets', 'wds': 'webdataset'}.get(
            name.partition('/')[0].lower(), error.name)
        raise ValueError(f'{name} needs a package that is not installed: pip install {package}') from error
    except Exception as error:  # timm, torchvision and the hub raise anything, assertions included
        if isinstance(error, ValueError) and '/' not in name:  # of our own readers
            raise
        text = ' '.join(str(error).split())
        if 'download=True' in text:
            raise ValueError(f'{name} is not{where}; --dataset-download fetches it') from error
        raise ValueError(f'data set {name!r}{where}, split {split!r}, could not be opened: '
                         f'{text or type(error).__name__}') from error


def _check_classes(root: Path, source: ImageSource, least: int, takes_empty: bool) -> None:
    """Reject folders that yield wrong classes: a folder without images, images beside the folders, a single folder."""
    names = class_names(source)
    if '' in names:
        raise ValueError(f'images lie in {root} itself; expected one folder a class: CLASS/IMAGE.png')
    empty = getattr(source.reader, 'empty', ())
    if empty and not takes_empty:
        raise ValueError(f'class folder {empty[0]} holds no image ({expected_files()}); fill or remove it')
    if empty:
        left_out = sorted(Path(folder).name for folder in empty)
        said_once(f'{root}: left out, as they hold no image: {", ".join(left_out[:5])}'
                  f'{", ..." if left_out[5:] else ""}')
    if len(names) < least:
        raw = (root / 'val_annotations.txt').exists()
        hint = '; sort the images of TinyImageNet into class folders by val_annotations.txt' if raw else ''
        raise ValueError(f'{root} has one class, {names[0]!r}; expected {least} or more: CLASS/IMAGE.png{hint}')
