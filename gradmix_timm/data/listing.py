"""List the images of a folder or tar with their classes, in order; a warning names skipped files once.

Two rules. Ours: the top folder is the class, every raster format that Pillow opens counts, hidden files do not.
timm's, for plain runs that equal its script: the innermost folder is the class, and timm's extensions alone count.
"""
from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from timm.data.readers import get_img_extensions
from timm.utils.misc import natural_key

from .opening import image_extensions

__all__ = ['Listing', 'class_folder', 'list_images', 'said_once']

_logger = logging.getLogger(__name__)
_LITTER = {'__MACOSX', '.ipynb_checkpoints', '@eaDir', '.AppleDouble', '.DS_Store', '.Trashes', '.Spotlight-V100',
           '.fseventsd', '.thumbnails', 'Thumbs.db', 'desktop.ini', '$RECYCLE.BIN', 'System Volume Information'}
_OTHER, _HIDDEN, _SPECIAL = 'files of other formats', 'hidden or litter', 'pipes, devices or sockets'
_LINKS = 'circular links or links to listed folders'
_ONE = {_OTHER: 'file of another format', _SPECIAL: 'pipe, device or socket',
        _LINKS: 'circular link or link to a listed folder'}
_SHOWN = {_OTHER: 6}
_said: set[str] = set()


@dataclass(slots=True)
class Listing:
    """The images of a folder, in order.

    Attributes:
        root: The folder.
        files: Paths that begin with ``root``.
        classes: Of each file the name of its class; '' of files that lie in the folder itself.
        empty: Class folders without an image.
        left_out: Kind to the paths below ``root`` that were left out.
    """

    root: str
    files: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, kind: str, path: str) -> None:
        """Record a file, folder or link as left out."""
        self.left_out.setdefault(kind, []).append(os.path.relpath(path, self.root))

    def describe(self) -> str:
        """A description of what was left out, or ''."""
        return '; '.join(_counted(kind, names) for kind, names in self.left_out.items())


def list_images(root: str | os.PathLike[str], timm_rule: bool = False, extensions: Iterable[str] | None = None,
                ) -> Listing:
    """The images below a folder; none is opened. A warning, once for each folder, names what was left out.

    Args:
        root: The folder.
        timm_rule: The innermost folder is the class, extensions and order are timm's, and hidden files count (litter
            of operating systems does not).
        extensions: In place of the rule's, with their dots.

    Raises:
        OSError: A folder that cannot be read.
    """
    chosen = extensions or (get_img_extensions() if timm_rule else image_extensions())
    walk = _Walk(Listing(os.fspath(root)), {end.lower() for end in chosen}, timm_rule)
    found = walk.run()
    order = sorted(range(len(found.files)), key=lambda at: natural_key(found.files[at]))
    found.files, found.classes = [found.files[at] for at in order], [found.classes[at] for at in order]
    if timm_rule:
        start = len(os.path.join(found.root, ''))
        tops = {path[start:].split(os.sep, 1)[0] for path, name in zip(found.files, found.classes, strict=True) if name}
        if not tops <= set(found.classes):
            first = ', '.join(sorted(set(found.classes))[:3])
            said_once(f"{found.root}: class folders lie in other folders; as in timm's script the innermost are the "
                      f'classes ({first}, ...), and with --known-classes the top ones')
    if found.left_out:
        images = {end for end in (_end(name) for name in found.left_out.get(_OTHER, ())) if end in image_extensions()}
        hint = (f'; --input-key "{";".join(sorted({*chosen, *images}))}" takes all image formats'
                if images and timm_rule else '')
        said_once(f'{found.root}: {found.describe()} left out{hint}')
    return found


def class_folder(path: str, timm_rule: bool) -> str:
    """The class of a file by its path below a root, with '/' between folders; '' for files in the root.

    Example:
        >>> class_folder('cat/day1/x.jpg', timm_rule=False), class_folder('cat/day1/x.jpg', timm_rule=True)
        ('cat', 'day1')
    """
    folders = path.split('/')[:-1]
    return folders[-1 if timm_rule else 0] if folders else ''


