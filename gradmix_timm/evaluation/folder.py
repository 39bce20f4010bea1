"""Write the folder of an evaluation: all files at once, results.json last, then the figures and the page."""
from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gradmix_timm.checkpoint import atomic_path, write_atomic
from gradmix_timm.openset.presets import PRESETS
from gradmix_timm.openset.reports.report import FIGURES, MIXED, draw_figures, render_report
from gradmix_timm.openset.results import (
    ARRAYS,
    MISTAKES,
    MIXES,
    RESULTS,
    OpenSetResults,
    Results,
    read_arrays,
    read_results,
)

__all__ = ['PREDICTIONS', 'REPORT', 'check_output', 'copy_files', 'draw', 'draw_plain', 'finite', 'write_files']

REPORT, PREDICTIONS = 'report.html', 'predictions.csv'
# Files that one command or another writes, figures apart.
_OWN = (REPORT, PREDICTIONS, ARRAYS, MISTAKES, 'probes.npz', 'results.csv', 'results.md', 'results.tex',
        *(f'{name}.csv' for name in PRESETS), RESULTS)
# Files that come from the folder of a training run, and those by which such a folder is known.
_MIXES, _TRAINED = (MIXED, MIXES), ('args.yaml', '*.pth.tar')
R = TypeVar('R', bound=Results)


def check_output(folder: Path) -> None:
    """Reject a folder that cannot be created or written to, before anything is computed.

    Raises:
        ValueError: The message names the part of the path that prevents it.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f'output={folder}: {existing} is a file, expected a folder; choose another, output=DIR')
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f'output={folder}: no right to write in {existing}; choose another folder, output=DIR')


def write_files(folder: Path, results: Results, texts: Mapping[str, str],
                arrays: Mapping[str, Mapping[str, NDArray[Any]]], figures: Mapping[str, bytes] | None = None,
                run_folder: Path | None = None) -> None:
    """Replace all files of an evaluation by those of a new one.

    Every file is written before the first one is renamed, so a full disk leaves the older evaluation whole, and files
    of the older one that the new one does not have (figures, the page, a preset's table, the mixes of its run) are
    removed: whatever is drawn from the folder is of one evaluation. Names of files or classes that are not UTF-8 are
    written with escapes.

    Args:
        folder: Made if it is missing.
        results: Of results.json; infinities become null.
        texts: File name to content.
        arrays: Name of an .npz file to its arrays.
        figures: File name below ``figures`` to PNG.
        run_folder: Of the training run, whose picture of mixes is copied.
    """
    content = json.dumps(finite(results), indent=1, allow_nan=False) + '\n'
    folder.mkdir(parents=True, exist_ok=True)
    mixes = _mixes_of(run_folder, folder)
    written = {folder / name for name in (RESULTS, *texts, *arrays, *(f'{FIGURES}/{name}' for name in figures or ()))}
    with ExitStack() as renames:  # in reverse order: results.json comes last
        for name, text in {RESULTS: content, **texts}.items():
            temporary = renames.enter_context(atomic_path(folder / name))
            temporary.write_bytes(text.encode('utf-8', 'backslashreplace'))
        for name, png in (figures or {}).items():
            renames.enter_context(atomic_path(folder / FIGURES / name)).write_bytes(png)
        for name, parts in arrays.items():
            temporary = renames.enter_context(atomic_path(folder / name))
            np.savez_compressed(temporary, **parts)  # type: ignore[arg-type]  # names hold no keyword of it
        for copy, path in mixes.items():
            renames.enter_context(atomic_path(copy)).write_bytes(path.read_bytes())
        for path in _files_of(folder) - written - set(mixes):
            path.unlink()


def draw(folder: Path) -> None:
    """Figures and page of known against unknown, from the files and the mixes of the run."""
    results = read_results(folder, OpenSetResults)
    for name, png in draw_figures(results, read_arrays(folder)).items():
        write_atomic(folder / FIGURES / name, png)
    _write_page(folder, render_report(folder))


def draw_plain(folder: Path, results: R, figures: Mapping[str, bytes],
               render: Callable[[R, Mapping[str, bytes]], str]) -> None:
    """Write figures and the page of an evaluation that has no knowns against unknowns.

    Args:
        folder: Of its files.
        results: Of its results.json.
        figures: PNG by name; other figures in the folder are shown as well.
        render: The page from the results and all figures.
    """
    for name, png in figures.items():
        write_atomic(folder / FIGURES / name, png)
    images = {path.name: path.read_bytes() for path in sorted((folder / FIGURES).glob('*.png'))}
    _write_page(folder, render(results, images))


def copy_files(folder: Path, place: Path, run_folder: Path | None) -> None:
    """Replace the evaluation in a folder by that of another; results.json last.

    Args:
        folder: What is copied.
        place: Where to.
        run_folder: Where the picture of the run's mixes is.
    """
    if folder.resolve() == place.resolve():
        return
    copies = {place / path.relative_to(folder): path for path in _files_of(folder)} | _mixes_of(run_folder, place)
    for copy, path in sorted(copies.items(), key=lambda pair: pair[0].name == RESULTS):
        write_atomic(copy, path.read_bytes())
    for path in _files_of(place) - set(copies):
        path.unlink()


def _mixes_of(run_folder: Path | None, folder: Path) -> dict[Path, Path]:
    """The run's files about mixes, by their copies in an evaluation's folder; none in the folder of another run."""
    if run_folder is None or _is_run(folder):
        return {}
    return {folder / name: run_folder / name for name in _MIXES if (run_folder / name).is_file()}


def _is_run(folder: Path) -> bool:
    """Whether it is the folder of a training run, so that mixes in it are that run's."""
    return any(path for kind in _TRAINED for path in folder.glob(kind))


def _files_of(folder: Path) -> set[Path]:
    """The files that an evaluation has in its folder."""
    named = (folder / name for name in (_OWN if _is_run(folder) else (*_OWN, *_MIXES)))
    return {path for path in (*(folder / FIGURES).glob('[!.]*.png'), *named) if path.is_file()}


def _write_page(folder: Path, page: str) -> None:
    write_atomic(folder / REPORT, page.encode('utf-8', 'backslashreplace'))


def finite(value: Any) -> Any:
    """Plain values for JSON: infinities become null, NumPy's numbers, arrays and tensors those of Python."""
    value = value.tolist() if hasattr(value, 'tolist') else value
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
