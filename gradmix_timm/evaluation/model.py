"""The model to evaluate (a checkpoint, a timm model or a live module) and its passes over images."""
from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset, create_loader
from timm.utils import unwrap_model
from torch import nn
from torch.utils.data import Dataset

from gradmix_timm.attribution.model_guard import check_classifies
from gradmix_timm.checkpoint import Loaded, ProjectionHead, build_model, check_input, find_device
from gradmix_timm.data import CutDataset, UnreadableImageError, fingerprint
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.openset.cache import EmbeddingCache, weights_hash
from gradmix_timm.openset.extract import extract, head_of
from gradmix_timm.openset.model_scores import score_images
from gradmix_timm.openset.scores import Head
from gradmix_timm.openset.scores.odin import ModelScore
from gradmix_timm.records import Embeddings
from gradmix_timm.schema import naming

from .processes import joined, own_device
from .settings import EvaluationSettings

__all__ = ['EvaluatedModel', 'Skipping']

_logger = logging.getLogger(__name__)
# The target of a row whose image could not be read; unknown images have -1.
_UNREADABLE = -2


class Skipping(Dataset):
    """A set whose unreadable images are blank with the target -2, so that a loader does not stop.

    Args:
        images: Whose ``transform`` this one's is.
    """

    def __init__(self, images: CutDataset) -> None:
        self.images = images

    @property
    def transform(self) -> Any:
        """The images' own."""
        return self.images.transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.images.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            return self.images[index]
        except UnreadableImageError:
            blank = Image.new(self.images.source.input_img_mode or 'RGB', (32, 32))
            return blank if self.transform is None else self.transform(blank), _UNREADABLE