def is_hidden(name: str, timm_rule: bool) -> bool:
    """Whether a file or folder of this name is ignored."""
    return name in _LITTER or name.startswith('._' if timm_rule else '.')


def said_once(line: str) -> None:
    """Warn once in a process, since one command lists a folder several times."""
    if line not in _said:
        _said.add(line)
        _logger.warning(line)


def _counted(kind: str, names: Sequence[str]) -> str:
    if kind == _OTHER:
        counts = sorted(Counter(map(_end, names)).items(), key=lambda pair: (-pair[1], pair[0]))
        shown = [f'{count} {end or "without extension"}' for end, count in counts]
    else:
        shown = sorted(names)
    most = _SHOWN.get(kind, 3)
    words = _ONE.get(kind, kind) if len(names) == 1 else kind
    return f'{len(names)} {words} ({", ".join(shown[:most])}{", ..." if len(shown) > most else ""})'


def _end(name: str) -> str:
    return os.path.splitext(name)[1].lower()


class _Walk:
    """Fills a listing, by timm's rule in the order of :func:`os.walk` from below, as timm does."""

    def __init__(self, found: Listing, extensions: set[str], timm_rule: bool) -> None:
        self.found, self.extensions, self.timm_rule = found, extensions, timm_rule
        self.seen: set[tuple[int, int]] = set()
        self.links: list[os.DirEntry[str]] = []

    def run(self) -> Listing:
        """List everything; by our rule links come last, after the files of the root itself."""
        above = frozenset(map(_inode, _parents(os.path.realpath(self.found.root))))
        self.seen |= above
        self._folder(self.found.root, '', above)
        listed: set[str] = set()
        for link in self.links:  # the list grows while linked folders are listed
            label = os.path.relpath(link.path, self.found.root).split(os.sep)[0]
            if link.is_dir():
                self._folder(link.path, label, above)
                continue
            listed = listed or set(map(_real, self.found.files))
            target = os.path.realpath(link.path)
            if target in listed:
                self.found.leave_out(_LINKS, link.path)
            else:
                listed.add(target)
                self._file(link, '' if label == link.name else label)
        if not self.timm_rule:
            self.found.empty = [path for path in self.found.empty if os.path.basename(path) not in self.found.classes]
        return self.found

    def _folder(self, path: str, label: str, above: frozenset[tuple[int, int]]) -> None:
        inode = _inode(path)
        if inode in (above if self.timm_rule else self.seen):
            self.found.leave_out(_LINKS, path)
            return
        self.seen.add(inode)
        folders, files = self._entries(path)
        for entry in folders:
            self._folder(entry.path, entry.name if self.timm_rule else label or entry.name, above | {inode})
        before = len(self.found.files)
        for entry in files:
            self._file(entry, label)
        top = os.path.dirname(path) == self.found.root.rstrip(os.sep)
        if not folders and len(self.found.files) == before if self.timm_rule else top:
            self.found.empty.append(path)

    def _entries(self, path: str) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
        """Folders and files; by our rule in order of their names, with links deferred."""
        folders: list[os.DirEntry[str]] = []
        files: list[os.DirEntry[str]] = []
        with os.scandir(path) as entries:
            for entry in entries if self.timm_rule else sorted(entries, key=lambda entry: entry.name):
                if is_hidden(entry.name, self.timm_rule):
                    self.found.leave_out(_HIDDEN, entry.path)
                elif not self.timm_rule and entry.is_symlink():
                    self.links.append(entry)
                else:
                    (folders if entry.is_dir() else files).append(entry)
        return folders, files

    def _file(self, entry: os.DirEntry[str], label: str) -> None:
        if not entry.is_file() and os.path.exists(entry.path):  # a dangling link raises its error on reading
            self.found.leave_out(_SPECIAL, entry.path)
        elif _end(entry.name) not in self.extensions:
            self.found.leave_out(_OTHER, entry.path)
        else:
            self.found.files.append(entry.path)
            self.found.classes.append(label)


def _parents(path: str) -> list[str]:
    parents = []
    while path != os.path.dirname(path):
        path = os.path.dirname(path)
        parents.append(path)
    return parents


def _real(path: str) -> str:
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def _inode(path: str) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino
