"""How far a model relies on a shortcut: accuracy and scores with the class's mark, without one, and with another's."""
from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gradmix_timm.attribution import CONTROLS, METHODS, attribute, resolve_layers, to_pixels
from gradmix_timm.attribution.deletion import log_odds
from gradmix_timm.choices import SHORTCUT_IMAGES
from gradmix_timm.data import CutDataset, ShortcutSource, viewed
from gradmix_timm.openset.judge import needs_train, refuse_model_scores
from gradmix_timm.openset.metrics.intervals import over_trials, share_ci, top1
from gradmix_timm.openset.metrics.summary import summarize
from gradmix_timm.openset.results import ShortcutGroup, ShortcutResults
from gradmix_timm.openset.scores import Score, fit_score
from gradmix_timm.records import Embeddings

from .images import EvaluationImages, thinned
from .manifest import facts_of
from .model import EvaluatedModel
from .processes import rest_by_first
from .settings import check_counts

__all__ = ['ShortcutOptions', 'draw_shortcut_examples', 'evaluate_shortcut']

Floats = NDArray[np.float64]
# Images of the picture of examples, and pixels of the side of each.
_SHOWN, _SIDE = 6, 96


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortcutOptions:
    """How the evidence on the mark is measured.

    Attributes:
        attribution: Method of the map.
        layers: As :func:`~gradmix_timm.attribution.attribute` takes them; None: its default.
        images: Largest number of known test images that maps are computed for.

    Raises:
        ValueError: No such method, or no image.
    """

    attribution: str = 'layercam'
    layers: Sequence[str] | None = None
    images: int = SHORTCUT_IMAGES

    def __post_init__(self) -> None:
        """Reject methods without a map, before anything is opened."""
        check_counts(self)
        if self.attribution in CONTROLS:
            raise ValueError(f'attribution={self.attribution} is a control without a map: expected '
                             f'{", ".join(METHODS)}')
        METHODS[self.attribution]


def evaluate_shortcut(model: EvaluatedModel, images: EvaluationImages, options: ShortcutOptions, command: str = '',
                      ) -> tuple[ShortcutResults, dict[str, NDArray[Any]]]:
    """Embed known and unknown images in each view, score them, and measure the evidence on the mark.

    Known images carry the mark of their class ('own'), no mark ('absent') or that of another known class ('conflict');
    unknown images carry that of a known class, or none in the view without marks.

    Args:
        model: What is evaluated.
        images: Of a data set with a shortcut; without unknown ones there are no scores.
        options: Of the evidence.
        command: For the manifest.

    Returns:
        The content of results.json, and the predictions of every known image in each view, for arrays.npz.

    Raises:
        ValueError: A data set without a shortcut, images that cannot be read, a layer that the model lacks, a score
            that cannot be served.
    """
    began = time.monotonic()
    refuse_model_scores(model.settings.scores)
    layers = [] if options.attribution == 'input-gradient' else [
        str(layer) for layer in resolve_layers(model.net, model.reading().input_size, options.layers)]
    known = {view: viewed(images.known, view) for view in ('own', 'absent', 'conflict')}
    unknown = {} if images.unknown is None else {
        view: viewed(images.unknown.sets[''], view) for view in ('own', 'absent')}
    scores = _fit_scores(model, images) if unknown else {}
    others = {view: model.embed(cut, f'unknown images, {view}') for view, cut in unknown.items()}
    groups: dict[str, ShortcutGroup] = {}
    arrays: dict[str, NDArray[Any]] = {}
    for view, cut in known.items():
        found = model.embed(cut, f'known images, {view}')
        groups[view] = _group(view, model, found, others.get('absent' if view == 'absent' else 'own'), scores)
        arrays |= {'known_label': found.label.numpy(), 'known_index': found.index.numpy(),
                   f'pred/{view}': found.logits.argmax(1).numpy()}
    rest_by_first()
    split, source, own = images.split, cast(ShortcutSource, known['own'].source), groups['own']
    evidence = {'attribution': options.attribution, 'layers': layers,
                **_evidence(model, thinned(known['own'], options.images), options)}
    read = {'known': known['own'], **({'unknown': unknown['own']} if unknown else {})}
    results: dict[str, Any] = {
        **facts_of(model, images, read, time.monotonic() - began, command), 'command': 'shortcut',
        'known_classes': list(split.known), 'unknown_classes': list(split.unknown),
        'n_known': own['n_known'], 'n_unknown': own['n_unknown'], 'closed_set': own['closed_set'],
        'scores': own['scores'], 'groups': groups, 'shortcut': asdict(source.shortcut), 'evidence': evidence}
    return cast(ShortcutResults, results), arrays


def _fit_scores(model: EvaluatedModel, images: EvaluationImages) -> dict[str, Score]:
    """Scores by name, fitted on training images as they were trained on."""
    names = model.settings.scores or ()
    train = held = None
    if needs_train(names):
        if images.train is None:
            raise ValueError(f'scores={",".join(names)}: one of them is fitted on training images, and there are none')
        train = model.embed(images.train, 'known training images')
        held = None if images.held_out is None else model.embed(images.held_out, 'held-out images')
    head, _ = model.head()
    return {name: fit_score(name, train, head, held) for name in names}


def _group(view: str, model: EvaluatedModel, known: Embeddings, unknown: Embeddings | None,
           scores: Mapping[str, Score]) -> ShortcutGroup:
    settings, right = model.settings, (known.logits.argmax(1) == known.label).numpy()
    figures = {}
    for name, score in scores.items():
        assert unknown is not None
        own = (score.predict(known) == known.label).numpy()
        figures[name] = summarize(np.asarray(score(known), dtype=np.float64), own,
                                  np.asarray(score(unknown), dtype=np.float64), draws=settings.bootstrap,
                                  seed=settings.seed)
    return {'view': view, 'n_known': len(right), 'n_unknown': 0 if unknown is None else len(unknown.label),
            'closed_set': top1(right), 'scores': figures}


