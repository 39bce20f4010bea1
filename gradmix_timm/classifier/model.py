"""The open-set classifier: predicts a class name or "unknown"; made from a checkpoint, saved in two plain files."""
from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gradmix_timm.checkpoint import find_device
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.openset.extract import extract
from gradmix_timm.openset.scores import Score
from gradmix_timm.schema import naming

from . import calibration, hub, onnx_export, serialization
from .images import batches, each
from .manifest import UNKNOWN, Manifest, Prediction

__all__ = ['OpenSetClassifier']


class OpenSetClassifier:
    """Predicts the class of an image, or that it is of no known class.

    A record of one image depends on that image alone, not on the others of the call (up to float32's rounding in the
    model, which differs with the batch size).

    Args:
        model: In evaluation mode.
        score: Fitted.
        manifest: Classes, threshold, preprocessing.
        device: Where the model runs; default: cuda if available.
        batch_size: Images at a time; changes memory and speed alone.
        projection: Projection head of a contrastive checkpoint, from features to what the score reads; None where it
            reads none.

    Attributes:
        known_classes: Names in head order.
        threshold: An image is accepted if its knownness is at least this.
        preprocessing: From an image to the model's input.

    Example:
        >>> classifier = OpenSetClassifier.from_checkpoint('run/model_best.pth.tar')    # doctest: +SKIP
        >>> for found in classifier.predict('folder'):                                  # doctest: +SKIP
        ...     print(found.path, found.label, round(found.knownness, 2), found.top_k[0])
        folder/a.png cat 7.31 ('cat', 0.98)
        folder/b.png unknown 2.05 ('ant', 0.61)
        >>> classifier.save('cats')                                                     # doctest: +SKIP
        >>> classifier = OpenSetClassifier.load('cats')                                 # doctest: +SKIP
    """

    def __init__(self, model: nn.Module, score: Score, manifest: Manifest, device: torch.device | str | None = None,
                 batch_size: int = 64, projection: nn.Module | None = None) -> None:
        if batch_size < 1:
            raise ValueError(f'batch_size is at least 1, got {batch_size}')
        self.device = find_device(device)
        self.model = model.to(self.device).eval()
        projection = projection if 'projection' in score.reads else None
        self.projection = None if projection is None else projection.to(self.device).eval()
        self.score, self.manifest, self.batch_size = score, manifest, batch_size
        self.known_classes = manifest.known_classes
        self.preprocessing = Preprocessing.of(manifest.data_config)

    @property
    def threshold(self) -> float:
        """An image is accepted if its knownness is at least this; one set by hand guarantees no share of images."""
        return self.manifest.threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        self.manifest = replace(self.manifest, threshold=float(value), known_acceptance=None,
                                threshold_source='set by hand')

    @classmethod
    def from_checkpoint(
            cls,
            path: str | os.PathLike[str],
            score: str = 'mls',
            known_acceptance: float = 0.95,
            *,
            validation: Any = None,
            threshold: float | None = None,
            score_options: Mapping[str, Any] | None = None,
            known_classes: Sequence[str] | None = None,
            model: str | None = None,
            img_size: int | None = None,
            input_img_mode: str | None = None,
            exif: str | None = None,
            device: torch.device | str | None = None,
            amp_dtype: torch.dtype | None = None,
            batch_size: int = 64,
            ema: bool | None = None,
            **source: Any,
    ) -> OpenSetClassifier:
        """A classifier whose threshold accepts on average at least ``known_acceptance`` of new known images.

        The threshold is split conformal (:func:`~gradmix_timm.openset.metrics.conformal_threshold`) on training
        images of the known classes that were held out: those that the checkpoint lists, or ``validation``. This
        holds for new images of the same kind, on average over held-out sets, and does not cover unknown ones. The
        test split is never opened.

        Args:
            path: A checkpoint; one of this package's training needs no further options.
            score: Of :func:`~gradmix_timm.openset.scores.list_scores`, or 'pytorch-ood:NAME'; those that need a fit
                read the training images.
            known_acceptance: In (0, 1).
            validation: Images of known classes that took no part in training, of any kind that :meth:`predict` takes;
                in place of the checkpoint's held-out ones.
            threshold: A fixed threshold; ``known_acceptance`` is then not guaranteed.
            score_options: The score's own.
            known_classes: Names in head order, for checkpoints without them.
            model: timm's model name, for weights without one.
            img_size: Side in pixels; None: as the checkpoint records, else that of the model's pretrained weights.
            input_img_mode: PIL mode that files are read in; None: as the checkpoint records.
            exif: 'apply' or 'ignore' the orientation that a camera wrote beside the pixels; None: as recorded.
            device: Default: cuda if available.
            amp_dtype: torch.bfloat16 or torch.float16: mixed precision, here and in every prediction.
            batch_size: Images at a time.
            ema: Moving average or plain weights; see :func:`~gradmix_timm.checkpoint.load_checkpoint`.
            **source: Where the training images are, over the checkpoint's: ``data_dir``, ``dataset``, ``train_split``,
                ``class_map``, ``workers``.

        Raises:
            ValueError: Held-out images, or entries of the checkpoint or the data, are missing, with the remedy;
                validation files that are training images.
            TypeError: An unknown keyword, with the nearest; a score that is no name.
        """
        plan = calibration.Plan(
            path=path, score=score, known_acceptance=known_acceptance, validation=validation, threshold=threshold,
            score_options=dict(score_options or {}), known_classes=known_classes, model=model, img_size=img_size,
            input_img_mode=input_img_mode, exif=exif, device=device, amp_dtype=amp_dtype, batch_size=batch_size,
            ema=ema, source=calibration.source_of(source))
        net, projection, fitted, facts = calibration.calibrate(plan)
        return cls(net, fitted, Manifest(**facts), device, batch_size, projection)

    @classmethod
    def from_model(
            cls,
            model: nn.Module,
            known_classes: Sequence[str],
            score: str = 'mls',
            known_acceptance: float = 0.95,
            *,
            validation: Any = None,
            threshold: float | None = None,
            train: Any = None,
            preprocessing: Preprocessing | None = None,
            score_options: Mapping[str, Any] | None = None,
            model_kwargs: Mapping[str, Any] | None = None,
            amp_dtype: torch.dtype | None = None,
            batch_size: int = 64,
            unknown_output: bool = False,
    ) -> OpenSetClassifier:
        """The classifier of a live module, as of :meth:`from_checkpoint`, from a training loop of one's own.

        Args:
            model: Gives logits [B, K]; it is copied, on its device.
            known_classes: Names in head order.
            score: Of :func:`~gradmix_timm.openset.scores.list_scores`.
            known_acceptance: In (0, 1).
            validation: Images of known classes that took no part in training, as
                :func:`~gradmix_timm.evaluation.evaluate` takes them: a loader, a data set of (image, label), a folder.
            threshold: A fixed threshold in their place; ``known_acceptance`` is then not guaranteed.
            train: Un-augmented training images, for scores that are fitted.
            preprocessing: From a picture to the model's input, for :meth:`predict`; None: as its ``pretrained_cfg``
                says. Tensors of a loader are taken as they are.
            score_options: The score's own.
            model_kwargs: What ``timm.create_model`` needs besides the number of classes and channels, to load what
                :meth:`save` writes.
            amp_dtype: torch.bfloat16 or torch.float16: mixed precision, here and in every prediction.
            batch_size: Images at a time.
            unknown_output: The model's last output is for no class.

        Raises:
            ValueError: Images, classes or sizes that do not fit the model, too few validation images, or some that are
                training images.
            TypeError: Images of another kind.

        Example:
            >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
            >>> held = [(torch.randn(3, 2, 2), label % 2) for label in range(40)]
            >>> classifier = OpenSetClassifier.from_model(net, ['cat', 'dog'], validation=held,
            ...                                           preprocessing=Preprocessing.of({'input_size': (3, 2, 2)}))
            >>> classifier.known_classes, len(classifier.predict(torch.rand(5, 3, 2, 2)))
            (('cat', 'dog'), 5)
        """
        plan = calibration.Plan(
            path='', score=score, known_acceptance=known_acceptance, validation=validation, threshold=threshold,
            score_options=dict(score_options or {}), known_classes=known_classes, model=None, img_size=None,
            input_img_mode=None, exif=None, device=None, amp_dtype=amp_dtype, batch_size=batch_size, ema=None,
            source=calibration.Source())
        net, fitted, facts = calibration.calibrate_module(model, plan, train, preprocessing, dict(model_kwargs or {}),
                                                          unknown_output)
        device = next((tensor.device for tensor in [*net.parameters(), *net.buffers()]), None)
        return cls(net, fitted, Manifest(**facts), device, batch_size)

    def predict(self, images: Any, top_k: int = 5) -> list[Prediction]:
        """The class of each image or ``'unknown'``, with its knownness and the most probable known classes.

        Args:
            images: One image or any iterable of them, of mixed kinds: paths, PIL images, arrays [H, W, C] or
                [H, W], tensors [C, H, W]; or a batch as one array [B, H, W, C] or tensor [B, C, H, W]. Pixels as uint8,
                or as floats from 0 to 1; the checkpoint's resizing and normalisation are applied here. A folder
                stands for all images below it, in natural order of their paths.
            top_k: Number of most probable known classes in each record, at most.

        Returns:
            One record an image, in order.

        Raises:
            ValueError: An image that cannot be read, with its position; a folder without images.
        """
        if not isinstance(top_k, int | np.integer) or top_k < 1:
            raise ValueError(f'top_k is a whole number, at least 1, got {top_k!r}')
        paths: list[Path | None] = []

        def noted() -> Iterator[Any]:
            for item in each(images):
                paths.append(Path(item) if isinstance(item, str | os.PathLike) else None)
                yield item

        names, found = self.known_classes, list[Prediction]()
        for classes, knownness, probability in self._answers(noted()):
            best = np.argsort(-probability, axis=1, kind='stable')[:, :top_k].tolist()
            for row, (place, value) in enumerate(zip(classes.tolist(), knownness.tolist(), strict=True)):
                found.append(Prediction(
                    label=names[place] if value >= self.threshold else UNKNOWN, knownness=value, nearest=names[place],
                    probability=float(probability[row, place]),
                    top_k=tuple((names[k], float(probability[row, k])) for k in best[row]), path=paths[len(found)]))
        return found

    def scores(self, images: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Closed-set class (position in ``known_classes``) and knownness of each image, rejected or not.

        Args:
            images: As of :meth:`predict`.

        Returns:
            int64 [N] and float64 [N].

        Raises:
            ValueError: As for :meth:`predict`.
        """
        parts = list(self._answers(images))
        return (np.concatenate([np.empty(0, np.int64), *(classes for classes, _, _ in parts)]),
                np.concatenate([np.empty(0), *(knownness for _, knownness, _ in parts)]))

    def _answers(self, images: Any) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]]:
        """Of each batch: predicted classes [B], knownness [B], probabilities [B, K]."""
        for batch in batches(images, self.preprocessing, self.batch_size):
            embeddings = extract(self.model, [batch], self.device, self.amp_dtype, projection=self.projection)
            yield (self.score.predict(embeddings).numpy(), self.score(embeddings).numpy(),
                   embeddings.logits.double().softmax(1).numpy())

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``classifier.json`` and ``classifier.safetensors``; reading them runs nothing.

        Args:
            folder: Created if missing; files in it are replaced whole.

        Raises:
            ValueError: A score that keeps more than numbers (of pytorch-ood those that hold objects of other packages).
        """
        serialization.save(folder, self.model, self.score, self.manifest, self.projection)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: torch.device | str | None = None,
             batch_size: int = 64) -> OpenSetClassifier:
        """The classifier of :meth:`save`; the same predictions, bit for bit, on the same machine.

        Args:
            folder: With both files.
            device: Default: cuda if available.
            batch_size: Images at a time.

        Raises:
            ValueError: Files that are missing, damaged, of a newer version, or not of one save.
        """
        model, projection, score, facts = serialization.load(folder)
        with naming(os.path.join(folder, serialization.JSON)):
            manifest = Manifest(**facts)
        return cls(model, score, manifest, device, batch_size, projection)

    def push_to_hub(self, repo: str, *, results: str | os.PathLike[str] | None = None, license: str | None = None,
                    private: bool | None = None, token: str | None = None, revision: str | None = None,
                    message: str = 'Upload classifier') -> str:
        """Commit the classifier to a repository of the Hugging Face Hub, created where it is missing.

        Five files: those of :meth:`save`; ``config.json`` and ``model.safetensors``, of which
        ``timm.create_model('hf-hub:ORG/NAME', pretrained=True)`` makes the network alone; and ``README.md``, the model
        card, which replaces an earlier one.

        Args:
            repo: 'ORG/NAME'.
            results: Folder of ``gradmix-openset osr`` of the same checkpoint, whose figures go into the card.
            license: The Hub's name of the weights' license: 'apache-2.0', 'cc-by-4.0', ...
            private: Of a new repository; None: as the organisation has it.
            token: Default: that of ``hf auth login``.
            revision: An existing branch; None: the main one.
            message: Of the commit.

        Returns:
            Address of the commit.

        Raises:
            ValueError: Results of another checkpoint, a score that cannot be saved, or the Hub refused or could not be
                reached; with the remedy.
        """
        return hub.upload(repo, self.model, self.score, self.manifest, self.projection, results=results,
                          license_=license, private=private, token=token, revision=revision, message=message)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], device: torch.device | str | None = None,
                        batch_size: int = 64, *, revision: str | None = None, token: str | None = None,
                        cache_dir: str | os.PathLike[str] | None = None) -> OpenSetClassifier:
        """The classifier of :meth:`push_to_hub`, or of a local folder as :meth:`load`; no code of a repository is run.

        Args:
            name: 'ORG/NAME' of the Hugging Face Hub, or a folder, which goes first.
            device: Default: cuda if available.
            batch_size: Images at a time.
            revision: Branch, tag or commit; a commit's hash pins the content.
            token: For private repositories; default: that of ``hf auth login``.
            cache_dir: Default: the Hub's own cache; what is there is not fetched again.

        Raises:
            ValueError: As for :meth:`load`; no such repository, revision or classifier in it; no network.
        """
        folder = Path(name)
        if not (os.fspath(name) and folder.is_dir()):  # '' is no name for the current folder
            folder = hub.download(os.fspath(name), revision=revision, token=token, cache_dir=cache_dir)
        return cls.load(folder, device, batch_size)

    def export_onnx(self, path: str | os.PathLike[str], input: str = 'tensor') -> None:
        """Write one ONNX graph of normalisation, model, score and threshold, and its model card, ``PATH.md``.

        Outputs: ``label`` int64 [N], ``knownness`` float64 [N], ``accepted`` bool [N]. Class names, threshold,
        preprocessing and versions are in the metadata. In full precision, regardless of ``amp_dtype``.

        Args:
            path: Of the graph.
            input: 'tensor': the graph reads ``images``, float32 [N, C, H, W], pixels from 0 to 1 at the model's size
                (the metadata list the steps from a file to them, see
                :meth:`~gradmix_timm.data.preprocessing.Preprocessing.onnx_metadata`); N is free. 'image': it reads
                ``image``, uint8 [H, W, 3] of any size, resizes and crops it itself, and N is 1.

        Raises:
            ValueError: A score that is no :class:`~gradmix_timm.openset.scores.logit.LogitScore`; for 'image' a
                preprocessing that ONNX has no operators for.
            ImportError: Without the packages of ``pip install 'gradmix-timm[onnx]'``.
        """
        onnx_export.export(path, self.model, self.score, self.manifest, input)

    @property
    def amp_dtype(self) -> torch.dtype | None:
        """Precision under which the model runs; None: full."""
        return getattr(torch, self.manifest.amp_dtype) if self.manifest.amp_dtype else None

    @property
    def image_mode(self) -> str:
        """PIL mode of the images that the model reads."""
        return self.preprocessing.image_mode

    def __repr__(self) -> str:
        share = self.manifest.known_acceptance
        promise = 'given' if share is None else f'{share:.0%} of knowns accepted'
        return (f'OpenSetClassifier({self.manifest.model}, {len(self.known_classes)} known classes, '
                f'{self.score.name} >= {self.threshold:.6g}, {promise})')
