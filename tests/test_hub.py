"""Classifiers on the Hugging Face Hub, by a stand-in server: what goes up, what comes down, what is refused."""
from __future__ import annotations

import json
import pickle
import time
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import yaml
from embedded import make, make_head
from hub_server import TOKEN, serving
from huggingface_hub import ModelCard, constants
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image
from tiny_checkpoints import class_folders, save_checkpoint

from gradmix_timm import OpenSetClassifier
from gradmix_timm.checkpoint import build_model, load_checkpoint
from gradmix_timm.classifier import hub as module
from gradmix_timm.cli import predict
from gradmix_timm.cli.errors import run_console
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.openset.judge import EmbeddedSets, judge

NAMES = ('ant', 'bee', 'cat|dog', 'dog')


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving() as server:
        monkeypatch.setattr(constants, 'ENDPOINT', server.url)
        monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE',
                            server.url + '/{repo_id}/resolve/{revision}/{filename}')
        monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
        monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
        monkeypatch.setenv('HF_TOKEN', TOKEN)
        yield server


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp('data'), count=2)


def made(folder, data, model='test_resnet', **options):
    net = timm.create_model(model, num_classes=4, **options)
    path = save_checkpoint(folder / 'm.pth.tar', data, known_classes=NAMES, unknown_classes=(), net=net, model=model,
                           model_kwargs={'num_classes': 4, **options})
    return OpenSetClassifier.from_checkpoint(path, threshold=0.1, device='cpu')


@pytest.fixture(scope='module')
def classifier(data, tmp_path_factory):
    return made(tmp_path_factory.mktemp('run'), data)


@pytest.fixture(scope='module')
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 40, 50, 3), dtype=np.uint8)


def write_results(folder, classifier, **changes):
    judged = judge(EmbeddedSets(
        train=make(80, seed=0), known=make(60, seed=1), unknown=make(60, seed=2, unknown=True),
        unknown_label=np.arange(60) % 2, known_classes=NAMES, unknown_classes=('elk', 'fox'), held_out=None,
        head=make_head()), ('msp', 'mls'), draws=10)
    (folder / 'results.json').write_text(json.dumps({
        'format': 1, 'protocol': 'toy', 'family': None, 'trial': 0, **judged.results, 'checkpoint': 'm.pth.tar',
        'seed': 0, 'versions': {}, 'device': 'cpu', 'created': '2026-01-01T00:00:00+00:00',
        'manifest': {'model': 'test_resnet', 'checkpoint_sha256': classifier.manifest.checkpoint['sha256']},
        **changes}))
    return judged.results


def test_what_goes_up_comes_down_bit_for_bit(hub, classifier, images, tmp_path, capsys):
    address = classifier.push_to_hub('zoo/animals')
    files = hub.repos['zoo/animals']['main']
    assert sorted(files) == ['README.md', 'classifier.json', 'classifier.safetensors', 'config.json',
                             'model.safetensors']
    assert address.startswith(f'{hub.url}/zoo/animals/commit/')
    found = OpenSetClassifier.from_pretrained('zoo/animals', 'cpu')
    assert found.predict(images) == classifier.predict(images)
    assert found.manifest == classifier.manifest
    # Neither more than the two files, nor any twice.
    got = [line for line in hub.asked if line.startswith('GET') and '/resolve/' in line]
    assert sorted(line.rsplit('/', 1)[1] for line in got) == ['classifier.json', 'classifier.safetensors']
    Image.fromarray(images[0]).save(tmp_path / 'a.png')
    assert run_console(predict.main, ['--checkpoint', 'hf-hub:zoo/animals', str(tmp_path / 'a.png'), '--device', 'cpu',
                                      '--json']) == 0
    row, = json.loads(capsys.readouterr().out)['images']
    assert row['knownness'] == pytest.approx(classifier.scores(images[0])[1][0], rel=1e-5)
    assert [line for line in hub.asked if line.startswith('GET') and '/resolve/' in line] == got


def test_timm_makes_the_network_of_the_repository(hub, classifier, images):
    classifier.push_to_hub('zoo/animals')
    model = timm.create_model('hf-hub:zoo/animals', pretrained=True).eval()
    assert model.pretrained_cfg['label_names'] == list(NAMES)
    # Red before: timm's own, 'r160_in1k' and 'apache-2.0'.
    assert not any(model.pretrained_cfg.get(name) for name in ('tag', 'license'))
    own = classifier.model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    config = timm.data.resolve_model_data_config(model)
    assert Preprocessing.of(config) == classifier.preprocessing
    transform = timm.data.create_transform(**config, is_training=False)
    with torch.inference_mode():
        logits = model(torch.stack([transform(Image.fromarray(image)) for image in images]))
    np.testing.assert_allclose(logits.amax(1), classifier.scores(images)[1], rtol=1e-5)


