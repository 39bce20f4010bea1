"""A resumable evaluation under corruptions, with one group for each corruption and severity."""
from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gradmix_timm.choices import FAMILIES, SCALES, SEVERITIES, SMALL
from gradmix_timm.data import CutDataset, fingerprint, select_classes
from gradmix_timm.data.corruption import (
    OfficialSet,
    alexnet_errors,
    corrupted,
    find_corruptions,
    list_corruptions,
    nearest_scale,
    official_name,
    open_official,
)
from gradmix_timm.evaluation.images import EvaluationImages, list_hash, thinned
from gradmix_timm.evaluation.manifest import facts_of
from gradmix_timm.evaluation.model import EvaluatedModel
from gradmix_timm.evaluation.processes import rest_by_first
from gradmix_timm.evaluation.settings import EvaluationSettings, check_counts
from gradmix_timm.openset.cache import weights_hash
from gradmix_timm.openset.judge import needs_train, refuse_model_scores
from gradmix_timm.openset.results import RESULTS, Corruption, CorruptionGroup, CorruptionResults, read_results
from gradmix_timm.records import Embeddings

from .errors import judge_corrupted, summarize_corruptions
from .journal import GroupStore

__all__ = ['CorruptionOptions', 'CorruptionPlan', 'check_scores', 'draw_examples', 'evaluate_corruptions',
           'open_files', 'plan_corruptions']