@dataclass(frozen=True)
class EvaluatedModel:
    """A model with its preprocessing, ready to embed images.

    Attributes:
        net: On ``device``.
        name: timm's, or of the module's class.
        preprocessing: From a file to the model's input; None for a live module that does not record it, which takes
            only tensors.
        device: Where it runs.
        settings: Of the evaluation.
        loaded: Its checkpoint, or None.
        weights: 'pretrained', 'random', or '' where a checkpoint or a caller brings them.
        projection: The projection head of a contrastive objective, or None.
        cache: Of ``settings.cache``, or None.
        skipped: Title of a set to the names of its images that could not be read, with ``skip_bad``.
    """

    net: nn.Module
    name: str
    preprocessing: Preprocessing | None
    device: torch.device
    settings: EvaluationSettings
    loaded: Loaded | None = None
    weights: str = ''
    projection: nn.Module | None = None
    cache: EmbeddingCache | None = None
    skipped: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def build(cls, settings: EvaluationSettings, loaded: Loaded | None, name: str | None = None,
              num_classes: int | None = None, *, pretrained: bool = False, img_size: int | None = None,
              input_img_mode: str | None = None, exif: str | None = None,
              device: torch.device | str | None = None) -> EvaluatedModel:
        """The model of a checkpoint, or timm's by name, in evaluation mode.

        Args:
            settings: Of the evaluation.
            loaded: The checkpoint, or None.
            name: timm's model name; over the checkpoint's.
            num_classes: Outputs that its head should have; None: as it comes.
            pretrained: timm's weights, without a checkpoint.
            img_size: Side in pixels; None: as recorded.
            input_img_mode: PIL mode that files are read in; None: as recorded.
            exif: 'apply' or 'ignore' the orientation that a camera wrote beside the pixels; None: as recorded.
            device: None: cuda if there is one.

        Raises:
            ValueError: A model that cannot be built, has another number of outputs, or a device that is not there.
        """
        where = own_device(find_device(device))
        net = build_model(loaded, name, None if loaded is None and pretrained else num_classes, pretrained)
        outputs = getattr(net, 'num_classes', num_classes)
        if num_classes is not None and outputs != num_classes:
            raise ValueError(f'the head of {name} has {outputs} outputs and {num_classes} known classes are named; '
                             'train a head for them, or name one class an output with known_classes=A,B,...')
        if img_size and (resize := getattr(net, 'set_input_size', None)) is not None:
            cast(Any, resize)((img_size, img_size))  # of models whose position embeddings fit one size
        with naming(loaded.path if loaded is not None else name):
            recorded = {} if loaded is None else loaded.data_config or {}
            chosen = {'image_mode': input_img_mode, 'exif': exif}
            preprocessing = Preprocessing.of({**recorded, **{k: v for k, v in chosen.items() if v}}, net, img_size)
            preprocessing.transform()  # a recorded pipeline refuses another size than it can make
        if settings.channels_last:
            net.to(memory_format=torch.channels_last)
        if loaded is not None:
            check_input(net.to(where), preprocessing.input_size, loaded.path)
        return cls(
            net=net.to(where).eval(), name=str(name or (loaded and loaded.model)), preprocessing=preprocessing,
            device=where, settings=settings, loaded=loaded, projection=_projection(loaded, where),
            weights='' if loaded is not None else 'pretrained' if pretrained else 'random',
            cache=EmbeddingCache(settings.cache) if settings.cache else None)

    @classmethod
    def of(cls, net: nn.Module, settings: EvaluationSettings, preprocessing: Preprocessing | None = None,
           ) -> EvaluatedModel:
        """A live module, left as it is: it stays on its device, and every pass puts back its mode and hooks.

        Args:
            net: Gives logits [B, K].
            settings: Of the evaluation.
            preprocessing: Of images that are no tensors yet; None: as the module's ``pretrained_cfg`` says, if any.

        Raises:
            ValueError: A model of timm's without its classifier.
        """
        inner = unwrap_model(net)
        check_classifies(inner)
        config = getattr(inner, 'pretrained_cfg', None) or {}
        if preprocessing is None and config:
            preprocessing = Preprocessing.of(None, inner)
        tensor = next(iter([*net.parameters(), *net.buffers()]), torch.empty(0))
        name = config.get('architecture') or type(inner).__name__
        return cls(net=net, name=name, preprocessing=preprocessing, device=tensor.device, settings=settings,
                   cache=EmbeddingCache(settings.cache) if settings.cache else None)

    @property
    def title(self) -> str:
        """What results.json calls it: the checkpoint's file, or the name and whose weights."""
        return self.loaded.path if self.loaded is not None else (
            f'{self.name} (pretrained)' if self.weights == 'pretrained' else self.name)

    def head(self) -> tuple[Head | None, str]:
        """The classifier, or None and why there is none."""
        try:
            return head_of(self.net), ''
        except ValueError as error:
            return None, str(error)

    def embed(self, images: CutDataset, title: str) -> Embeddings:
        """Embeddings of a set, with the evaluation transform, through the cache.

        Args:
            images: Which.
            title: Name of the set, for the progress bar.

        Returns:
            ``index`` holds rows of ``images``: all of them except those left out by ``skip_bad``, which are added to
            ``skipped``.

        Raises:
            ValueError: NaN among the logits; an image that cannot be read, or with ``skip_bad`` none that can.
        """
        if (ready := getattr(images, 'embeddings', None)) is not None:
            return cast(Embeddings, ready)
        found = joined(images, self.settings.batch_size, lambda part: self._stored(part, title))
        bad = (found.label == _UNREADABLE).nonzero().flatten()
        return self._without(found, images, bad, title) if len(bad) else found

    def reading(self) -> Preprocessing:
        """How a picture becomes its input.

        Raises:
            ValueError: The model does not record it.
        """
        if self.preprocessing is None:
            raise ValueError(f'{self.name} does not say how a picture becomes its input; pass '
                             'preprocessing=Preprocessing(...), or data whose images are tensors already')
        return self.preprocessing

    def embed_batches(self, batches: Iterable[Any], title: str) -> Embeddings:
        """Embeddings of batches (images, labels), as they come; a live module without a layer to read at has none."""
        return extract(self.net, batches, self.device, self.settings.amp_dtype, self.settings.channels_last,
                       progress=title, projection=self.projection, features_needed=self.loaded is not None)

    def knownness(self, score: ModelScore, images: CutDataset, rows: np.ndarray, title: str) -> torch.Tensor:
        """Knownness of rows of a set by a score that goes back to the model, float64; passes of its own, never cached.

        Raises:
            ValueError: Images in memory that cannot be read a second time, or not in the same order.
        """
        again = getattr(images, 'again', None)  # of a caller's batches
        batches = self.loader(images.rows(rows)) if again is None else again(title)
        return score_images(
            score, self.net, batches, self.device, None if self.preprocessing is None else self.preprocessing.std,
            self.settings.amp_dtype, self.settings.channels_last, f'{title}, {score.name}')

    def outputs(self, images: CutDataset) -> int:
        """Logits that the model gives for an image."""
        ready: Embeddings | None = getattr(images, 'embeddings', None)
        found = self.embed(images.rows(slice(0, 1)), 'one image') if ready is None else ready
        return found.logits.shape[1]

    def workers(self, count: int) -> int:
        """Loader processes for so many images."""
        if self.settings.workers is not None:
            return self.settings.workers
        # Starting processes takes longer than reading a few small images.
        return 0 if count < 2000 else min(4, os.cpu_count() or 1)

    def loader(self, images: CutDataset) -> Iterable[Any]:
        """Batches in the set's order, by timm's loader with the evaluation transform."""
        preprocessing = self.reading()
        source = images.rows(slice(None))
        dataset = Skipping(source) if self.settings.skip_bad else source
        loader = create_loader(
            cast(ImageDataset, dataset),  # all that the loader asks of one
            **preprocessing.loader_options(), batch_size=self.settings.batch_size, is_training=False,
            num_workers=self.workers(len(images)), device=self.device,
            # Pixels are normalised on the CPU, so that every device sees the same.
            use_prefetcher=False, pin_memory=self.device.type == 'cuda', persistent_workers=False)
        source.transform = preprocessing.transform()
        return cast(Iterable[Any], loader)

    def _stored(self, images: CutDataset, title: str) -> Embeddings:
        """Embeddings of a set or of this process's part of it: from the cache, else by a pass."""
        parts = self._depends_on(images) if self.cache is not None else None
        if self.cache is None or parts is None:
            return self._pass(images, title)
        count = len(images)

        def make(start: int, stop: int) -> Embeddings:
            part = f'{title} ({start + 1:,} to {stop:,} of {count:,})' if stop - start < count else title
            return self._pass(images.rows(np.arange(start, stop)), part)

        return self.cache.fetch(parts, count, make, title)

    def _pass(self, images: CutDataset, title: str) -> Embeddings:
        return self.embed_batches(self.loader(images), title)

    def _without(self, found: Embeddings, images: CutDataset, bad: torch.Tensor, title: str) -> Embeddings:
        """Embeddings of the images that could be read; the others are named."""
        if not self.settings.skip_bad:
            images.picture(int(bad[0]))  # raises, as the pass would have without the cache
            raise UnreadableImageError(f'{images.filename(int(bad[0]))} could not be read when the cache was filled')
        self.skipped[title] = [images.filename(int(row)) for row in bad]
        if len(bad) == len(images):
            raise UnreadableImageError(
                f'none of the {len(images)} {title} can be read ({self.skipped[title][0]}, ...)')
        return found.rows(found.label != _UNREADABLE)

    def _depends_on(self, images: CutDataset) -> dict[str, Any] | None:
        """Everything that embeddings depend on; None for images without an identity."""
        files = fingerprint(images)
        if files is None or self.preprocessing is None:
            return None
        kwargs = {} if self.loaded is None else self.loaded.model_kwargs
        return {
            'weights': weights_hash(self.net, self.projection), 'model': self.name,
            'model_kwargs': {key: str(value) for key, value in kwargs.items()},
            # Two modules with the same weights may differ in their forward pass: pooling, activation, a plain number.
            'modules': hashlib.sha256(f'{self.net}{_plain_attributes(self.net)}'.encode()).hexdigest(),
            'transform': {key: str(value) for key, value in self.preprocessing.as_config().items()},
            'images': files, 'amp': str(self.settings.amp_dtype), 'channels_last': self.settings.channels_last,
            'device': self.device.type, 'versions': {name: version(name) for name in ('torch', 'timm', 'pillow')}}


def _plain_attributes(net: nn.Module) -> list[tuple[str, str, str]]:
    """Module, name and value of attributes that are numbers, words or tuples of them, sorted."""
    plain = bool | int | float | str | None
    return sorted((path, name, repr(value)) for path, module in net.named_modules()
                  for name, value in vars(module).items()
                  if name != 'training' and (isinstance(value, plain) or (
                      isinstance(value, tuple) and all(isinstance(part, plain) for part in value))))


def _projection(loaded: Loaded | None, device: torch.device) -> nn.Module | None:
    """The projection head of a contrastive objective; warns if its class head was never fitted."""
    record = loaded.record if loaded is not None else None
    if record is not None and record.objective != 'ce' and not record.probe:
        _logger.warning(f'The class head was not trained: --objective {record.objective} without --probe-epochs, or '
                        'before its last epoch. Logits, and all scores of them, mean nothing; class-knn, knn and other '
                        'scores of features do.')
    if loaded is None or loaded.projection is None:
        return None
    return ProjectionHead.from_state(loaded.projection).to(device)
