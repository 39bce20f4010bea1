"""Classifiers on the Hugging Face Hub: the files of a save, timm's own for the network alone, and a model card."""
from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from timm.models import save_for_hf
from torch import nn

from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.openset.scores import Score

from . import serialization
from .model_card import evaluated, front_matter, model_card

__all__ = ['download', 'upload']

CARD = 'README.md'


def upload(repo: str, model: nn.Module, score: Score, manifest: Any, projection: nn.Module | None, *,
           results: str | os.PathLike[str] | None, license_: str | None, private: bool | None, token: str | None,
           revision: str | None, message: str) -> str:
    """Commit a classifier's files; see :meth:`~gradmix_timm.classifier.model.OpenSetClassifier.push_to_hub`.

    Args:
        repo: 'ORG/NAME'.
        model: In evaluation mode.
        score: Fitted.
        manifest: The classifier's.
        projection: The projection head, or None.
        results: Folder of an evaluation of the same checkpoint, for the card; None: no figures in it.
        license_: The Hub's name of the license of the weights.
        private: Of a new repository.
        token: Of the Hub.
        revision: An existing branch.
        message: Of the commit.

    Returns:
        Address of the commit.

    Raises:
        ValueError: Results of another checkpoint, or the Hub refused or could not be reached.
    """
    _check_name(repo)
    found = None if results is None else evaluated(results, manifest)
    title = repo.split('/')[1]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        serialization.save(folder, model, score, manifest, projection)
        _save_for_timm(folder, model, manifest, license_)
        (folder / CARD).write_text(front_matter(title, score, license_, found) + model_card(
            title, manifest, score, _use(repo, manifest), found), encoding='utf-8')
        files = [CommitOperationAdd(path.name, path) for path in sorted(folder.iterdir())]
        with _errors(repo, revision, writing=True):
            api = HfApi(token=token, library_name='gradmix_timm')
            api.create_repo(repo, private=private, exist_ok=True)
            commit = api.create_commit(repo, files, commit_message=message, revision=revision)
    return str(commit.commit_url)


def download(repo: str, *, revision: str | None, token: str | None, cache_dir: str | os.PathLike[str] | None) -> Path:
    """The folder of the Hub's cache with both files of one commit, fetched where they are not there yet.

    Args:
        repo: 'ORG/NAME'.
        revision: Branch, tag or commit; None: the main branch.
        token: For private repositories.
        cache_dir: None: the Hub's own.

    Raises:
        ValueError: No such repository, revision or classifier in it, or the Hub could not be reached.
    """
    _check_name(repo)
    with _errors(repo, revision):
        def fetch(name: str, commit: str | None) -> Path:
            return Path(hf_hub_download(repo, name, revision=commit, token=token,
                                        cache_dir=None if cache_dir is None else os.fspath(cache_dir)))

        manifest = fetch(serialization.JSON, revision)
        # The cache names a commit's folder by its hash: both files are of that one, whatever is pushed meanwhile.
        fetch(serialization.TENSORS, manifest.parent.name)
    return manifest.parent


def _check_name(repo: str) -> None:
    if repo.count('/') != 1 or not all(repo.split('/')):
        raise ValueError(f'{repo!r} is neither a folder here nor a repository of the Hugging Face Hub; name one, '
                         'ORG/NAME')


def _save_for_timm(folder: Path, model: nn.Module, manifest: Any, license_: str | None) -> None:
    """``config.json`` and ``model.safetensors``, from which ``timm.create_model('hf-hub:ORG/NAME')`` is made."""
    network: Any = copy.deepcopy(model).cpu()
    for tensor in [*network.parameters(), *network.buffers()]:  # safetensors takes no channels-last layout
        tensor.data = tensor.data.contiguous()
    # What timm knows of its own weights of that name does not hold for these.
    source = {**dict.fromkeys(('tag', 'origin_url', 'paper_ids', 'notes')), 'license': license_}
    named = {'label_names': list(manifest.known_classes), 'pretrained_cfg': source}
    save_for_hf(network, str(folder), model_config=named, safe_serialization=True,
                data_config=Preprocessing.of(manifest.data_config).as_config())


def _use(repo: str, manifest: Any) -> str:
    """The card's section on the use of the repository."""
    made = Preprocessing.of(manifest.data_config)
    own = timm.models.model_entrypoint(manifest.model).__module__.startswith('gradmix_timm.')
    registered = '\nimport gradmix_timm.models  # registers the network with timm' if own else ''
    more = [f'images are read as {made.image_mode}'] if made.image_mode not in ('RGB', 'L') else []
    more += ['photographs are turned upright by EXIF'] if made.exif == 'apply' else []
    more += ['an albumentations pipeline'] if made.pipeline is not None else []
    note = f"\ntimm's configuration does not hold all of the preprocessing: {', '.join(more)}.\n" if more else ''
    return f"""```python
from gradmix_timm import OpenSetClassifier  # pip install gradmix-timm
classifier = OpenSetClassifier.from_pretrained('{repo}')
classifier.predict(['a.jpg', 'b.jpg'])      # a class, or 'unknown'
```

The network alone, without score and threshold:

```python
import timm{registered}
model = timm.create_model('hf-hub:{repo}', pretrained=True)
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```
{note}
The weights are safetensors and everything else is JSON: loading runs no code from this repository.
"""


@contextmanager
def _errors(repo: str, revision: str | None, writing: bool = False) -> Iterator[None]:
    """Errors of the Hub's client as one line that says what to do."""
    try:
        yield
    except Exception as error:  # the client lets errors of its HTTP library through
        raise ValueError(_reason(error, repo, revision, writing)) from error


def _reason(error: Exception, repo: str, revision: str | None, writing: bool) -> str:
    hub, login = constants.ENDPOINT, 'hf auth login, or token=...'
    status = getattr(getattr(error, 'response', None), 'status_code', None)
    if writing and status in (401, 403, 404) and not isinstance(error, RevisionNotFoundError):
        return f'{hub} does not let you write to {repo}; log in with a token that may: {login}'
    reasons = {
        HFValidationError: f'{repo!r} is no name of a repository (ORG/NAME; letters, digits, -, _ and .)',
        GatedRepoError: f'{repo} on {hub} is gated: ask for access on its page, then log in: {login}',
        RevisionNotFoundError: f'{repo} on {hub} has no revision {revision!r}; name a branch, a tag or a commit',
        LocalEntryNotFoundError: f'{hub} could not be reached and {repo} is not among earlier downloads; check the '
                                 'network, or name a local folder',
        EntryNotFoundError: f'{repo} on {hub} holds no {serialization.JSON} with {serialization.TENSORS}: it is not '
                            "from OpenSetClassifier.push_to_hub; a network alone: timm.create_model('hf-hub:"
                            f"{repo}', pretrained=True)",
        RepositoryNotFoundError: f'there is no model {repo} on {hub}, or it is private; check the name, or log in: '
                                 f'{login}'}
    other = f'{hub}, {repo}: {type(error).__name__}: {" ".join(str(error).split())[:300]}; check the network'
    return next((reason for kind, reason in reasons.items() if isinstance(error, kind)), other)