_FAMILY = {name: family for family, names in FAMILIES.items() for name in names}
# Format version of stored groups; groups of another version are ignored.
_FORMAT = 1
# Side of each image in the picture of examples, in pixels.
_SIDE = 72
Watch = Callable[[Sequence[str], int], Iterable[tuple[str, Callable[[str], None]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CorruptionOptions:
    """What is corrupted, and how.

    Attributes:
        official: Folder of CIFAR-10-C, CIFAR-100-C, Tiny-ImageNet-C or ImageNet-C; None: generated images.
        corruptions: Names or families; None: the 15.
        severities: Ascending, each once.
        scale: Whose constants generated images have; None: by their side.
        corrupt_at: 'stored' or 'input'; None: stored up to :data:`~gradmix_timm.choices.SMALL` pixels.
        baseline: results.json of another model on the same images, or 'alexnet'; None: no mCE.
        images: At most so many known and unknown images, evenly chosen; None: all.
    """

    official: str | None = None
    corruptions: Sequence[str] | None = None
    severities: tuple[int, ...] = SEVERITIES
    scale: str | None = None
    corrupt_at: str | None = None
    baseline: str | None = None
    images: int | None = None

    def __post_init__(self) -> None:
        """Reject settings that contradict each other."""
        check_counts(self)
        if self.official and (self.scale or self.corrupt_at):
            raise ValueError('scale=NAME and corrupt_at=WHERE are for generated images; leave them out with '
                             'official=DIR')


@dataclass(frozen=True)
class CorruptionPlan:
    """All decisions made before images are read.

    Attributes:
        options: As they were chosen.
        clean_model: The model with the preprocessing of clean images.
        model: With that of corrupted images, which are cut already where ``at`` is 'input'.
        images: Clean test images.
        names: Corruptions, as they are generated or as the files call them.
        official: Their files, or None: generated.
        scale: Whose constants; '' with files.
        at: 'stored' or 'input'.
        crop: Done before the corruption, or None.
    """

    options: CorruptionOptions
    clean_model: EvaluatedModel
    model: EvaluatedModel
    images: EvaluationImages
    names: tuple[str, ...]
    official: OfficialSet | None
    scale: str
    at: str
    crop: Callable[[Any], Any] | None

    @property
    def group_names(self) -> list[str]:
        """``CORRUPTION/SEVERITY`` of all groups, in order."""
        return [f'{name}/{severity}' for name in self.names for severity in self.options.severities]

    @property
    def complete(self) -> bool:
        """Whether these are the benchmark's 15 corruptions and 5 severities on all images."""
        whole = {official_name(name) for name in self.names} == set(map(official_name, list_corruptions()))
        return whole and self.options.severities == SEVERITIES and self.options.images is None

    @property
    def described(self) -> str:
        """Where the corrupted images come from, in words."""
        if self.official is not None:
            return f'official files of {self.official.root}'
        where = "cut to the model's input" if self.at == 'input' else 'as stored'
        return f'generated images, constants for {SCALES[self.scale]} px, corrupted {where}'

    @property
    def unknown(self) -> CutDataset | None:
        """Clean images of unknown classes, or None."""
        return None if self.images.unknown is None else self.images.unknown.sets['']

    def pair(self, name: str, severity: int) -> tuple[CutDataset, CutDataset | None]:
        """Corrupted knowns and unknowns; None for unknowns if the files do not cover their data set."""
        clean, split, most = self.images.known, self.images.split, self.options.images
        if self.official is None:
            def made(cut: CutDataset) -> CutDataset:
                return corrupted(cut, name, severity, self.model.settings.seed, self.scale, self.crop)

            return made(clean), None if self.unknown is None else made(self.unknown)
        source = self.official.open(name, severity, clean.source, clean.source.input_img_mode or 'RGB')
        known = thinned(select_classes(source, split.known), most)
        if self.unknown is None or split.unknown_dataset is not None:
            return known, None
        return known, thinned(select_classes(source, split.unknown, unknown=True), most)

    def compared(self) -> dict[str, Any]:
        """Properties in which a baseline must agree; ``images`` is the hash of the list of images."""
        made = {} if self.official is not None else {
            'scale': self.scale, 'at': self.at, 'seed': self.model.settings.seed}
        return {'official': self.official is not None, **made, 'images': list_hash(self.images.known)}

    def depends_on(self) -> dict[str, Any]:
        """Everything that a group depends on besides its name."""
        settings, split = self.model.settings, self.images.split
        cuts = [cut for cut in (self.images.known, self.unknown) if cut is not None]
        return {
            'format': _FORMAT, 'weights': weights_hash(self.model.net), 'modules': str(self.model.net),
            'transform': {key: str(value) for key, value in self.model.reading().as_config().items()},
            'images': [fingerprint(cut) or list_hash(cut) for cut in cuts], 'split': [split.known, split.unknown],
            'files': None if self.official is None else self.official.state(),
            'scale': self.scale, 'at': self.at, 'seed': settings.seed, 'scores': settings.scores,
            'bootstrap': settings.bootstrap, 'amp': str(settings.amp_dtype), 'channels_last': settings.channels_last,
            'most': self.options.images, 'device': self.model.device.type, 'versions': {
                name: version(name) for name in (
                    'torch', 'timm', 'numpy', 'scipy', 'pillow', 'albumentations', 'gradmix-timm')}}


def check_scores(settings: EvaluationSettings) -> None:
    """Reject scores that need training images or passes of their own, neither of which are made here.

    Raises:
        ValueError: Such a score; the message names the first.
    """
    refuse_model_scores(settings.scores)
    late = next((name for name in settings.scores or () if needs_train([name])), None)
    if late is not None:
        raise ValueError(f'scores={late} is fit on training images, which are not read here; msp, mls, energy and '
                         'others of the logits alone are available')


def open_files(options: CorruptionOptions) -> tuple[OfficialSet | None, tuple[str, ...]]:
    """The official files, if any, and the names of the corruptions; no image is read.

    Raises:
        ValueError: The folder holds none of these benchmarks, or lacks a corruption.
    """
    official = open_official(options.official) if options.official else None
    names = find_corruptions(options.corruptions, official.names if official is not None else None)
    if official is not None:
        official.check(names, options.severities)
    return official, names


def plan_corruptions(model: EvaluatedModel, images: EvaluationImages, options: CorruptionOptions,
                     official: OfficialSet | None, names: tuple[str, ...]) -> CorruptionPlan:
    """Choose the corruption constants and the stage at which images are corrupted.

    Args:
        model: What is evaluated.
        images: Clean test images.
        options: As they were chosen.
        official: Of :func:`open_files`.
        names: The same.

    Raises:
        ValueError: A head that does not fit the images' classes, files of another data set.
    """
    known, outputs = images.known, getattr(model.net, 'num_classes', len(images.split.known))
    if outputs != len(images.split.known):
        raise ValueError(f'the head of {model.name} has {outputs} outputs and the test set has '
                         f'{len(images.split.known)} classes; name the known ones in head order, known_classes='
                         'A,B,...')
    shown = known if official is None else select_classes(official.open(
        names[0], options.severities[0], known.source, known.source.input_img_mode or 'RGB'), images.split.known)
    side = min(shown.picture(0).size)
    # The official arrays and small folders are as stored; ImageNet-C's images were cut before they were corrupted.
    at = options.corrupt_at or ('stored' if side <= SMALL else 'input')
    scale = '' if official is not None else options.scale or nearest_scale(
        side if at == 'stored' else min(model.reading().input_size[1:]))
    preprocessing = model.reading() if at == 'stored' else model.reading().cropped()
    return CorruptionPlan(
        options=options, clean_model=model,
        model=replace(model, preprocessing=preprocessing, cache=None, skipped={}), images=images, names=names,
        official=official, scale=scale, at=at,
        crop=model.reading().crop() if official is None and at == 'input' else None)


def evaluate_corruptions(plan: CorruptionPlan, journal: Path, watch: Watch | None = None, command: str = '',
                         ) -> tuple[CorruptionResults, dict[str, NDArray[Any]]]:
    """Embed clean images, then every corruption and severity; groups already in the journal are not computed again.

    Args:
        plan: Of :func:`plan_corruptions`.
        journal: File that keeps every group as it is done.
        watch: Yields the name of each missing group with a function that takes its line of progress; None: silent.
        command: For the manifest.

    Returns:
        The content of results.json, and which images were classified correctly, for arrays.npz.

    Raises:
        ValueError: Images that cannot be read, NaN among the logits, a baseline of other images.
    """
    began, settings = time.monotonic(), plan.model.settings
    reference = _reference(plan)
    clean = plan.clean_model.embed(plan.images.known, 'known test images')
    others = None if plan.unknown is None else plan.clean_model.embed(plan.unknown, 'unknown test images')
    store = GroupStore(journal, plan.depends_on())
    done = sum(name in store.groups for name in plan.group_names)
    _fill(plan, others, store, watch or _unwatched)
    rest_by_first()
    stored = {name: store.groups[name] for name in plan.group_names}
    whole, right = judge_corrupted(clean, others, None, settings.scores or (), settings.bootstrap, settings.seed)
    groups: dict[str, CorruptionGroup] = {name: kept['group'] for name, kept in stored.items()}
    arrays = {f'right/{name}': np.unpackbits(np.frombuffer(bytes.fromhex(kept['right']), np.uint8),
                                             count=kept['count']).astype(bool) for name, kept in stored.items()}
    sizes = {len(row) for row in arrays.values()}
    if len(sizes) > 1:
        raise RuntimeError(f'corruptions have {min(sizes)} to {max(sizes)} images; they should show the same ones')
    summary: Corruption = {
        **summarize_corruptions(groups, whole['error'], ~np.stack(list(arrays.values())), reference),
        'official': plan.official is not None, 'source': plan.described, 'scale': plan.scale, 'at': plan.at,
        'seed': settings.seed, 'complete': plan.complete, 'reference': plan.options.baseline}
    arrays |= {'right/clean': right, 'known_index': clean.index.numpy(), 'known_label': clean.label.numpy()}
    split = plan.images.split
    # Training images are opened only to check that no test image is among them.
    tested = {name: cut for name, cut in plan.images.cuts().items() if name in ('known', 'unknown')}
    facts = facts_of(plan.clean_model, plan.images, tested, time.monotonic() - began, command)
    facts['manifest']['settings']['groups_reused'] = done
    return {**facts, 'command': 'corrupt', 'known_classes': list(split.known), 'unknown_classes': list(split.unknown),
            'n_known': whole['n_known'], 'n_unknown': whole['n_unknown'], 'closed_set': whole['closed_set'],
            'scores': whole['scores'], 'groups': groups, 'corruption': summary}, arrays


def _unwatched(names: Sequence[str], total: int) -> Iterator[tuple[str, Callable[[str], None]]]:
    yield from ((name, lambda _: None) for name in names)


def _fill(plan: CorruptionPlan, others: Embeddings | None, store: GroupStore, watch: Watch) -> None:
    """Evaluate every group that the store lacks."""
    model, settings = plan.model, plan.model.settings
    missing = [name for name in plan.group_names if name not in store.groups]
    try:
        for name, tell in watch(missing, len(plan.group_names)):
            corruption, severity = name.split('/')
            known, unknown = plan.pair(corruption, int(severity))
            title = f'{corruption}, severity {severity}'
            figures, right = judge_corrupted(
                model.embed(known, title), None if unknown is None else model.embed(unknown, title),
                others, settings.scores or (), settings.bootstrap, settings.seed)
            group: CorruptionGroup = {
                'corruption': corruption, 'severity': int(severity),
                'family': _FAMILY.get(official_name(corruption), 'extra'), **figures}
            store.add(name, {'group': group, 'right': np.packbits(right).tobytes().hex(), 'count': len(right)})
            tell(f'error {group["error"]:.1%}')
    except KeyboardInterrupt as stop:
        kept = sum(name in store.groups for name in plan.group_names)
        stop.add_note(f'{kept} of {len(plan.group_names)} groups are kept in {store.path}; the same command goes on '
                      'from there')
        raise


# ---- the baseline of mCE

def _reference(plan: CorruptionPlan) -> dict[str, float] | None:
    """Corruption to mean error of the baseline over the same severities, and 'clean'."""
    options = plan.options
    if not options.baseline:
        return None
    if options.baseline != 'alexnet':
        return _measured(Path(options.baseline), plan)
    if plan.official is None or plan.official.arrays or len(plan.images.split.known) != 1000:
        raise ValueError("baseline=alexnet: the published errors are for ImageNet-C's own files at 224 px and 1000 "
                         "classes; for other images give another model's results.json")
    if options.severities != SEVERITIES:
        raise ValueError('baseline=alexnet: the published errors are means over five severities; leave out '
                         'severities=')
    return alexnet_errors()


def _measured(path: Path, plan: CorruptionPlan) -> dict[str, float]:
    """The baseline's errors from the results of another such evaluation on the same images."""
    if not path.exists():
        raise ValueError(f'baseline={path}: no such file; expected results.json of `openset corrupt`, or alexnet')
    if not path.is_dir() and path.name != RESULTS:
        raise ValueError(f'baseline={path}: expected the folder that `openset corrupt` wrote, or {RESULTS} in it')
    other = read_results(path if path.is_dir() else path.parent, CorruptionResults)
    part: Mapping[str, object] = other['corruption']
    for key, value in plan.compared().items():
        theirs = other['manifest'].get('list_sha256', {}).get('known') if key == 'images' else part[key]
        if theirs != value:
            raise ValueError(f'baseline={path} was measured with other {key} ({theirs}, here {value}); run it again '
                             'with the same flags')
    found = {'clean': other['corruption']['clean_error']}
    for name in plan.names:
        rows = {severity: other['groups'].get(f'{name}/{severity}') for severity in plan.options.severities}
        if missing := [severity for severity, row in rows.items() if row is None]:
            raise ValueError(f'baseline={path} lacks {name} at severity {missing[0]}; run it again with the same '
                             'corruptions and severities')
        found[name] = float(np.mean([row['error'] for row in rows.values() if row is not None]))
    return found


def draw_examples(plan: CorruptionPlan) -> bytes:
    """One test image under every corruption: one row per corruption, clean first, then the severities; a PNG file."""
    severities = plan.options.severities
    clean = plan.images.known.picture(0)
    clean = clean if plan.crop is None else plan.crop(clean)
    sheet = Image.new('RGB', ((len(severities) + 1) * _SIDE, len(plan.names) * _SIDE), 'white')
    for row, name in enumerate(plan.names):
        shown = [clean, *(plan.pair(name, severity)[0].picture(0) for severity in severities)]
        for column, image in enumerate(shown):
            grown = image.convert('RGB').resize((_SIDE, _SIDE), Image.Resampling.NEAREST if min(image.size) < _SIDE
                                                else Image.Resampling.LANCZOS)
            sheet.paste(grown, (column * _SIDE, row * _SIDE))
    file = io.BytesIO()
    sheet.quantize(256, dither=Image.Dither.NONE).save(file, format='PNG', optimize=True)
    return file.getvalue()