@pytest.mark.slow
def test_a_checkpoint_without_a_threshold_goes_up_as_a_network(hub, data, tmp_path):
    """By timm's own function, as docs/howto/hub.md has it."""
    loaded = load_checkpoint(save_checkpoint(tmp_path / 'm.pth.tar', data, known_classes=NAMES, unknown_classes=()))
    timm.models.push_to_hf_hub(
        build_model(loaded), 'zoo/network', model_config={'label_names': list(loaded.record.known_classes)},
        data_config=loaded.record.data_config, safe_serialization=True)
    model = timm.create_model('hf-hub:zoo/network', pretrained=True)
    assert model.pretrained_cfg['label_names'] == list(NAMES)
    assert all(torch.equal(value, loaded.state_dict[name]) for name, value in model.state_dict().items())
    assert Preprocessing.of(timm.data.resolve_model_data_config(model)) == Preprocessing.of(loaded.record.data_config)


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'options'), [('classifier32', {}), ('test_vit', {'img_size': 32})])
def test_networks_of_this_package_and_of_other_sizes(hub, data, images, tmp_path, name, options):
    classifier = made(tmp_path, data, name, **options)
    classifier.model.to(memory_format=torch.channels_last)
    classifier.push_to_hub('zoo/animals')
    model = timm.create_model('hf-hub:zoo/animals', pretrained=True)
    assert all(torch.equal(value, classifier.model.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(('name', 'config', 'said'), [
    ('classifier32', {}, 'import gradmix_timm.models'), ('test_resnet', {}, ''),
    ('test_resnet', {'exif': 'apply', 'image_mode': 'HSV'}, 'images are read as HSV, photographs are turned upright')])
def test_the_card_says_what_timm_does_not_know(classifier, name, config, said):
    made = replace(classifier.manifest, model=name, data_config={**classifier.manifest.data_config, **config})
    text = module._use('zoo/animals', made)
    assert said in text
    assert ('gradmix_timm.models' in text, 'does not hold' in text) == (name == 'classifier32', bool(config))


def test_the_card_holds_what_was_measured(hub, classifier, tmp_path):
    results = write_results(tmp_path, classifier)
    classifier.push_to_hub('zoo/animals', results=tmp_path, license='cc-by-4.0')
    card = ModelCard(hub.repos['zoo/animals']['main']['README.md'].decode())
    assert (card.data.license, card.data.library_name) == ('cc-by-4.0', 'timm')
    assert {'gradmix_timm', 'open-set-recognition'} <= set(card.data.tags)
    assert card.data.metrics == ['accuracy', 'roc_auc', 'oscr', 'fpr_at_95_known']
    head = yaml.safe_load(card.content.split('---')[1])
    name, figures = model_index_to_eval_results(head['model-index'])
    assert name == 'animals'
    assert {one.metric_type: one.metric_value for one in figures} == {
        'accuracy': results['closed_set']['top1'], 'roc_auc': results['scores']['mls']['auroc'],
        'oscr': results['scores']['mls']['oscr'], 'fpr_at_95_known': results['scores']['mls']['fpr_at_95_known']}
    for words in ("from_pretrained('zoo/animals')", "'hf-hub:zoo/animals'", 'ant, bee, cat&#124;dog, dog', '`mls`',
                  'given by hand: no share', '60 known and 60 unknown images', 'elk, fox', '| mls '):
        assert words in card.text
    # Without results there are no figures to claim.
    classifier.push_to_hub('zoo/animals')
    card = ModelCard(hub.repos['zoo/animals']['main']['README.md'].decode())
    assert card.data.license is None
    assert 'model-index' not in card.content.split('---')[1]
    assert '## Evaluation' not in card.text


def test_results_of_another_checkpoint_are_refused_before_anything_is_sent(hub, classifier, tmp_path):
    write_results(tmp_path, classifier, manifest={'model': 'test_resnet', 'checkpoint_sha256': '0' * 64})
    with pytest.raises(ValueError, match=r'measured on the checkpoint of SHA-256 000000000000 .* gradmix-openset osr'):
        classifier.push_to_hub('zoo/animals', results=tmp_path / 'results.json')
    assert not hub.asked


@pytest.mark.slow
def test_a_revision_is_a_branch_or_a_commit(hub, classifier, data, images, tmp_path):
    first = classifier.push_to_hub('zoo/animals').rsplit('/', 1)[1]
    hub.repos['zoo/animals']['next'] = hub.repos['zoo/animals']['main']
    other = OpenSetClassifier.from_checkpoint(
        save_checkpoint(tmp_path / 'm.pth.tar', data, known_classes=NAMES, unknown_classes=()), threshold=-3.,
        device='cpu')
    other.push_to_hub('zoo/animals', revision='next')

    def threshold(revision):
        folder = module.download('zoo/animals', revision=revision, token=None, cache_dir=None)
        return json.loads((folder / 'classifier.json').read_text())['threshold']

    assert [threshold(revision) for revision in (None, 'next', first)] == [0.1, -3, 0.1]
    with pytest.raises(ValueError, match="has no revision 'nowhere'; name a branch, a tag or a commit"):
        OpenSetClassifier.from_pretrained('zoo/animals', 'cpu', revision='nowhere')
    with pytest.raises(ValueError, match="has no revision 'nowhere'"):
        classifier.push_to_hub('zoo/animals', revision='nowhere')


def test_both_files_are_of_one_commit_whatever_is_pushed_between(hub, classifier, images, monkeypatch):
    classifier.push_to_hub('zoo/animals')
    fetch = module.hf_hub_download

    def pushed_after_the_first(repo, name, **options):
        path = fetch(repo, name, **options)
        if name == 'classifier.json':
            hub.commit(repo, {'classifier.safetensors': b'another', 'classifier.json': b'another'})
        return path

    monkeypatch.setattr(module, 'hf_hub_download', pushed_after_the_first)
    assert OpenSetClassifier.from_pretrained('zoo/animals', 'cpu').predict(images) == classifier.predict(images)


def test_the_cache_serves_without_a_network_and_a_folder_without_a_hub(hub, classifier, images, tmp_path, monkeypatch):
    classifier.push_to_hub('zoo/animals')
    OpenSetClassifier.from_pretrained('zoo/animals', 'cpu')
    asked = len(hub.asked)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert OpenSetClassifier.from_pretrained('zoo/animals', 'cpu').predict(images) == classifier.predict(images)
    classifier.save(tmp_path / 'kept')
    assert OpenSetClassifier.from_pretrained(tmp_path / 'kept', 'cpu').predict(images) == classifier.predict(images)
    assert len(hub.asked) == asked
    with pytest.raises(ValueError, match='could not be reached and zoo/others is not among earlier downloads'):
        OpenSetClassifier.from_pretrained('zoo/others', 'cpu')


class Trap:
    def __reduce__(self):
        return pytest.fail, ('unpickled',)


@pytest.mark.parametrize(('files', 'words'), [
    ({'pytorch_model.bin': pickle.dumps(Trap())}, 'holds no classifier.json .* timm.create_model'),
    ({'classifier.json': b'{}'}, 'not of a saved classifier'),
    ({'classifier.json': b'{"format": 1}'}, 'missing'),
    ({'classifier.json': b'broken', 'classifier.safetensors': pickle.dumps(Trap())}, 'not JSON')])
def test_repositories_of_others_are_refused(hub, files, words):
    hub.commit('zoo/animals', files)
    if 'classifier.json' in files:
        hub.commit('zoo/animals', {'classifier.safetensors': pickle.dumps(Trap())})
    with pytest.raises(ValueError, match=words) as raised:
        OpenSetClassifier.from_pretrained('zoo/animals', 'cpu')
    assert len(str(raised.value).splitlines()) == 1


def test_weights_that_were_exchanged_are_refused(hub, classifier):
    classifier.push_to_hub('zoo/animals')
    files = hub.repos['zoo/animals']['main']
    hub.commit('zoo/animals', {'classifier.safetensors': files['model.safetensors']})
    with pytest.raises(ValueError, match='damaged or not of one save'):
        OpenSetClassifier.from_pretrained('zoo/animals', 'cpu')
    hub.commit('zoo/animals', {'classifier.safetensors': pickle.dumps(Trap())})
    with pytest.raises(ValueError, match='damaged or not of one save'):
        OpenSetClassifier.from_pretrained('zoo/animals', 'cpu')


def test_what_the_hub_refuses_is_one_line_with_a_remedy(hub, classifier, monkeypatch):
    def refused(words, call):
        with pytest.raises(ValueError, match=words) as raised:
            call()
        assert len(str(raised.value).splitlines()) == 1

    refused('there is no model zoo/animals on .* private; .* hf auth login',
            lambda: OpenSetClassifier.from_pretrained('zoo/animals', 'cpu'))
    for name in ('animals', 'a/b/c', ''):
        refused('neither a folder here nor a repository', lambda name=name: OpenSetClassifier.from_pretrained(name))
        refused('neither a folder here nor a repository', lambda name=name: classifier.push_to_hub(name))
    refused('no name of a repository', lambda: OpenSetClassifier.from_pretrained('zoo/-- animals'))
    refused('does not let you write to zoo/animals; .* hf auth login',
            lambda: classifier.push_to_hub('zoo/animals', token='hf_reader'))
    monkeypatch.setattr(time, 'sleep', lambda seconds: None)  # the client tries six times within 24 s
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE',
                        'http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}')
    refused('could not be reached', lambda: OpenSetClassifier.from_pretrained('zoo/animals', 'cpu'))
    refused(r'ConnectError.*check the network', lambda: classifier.push_to_hub('zoo/animals'))
