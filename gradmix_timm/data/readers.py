"""Folders and tars of class folders as timm readers, listed by one rule; see :mod:`.listing`."""
from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from timm.data.readers import get_img_extensions
from timm.data.readers.class_map import load_class_map
from timm.data.readers.reader import Reader
from timm.data.readers.reader_image_in_tar import ReaderImageInTar, extract_tarinfos
from timm.utils.misc import natural_key

from .listing import class_folder, is_hidden, list_images, said_once
from .opening import expected_files, image_extensions, open_regular

__all__ = ['FileReader', 'FolderReader', 'TarReader']

# Folders that tars wrap their class folders in.
_WRAPPERS = {'train', 'training', 'val', 'valid', 'validation', 'eval', 'evaluation', 'test', 'testing', 'images'}
# From this size on timm caches the list of a tar's members in a file beside it, with only its own extensions.
_TIMM_CACHES = 10 * 1024 ** 3


class FileReader(Reader):
    """Files by path.

    Args:
        root: The folder above all of them; names are relative to it.
        samples: Path and label of each.
    """

    def __init__(self, root: str | os.PathLike[str], samples: Sequence[tuple[str, int]]) -> None:
        super().__init__()
        self.root, self.samples = str(root), list(samples)

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        path, label = self.samples[index]
        return open_regular(path), label

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = self.samples[index][0]
        return os.path.basename(path) if basename else path if absolute else os.path.relpath(path, self.root)


class FolderReader(FileReader):
    """Class folders.

    Args:
        root: The folder.
        class_map: Class name to label, or a file that timm reads; other classes are left out.
        timm_rule: As in :func:`~gradmix_timm.data.listing.list_images`.
        extensions: In place of the rule's.

    Attributes:
        samples: (path, label) of each image.
        empty: Class folders without an image.

    Raises:
        ValueError: No image.
    """

    def __init__(self, root: str, class_map: str | dict[str, int] = '', timm_rule: bool = False,
                 extensions: Sequence[str] | None = None) -> None:
        found = list_images(root, timm_rule, extensions)
        self.empty = found.empty
        self.class_to_idx = _labels(root, found.classes, class_map)
        super().__init__(root, [
            (path, self.class_to_idx[name]) for path, name in zip(found.files, found.classes, strict=True)
            if name in self.class_to_idx])
        if not self.samples:
            ends = ', '.join(extensions or get_img_extensions()) if extensions or timm_rule else expected_files()
            left_out = f'{found.describe()} left out; ' if found.left_out else ''
            raise ValueError(f'no image in {root} ({ends}); {left_out}expected one folder a class: CLASS/IMAGE.png')


class TarReader(ReaderImageInTar):
    """A tar of class folders, which may lie in a folder of the tar's name or of a split's.

    Args:
        root: The tar.
        class_map: As of :class:`FolderReader`.
        timm_rule: The same.
        one_class: Whether a single class is allowed, so that one folder around all others counts as a class.

    Raises:
        ValueError: No image.
    """

    def __init__(self, root: str, class_map: str | dict[str, int] = '', timm_rule: bool = False,
                 one_class: bool = False) -> None:
        Reader.__init__(self)
        timms = timm_rule or os.path.getsize(root) > _TIMM_CACHES
        try:
            members, _, _, states = extract_tarinfos(root, extensions=None if timms else set(image_extensions()))
        except ValueError as error:  # an empty list of members does not unpack
            raise _no_image(root) from error
        paths = [posixpath.normpath(posixpath.join('' if child is None else os.path.splitext(child.name)[0],
                                                   member.path.lstrip('/'))) for member, _, child in members]
        shown = [not any(is_hidden(part, timm_rule) for part in path.split('/')) for path in paths]
        if not all(shown):
            hidden = [path for path, kept in zip(paths, shown, strict=True) if not kept]
            said_once(f'{root}: {len(hidden)} hidden or litter ({hidden[0]}, ...) left out')
        paths = [path for path, kept in zip(paths, shown, strict=True) if kept]
        if not timm_rule:
            paths = _unwrapped(paths, None if not one_class else {Path(root).stem, *_WRAPPERS})
        names = [class_folder(path, timm_rule) for path in paths]
        self.class_name_to_idx = _labels(root, names, class_map)
        mapped = [name in self.class_name_to_idx for name in names]
        if not any(mapped):
            raise _no_image(root)
        self.root, self.cache_tarfiles, self.root_is_tar = root, True, True
        self.samples = members[np.flatnonzero(shown)[mapped]]
        self.targets = np.array([self.class_name_to_idx[name] for name in names if name in self.class_name_to_idx])
        self.class_idx_to_name = {label: name for name, label in self.class_name_to_idx.items()}
        self.tar_state = states[0][1]


def _no_image(root: str) -> ValueError:
    return ValueError(f'no image in {root} ({expected_files()}); expected one folder a class: CLASS/IMAGE.png')


def _labels(root: str, names: Sequence[str], class_map: str | dict[str, int]) -> dict[str, int]:
    """Class names to labels: the map's, with a warning of the classes that it leaves out, else in timm's order.

    In timm's order names that it considers equal, 'a' and 'A', are in alphabetical order.
    """
    if not class_map:
        ordered = sorted(set(names), key=lambda name: (natural_key(name), name))
        return {name: label for label, name in enumerate(ordered)}
    # Windows' editors write a byte order mark; a blank last line would be a class without a name.
    found = {name.removeprefix('\ufeff'): label for name, label in load_class_map(class_map, root).items()}
    found.pop('', None)
    if strays := sorted(set(names) - set(found)):
        count, empty = sum(name not in found for name in names), sorted(set(found) - set(names))
        also = f', and {len(empty)} of its classes have no image ({", ".join(empty[:3])})' if empty else ''
        said_once(f'{root}: {count} images of {len(strays)} classes that the class map does not name '
                  f'({", ".join(strays[:3])}) left out{also}')
    return found


def _unwrapped(paths: list[str], wrappers: set[str] | None) -> list[str]:
    """Paths without the folders that enclose all class folders: any, or those of the given names."""
    while True:
        parts = [path.split('/') for path in paths]
        tops = {part[0] for part in parts}
        if len(tops) != 1 or min(map(len, parts)) < 3 or (wrappers is not None and not tops <= wrappers):
            return paths
        paths = ['/'.join(part[1:]) for part in parts]