# ---- evidence on the mark

def _evidence(model: EvaluatedModel, images: CutDataset, options: ShortcutOptions) -> dict[str, Any]:
    """Mass of the map on the mark, and drop of the label's log-odds when it is hidden, of images with their own."""
    size = model.reading().input_size
    found: dict[str, list[Floats]] = {}
    cut_off = 0
    for pixels, labels, mask, rolled, drawn in _batches(model, images):
        made = attribute(model.net, pixels, labels, options.layers, options.attribution)
        maps = to_pixels(made.map, size[1:]).cpu().double()
        total = maps.sum((1, 2)).clamp_min(1e-30)
        peak = maps.flatten(1).argmax(1)
        before = log_odds(model.net, pixels, labels)
        shown = mask.any((1, 2))
        cut_off += int((drawn & ~shown).sum())
        kept = (shown & ~made.degenerate.cpu()).numpy()
        rows = {
            'area': mask.double().mean((1, 2)), 'mass': (maps * mask).sum((1, 2)) / total,
            'peak': mask.flatten(1).gather(1, peak[:, None])[:, 0].double(),
            'fall': (before - _hidden(model, pixels, labels, mask)).cpu().double(),
            'random_fall': (before - _hidden(model, pixels, labels, rolled)).cpu().double()}
        for name, values in rows.items():
            found.setdefault(name, []).append(values.numpy()[kept])
    columns = {name: np.concatenate(parts) for name, parts in found.items()}
    columns['fall_difference'] = columns['fall'] - columns['random_fall']
    count = len(columns['area'])
    figures: dict[str, Any] = {}
    for name, column in columns.items():
        figures |= _mean(name, column, share=name in ('area', 'mass', 'peak'))
    return {'n': count, 'left_out': len(images) - count, 'cut_off': cut_off, **figures}


def _mean(name: str, values: Floats, share: bool) -> dict[str, Any]:
    """A mean over images and its 95% interval, None where one image or no spread leaves it unbounded."""
    if not len(values):
        return {name: None, f'{name}_ci': None}
    found = over_trials(values)
    ends = share_ci(values) if share else (found.low, found.high)
    return {name: found.mean, f'{name}_ci': list(ends) if all(map(math.isfinite, ends)) else None}


def _batches(model: EvaluatedModel, images: CutDataset) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Normalised images [B, C, H, W] and labels [B] on the model's device; the mark, bool [B, H, W], and it elsewhere.

    Last whether a mark is on the image as stored, bool [B], of which resize and crop may leave nothing. Elsewhere is
    the mark's own shape, shifted by a random number of rows and columns (wrapping around at the border), so that as
    many pixels are hidden.
    """
    transform, crop = model.reading().transform(), model.reading().crop()
    source = cast(ShortcutSource, images.source)
    rng = np.random.default_rng(model.settings.seed)
    for first in range(0, len(images), model.settings.batch_size):
        rows = range(first, min(first + model.settings.batch_size, len(images)))
        masks, drawn = [], []
        for row in rows:
            mark, _ = source.mark(int(images.indices[row]))
            drawn.append(mark.getbbox() is not None)
            masks.append(np.asarray(crop(mark.convert('RGB')).convert('L')) >= 128)
        mask = torch.from_numpy(np.stack(masks))
        rolled = torch.stack([torch.roll(one, tuple(rng.integers(0, one.shape).tolist()), (0, 1)) for one in mask])
        pixels = torch.stack([transform(images.picture(row)) for row in rows]).to(model.device)
        labels = torch.from_numpy(images.targets[rows.start:rows.stop]).to(model.device)
        yield pixels, labels, mask, rolled, torch.tensor(drawn)


def _hidden(model: EvaluatedModel, pixels: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Log-odds of the label where the mask is filled with the mean colour (0, once normalised)."""
    return log_odds(model.net, pixels.masked_fill(mask[:, None].to(pixels.device), 0.), labels)


# ---- a picture

def draw_shortcut_examples(model: EvaluatedModel, images: EvaluationImages, options: ShortcutOptions) -> bytes:
    """A row an image: with its own mark, without, with another class's, and the map of the first; a PNG file."""
    chosen = thinned(images.known, _SHOWN)
    pixels, labels, *_ = next(_batches(model, viewed(chosen, 'own')))
    made = attribute(model.net, pixels, labels, options.layers, options.attribution)
    maps = to_pixels(made.map, (pixels.shape[2], pixels.shape[3])).cpu()
    maps = maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-30)
    crop = model.reading().crop()
    sheet = Image.new('RGB', (4 * _SIDE, len(maps) * _SIDE), 'white')
    for row in range(len(maps)):
        shown = [crop(viewed(chosen, view).picture(row)).convert('RGB') for view in ('own', 'absent', 'conflict')]
        heat = maps[row][..., None].numpy() * np.array([1., 0.8, 0.1]) * 255
        shown.append(Image.fromarray(np.rint(0.35 * np.asarray(shown[0]) + 0.65 * heat).astype(np.uint8)))
        for column, image in enumerate(shown):
            small = min(image.size) < _SIDE
            grown = image.resize((_SIDE, _SIDE), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
            sheet.paste(grown, (column * _SIDE, row * _SIDE))
    file = io.BytesIO()
    sheet.save(file, format='PNG', optimize=True)
    return file.getvalue()
