"""The open-set classifier: its promise on new images, what its threshold may see, its files, its graph."""
from __future__ import annotations

import gc
import json
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_checkpoints import CONFIG, class_folders, save_checkpoint

import gradmix_timm
from gradmix_timm import OpenSetClassifier
from gradmix_timm.checkpoint import ProjectionHead, build_model, load_checkpoint
from gradmix_timm.classifier.model_card import model_card
from gradmix_timm.data import open_dataset, recorded_parts, select_classes
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.evaluation import opening
from gradmix_timm.openset.scores import SCORES, Score, list_scores, score_kind

HELD = [*range(0, 20), *range(60, 80)]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def checkpoint(data, tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp('run') / 'model_best.pth.tar', data)


@pytest.fixture(scope='module')
def classifier(checkpoint):
    return OpenSetClassifier.from_checkpoint(checkpoint, device='cpu')


@pytest.fixture(scope='module')
def files(data):
    return sorted((data / 'test').rglob('*.png'))[::9]


def pixels(path, mode='RGB'):
    with Image.open(path) as image:
        return np.asarray(image.convert(mode))


# ---- the threshold

def test_new_known_images_are_accepted_as_promised(data, tmp_path):
    """Nothing was trained, so any held-out part is exchangeable with the rest: over parts the promise has to hold."""
    whole = select_classes(open_dataset('', data, 'train'), ('cat', 'ant'))
    images = [whole[row][0] for row in range(len(whole))]
    rng, kept = np.random.default_rng(0), []
    knownness = None
    for number in range(8):
        held = rng.permutation(len(whole))[:39]
        path = save_checkpoint(tmp_path / f'{number}.pth.tar', data, held=sorted(whole.indices[held].tolist()))
        found = OpenSetClassifier.from_checkpoint(path, known_acceptance=0.8, device='cpu')
        knownness = found.scores(images)[1] if knownness is None else knownness
        new = np.setdiff1d(np.arange(len(whole)), held)
        kept.append((knownness[new] >= found.threshold).mean())
    # 1 - 8 / 40 in expectation; one part's share has a standard deviation of 0.11 here.
    assert 0.7 < np.mean(kept) < 0.9
    assert max(kept) < 1


def test_the_threshold_is_the_order_statistic_of_the_held_out_images(classifier, data):
    whole = select_classes(open_dataset('', data, 'train'), ('cat', 'ant'))
    held = [whole[int(np.flatnonzero(whole.indices == row)[0])][0] for row in HELD]
    knownness = np.sort(classifier.scores(held)[1])
    assert classifier.threshold == pytest.approx(knownness[int(0.05 * 41) - 1], rel=1e-5)
    assert classifier.manifest.n_validation == 40
    assert 'held out, so as to accept on average at least' in classifier.manifest.threshold_source
    assert 'model_best' in classifier.manifest.threshold_source


def test_a_higher_share_gives_a_lower_threshold(checkpoint):
    low, high = (OpenSetClassifier.from_checkpoint(checkpoint, known_acceptance=share, device='cpu').threshold
                 for share in (0.5, 0.97))
    assert high < low


@pytest.mark.parametrize('score', ['mls', 'knn'])
def test_the_test_split_is_never_opened(checkpoint, classifier, data, tmp_path, monkeypatch, score):
    asked = []

    def watched(name, root, split, **options):
        asked.append(split)
        return open_dataset(name, root, split, **options)

    monkeypatch.setattr(opening, 'open_dataset', watched)
    OpenSetClassifier.from_checkpoint(checkpoint, score, device='cpu')
    assert asked == ['train']
    alone = class_folders(tmp_path / 'alone', splits=('train',))
    again = OpenSetClassifier.from_checkpoint(checkpoint, score, data_dir=alone, device='cpu')
    assert score != 'mls' or again.threshold == classifier.threshold


def test_only_held_out_images_are_read_for_a_score_without_a_fit(data, tmp_path):
    """Every other image of the training split is broken."""
    copy = class_folders(tmp_path / 'copy', splits=('train',))
    source = open_dataset('', copy, 'train')
    for row in set(range(90)) - set(HELD):
        Path(source.filename(row, absolute=True)).write_bytes(b'broken')
    path = save_checkpoint(tmp_path / 'm.pth.tar', copy)
    assert OpenSetClassifier.from_checkpoint(path, device='cpu').manifest.n_validation == 40
    with pytest.raises(ValueError, match=r'\.png cannot be read'):
        OpenSetClassifier.from_checkpoint(path, 'knn', device='cpu')


def test_a_fitted_score_does_not_see_the_held_out_images(checkpoint):
    found = OpenSetClassifier.from_checkpoint(checkpoint, 'knn', device='cpu')
    assert found.score.diagnostics['samples'] == 20  # of 60 known training images 40 are held out


def test_without_held_out_images_the_error_offers_what_to_pass(data, tmp_path, files):
    path = save_checkpoint(tmp_path / 'm.pth.tar', data, held=())
    with pytest.raises(ValueError, match=r'validation=\[\.\.\.\].*threshold=NUMBER'):
        OpenSetClassifier.from_checkpoint(path, device='cpu')
    given = OpenSetClassifier.from_checkpoint(path, threshold=1.5, device='cpu')
    assert (given.threshold, given.manifest.known_acceptance) == (1.5, None)
    passed = OpenSetClassifier.from_checkpoint(path, validation=files, known_acceptance=0.8, device='cpu')
    assert passed.manifest.n_validation == len([path for path in files if path.parent.name != 'bee']), 'no known class'


def test_validation_images_of_unknown_classes_are_left_out_however_they_are_named(data, tmp_path, caplog):
    path = save_checkpoint(tmp_path / 'm.pth.tar', data, held=())
    bees, cats = (sorted((data / 'test' / name).iterdir()) for name in ('bee', 'cat'))
    with pytest.raises(ValueError, match=r'all 30 validation images lie in folders of classes .* not known \(bee\)'):
        OpenSetClassifier.from_checkpoint(path, validation=bees, known_acceptance=0.8, device='cpu')
    (tmp_path / 'cat' / 'day1').mkdir(parents=True)
    inner = [Path(shutil.copy(cat, tmp_path / 'cat' / 'day1')) for cat in cats[:6]]
    found = OpenSetClassifier.from_checkpoint(path, validation=[*inner, *bees], known_acceptance=0.8, device='cpu')
    assert found.manifest.n_validation == 6


def test_a_folder_with_the_training_images_is_no_validation_set(checkpoint, files, tmp_path):
    for part in ('train', 'test'):
        for place, file in enumerate(files[:2]):
            target = tmp_path / part / file.parent.name / f'{place}{file.suffix}'
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r'lie in train and in test: .*name the folder test alone'):
        OpenSetClassifier.from_checkpoint(checkpoint, validation=tmp_path, device='cpu')
    moved = tmp_path / 'test' / 'train'  # a folder of that name above all images says nothing
    (tmp_path / 'train').rename(moved)
    with pytest.raises(ValueError, match='too few'):
        OpenSetClassifier.from_checkpoint(checkpoint, validation=moved, device='cpu')


@pytest.mark.parametrize('score', ['knn:k=1', 'mls'])
def test_training_images_are_no_validation_set(checkpoint, data, tmp_path, score):
    copies = shutil.copytree(data / 'train', tmp_path / 'copies')
    for images in (data / 'train', copies, [str(path) for path in copies.rglob('*.png')]):
        with pytest.raises(ValueError, match=r'20 of the 60 validation images are training images.*validation=\['):
            OpenSetClassifier.from_checkpoint(checkpoint, score, validation=images, device='cpu')
    new = OpenSetClassifier.from_checkpoint(checkpoint, score, validation=data / 'test', device='cpu')
    assert new.manifest.n_validation == 60


def test_numbers_of_numpy_and_torch_are_kept_in_the_file(checkpoint, tmp_path):
    for share in (np.float32(0.9), torch.tensor(0.9)):
        OpenSetClassifier.from_checkpoint(checkpoint, known_acceptance=share, device='cpu').save(tmp_path)
        assert OpenSetClassifier.load(tmp_path, 'cpu').manifest.known_acceptance == pytest.approx(0.9)
    OpenSetClassifier.from_checkpoint(checkpoint, threshold=0., img_size=np.int64(40), device='cpu').save(tmp_path)
    assert OpenSetClassifier.load(tmp_path, 'cpu').preprocessing.input_size == (3, 40, 40)


def test_too_few_held_out_images_say_how_many_are_needed(data, tmp_path, files):
    path = save_checkpoint(tmp_path / 'm.pth.tar', data, held=range(10))
    with pytest.raises(ValueError, match=r'10 held-out images are too few .* 19 are needed'):
        OpenSetClassifier.from_checkpoint(path, device='cpu')
    assert len([path for path in files if path.parent.name != 'bee']) == 7  # of known classes
    with pytest.raises(ValueError, match='7 held-out images are too few'):
        OpenSetClassifier.from_checkpoint(path, validation=files, known_acceptance=0.99, device='cpu')


@pytest.mark.parametrize(('options', 'words'), [
    ({'score': 'mlss'}, "did you mean 'mls'"), ({'known_acceptance': 95}, 'between 0 and 1'),
    ({'known_acceptance': '0.9'}, "between 0 and 1, got '0.9'"), ({'threshold': 'a'}, "threshold='a'; give a finite"),
    ({'threshold': 1., 'validation': []}, 'give one'), ({'threshold': float('nan')}, 'finite'),
    ({'known_classes': ['ant', 'cat']}, 'class 0 of the head'), ({'device': 'nowhere'}, "'cpu'"),
    ({'amp_dtype': torch.float64}, 'bfloat16'), ({'data_dir': 'nowhere'}, 'data_dir=FOLDER')])
def test_what_is_asked_wrongly_is_said(checkpoint, options, words):
    with pytest.raises(ValueError, match=words):
        OpenSetClassifier.from_checkpoint(checkpoint, **{'device': 'cpu', **options})


def test_weights_alone_ask_for_classes_and_then_serve(data, tmp_path, files):
    path = tmp_path / 'bare.pth'
    torch.manual_seed(0)
    torch.save(timm.create_model('test_resnet', num_classes=2).state_dict(), path)
    with pytest.raises(ValueError, match='known_classes'):
        OpenSetClassifier.from_checkpoint(path, model='test_resnet', threshold=0., device='cpu')
    found = OpenSetClassifier.from_checkpoint(
        path, model='test_resnet', threshold=-100., known_classes=['cat', 'ant'], device='cpu')
    assert {label for label, _ in found.predict(files)} <= {'cat', 'ant'}
    found.save(tmp_path / 'kept')
    assert OpenSetClassifier.load(tmp_path / 'kept', 'cpu').predict(files) == found.predict(files)


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit'])
def test_weights_alone_serve_at_the_size_that_is_typed(name, files, tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(timm.create_model(name, num_classes=2).state_dict(), path)
    typed = {'model': name, 'threshold': -100., 'known_classes': ['cat', 'ant'], 'device': 'cpu', 'img_size': 96}
    classifier = OpenSetClassifier.from_checkpoint(path, **typed)
    assert classifier.preprocessing.input_size == (3, 96, 96)
    classifier.save(tmp_path / 'saved')
    again = OpenSetClassifier.load(tmp_path / 'saved', device='cpu')
    assert again.preprocessing.input_size == (3, 96, 96)
    assert [one.knownness for one in again.predict(files)] == [one.knownness for one in classifier.predict(files)]


def test_a_score_of_another_type_is_refused(checkpoint):
    with pytest.raises(TypeError, match='score=None: expected a name'):
        OpenSetClassifier.from_checkpoint(checkpoint, None, device='cpu')


def test_a_misspelt_keyword_names_the_method_and_the_nearest(checkpoint):
    with pytest.raises(TypeError, match=r"from_checkpoint has no keyword 'known_aceptance': .*known_acceptance"):
        OpenSetClassifier.from_checkpoint(checkpoint, known_aceptance=0.9)
    for size in (0, 40., '40'):
        with pytest.raises(ValueError, match=f'img_size={size!r}: expected the side in pixels'):
            OpenSetClassifier.from_checkpoint(checkpoint, img_size=size)


def test_a_class_called_unknown_is_refused(data, tmp_path):
    path = save_checkpoint(tmp_path / 'm.pth.tar', data, known_classes=('cat', 'unknown'))
    with pytest.raises(ValueError, match="called 'unknown'"):
        OpenSetClassifier.from_checkpoint(path, threshold=0., device='cpu')


# ---- predictions

def test_labels_follow_the_threshold(classifier, files):
    records, (classes, knownness) = classifier.predict(files), classifier.scores(files)
    for record, place, value in zip(records, classes, knownness, strict=True):
        assert record.knownness == value
        assert record.label == (('cat', 'ant')[place] if value >= classifier.threshold else 'unknown')
    assert {label for label, _ in records} - {'unknown'}


def test_a_record_holds_probabilities_and_the_file(classifier, files):
    with torch.inference_mode():
        inputs = torch.stack([classifier.preprocessing.transform()(Image.open(path).convert('RGB')) for path in files])
        shares = classifier.model(inputs).double().softmax(1)
    records = classifier.predict(files)
    for record, share, path in zip(records, shares, files, strict=True):
        assert record.path == path
        assert (*record,) == (record[0], record[1]) == (record.label, record.knownness)
        assert record.nearest == ('cat', 'ant')[share.argmax()]
        assert record.label in (record.nearest, 'unknown')
        assert record.probability == pytest.approx(float(share.max()), rel=1e-5)
        assert [name for name, _ in record.top_k] == [('cat', 'ant')[place] for place in share.argsort(descending=True)]
        assert sum(value for _, value in record.top_k) == pytest.approx(1)
    assert [record.top_k for record in classifier.predict(files, top_k=1)] == [record.top_k[:1] for record in records]
    assert classifier.predict(pixels(files[0]))[0].path is None
    with pytest.raises(ValueError, match='top_k is a whole number, at least 1, got'):
        classifier.predict(files, top_k=0)


def test_a_score_with_a_predictor_of_its_own_names_the_class_and_the_model_its_probability(checkpoint, files):
    found = OpenSetClassifier.from_checkpoint(checkpoint, 'class-knn', device='cpu', known_acceptance=0.8)
    classes, _ = found.scores(files)
    for record, place in zip(found.predict(files), classes, strict=True):
        assert record.nearest == found.known_classes[place]
        assert dict(record.top_k)[record.nearest] == record.probability


def test_a_folder_stands_for_its_images(classifier, data, checkpoint, tmp_path):
    files = sorted((data / 'test').rglob('*.png'))
    whole = classifier.predict(data / 'test')
    assert [record.path for record in whole] == files
    assert whole == classifier.predict(files)
    mixed = classifier.predict([files[3], str(data / 'test' / 'bee'), pixels(files[0])])
    assert [record.path for record in mixed] == [files[3], *sorted((data / 'test' / 'bee').iterdir()), None]
    own = OpenSetClassifier.from_checkpoint(checkpoint, validation=str(data / 'test'), device='cpu')
    assert own.manifest.n_validation == 60, 'bee is no known class'
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match=r'no image in the folder .*empty'):
        classifier.predict(tmp_path / 'empty')


def test_answers_are_those_of_the_model_under_its_own_transform(classifier, checkpoint, files):
    from timm.data import create_transform
    model = timm.create_model('test_resnet', num_classes=2).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'])
    transform = create_transform(**CONFIG)
    with torch.inference_mode():
        logits = model(torch.stack([transform(Image.open(path).convert('RGB')) for path in files]))
    classes, knownness = classifier.scores(files)
    np.testing.assert_array_equal(classes, logits.argmax(1))
    np.testing.assert_allclose(knownness, logits.amax(1), rtol=1e-5)


def test_every_kind_of_image_gives_the_same(classifier, files):
    expected = classifier.predict(files)
    arrays = [pixels(path) for path in files]
    tensors = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]
    assert classifier.predict([str(path) for path in files]) == expected
    assert classifier.predict(Image.fromarray(array) for array in arrays) == expected
    assert classifier.predict(np.stack(arrays)) == expected
    assert classifier.predict(torch.stack(tensors)) == expected
    assert classifier.predict([tensor / 255 for tensor in tensors]) == expected
    assert classifier.predict([array.astype(np.float64) / 255 for array in arrays]) == expected
    mixed = [(str(path), Image.fromarray(array), array, tensor)[place % 4]
             for place, (path, array, tensor) in enumerate(zip(files, arrays, tensors, strict=True))]
    assert classifier.predict(mixed) == expected
    assert classifier.predict(files[0])[0].knownness == pytest.approx(expected[0].knownness, rel=1e-5)
    assert len(classifier.predict(arrays[0])) == len(classifier.predict(tensors[0])) == 1
    assert classifier.predict([]) == []


def test_grey_images_of_every_form(classifier, files):
    grey = pixels(files[0], 'L')
    forms = [grey, grey[..., None], torch.from_numpy(grey.copy()), torch.from_numpy(grey.copy())[None],
             Image.fromarray(grey), np.stack([grey] * 3, -1)]
    assert len({record for form in forms for record in classifier.predict(form)}) == 1


@pytest.mark.parametrize(('name', 'options', 'channels'), [
    ('resnet10t', {'in_chans': 1}, 1), ('test_vit', {'img_size': 32}, 3)])
def test_other_channels_and_backbones(data, files, tmp_path, name, options, channels):
    torch.manual_seed(0)
    path = save_checkpoint(
        tmp_path / 'm.pth.tar', data, net=timm.create_model(name, num_classes=2, **options), model=name,
        model_kwargs={'num_classes': 2, **options}, data_config={
            **CONFIG, 'input_size': (channels, 32, 32), 'mean': (0.4,) * channels, 'std': (0.2,) * channels})
    found = OpenSetClassifier.from_checkpoint(path, 'rmahalanobis', device='cpu')
    found.save(tmp_path / 'kept')
    assert OpenSetClassifier.load(tmp_path / 'kept', 'cpu').predict(files) == found.predict(files)
    grey = [pixels(path, 'L') for path in files]
    same = found.predict(grey) == found.predict([np.stack([image] * 3, -1) for image in grey])
    assert same
    assert (found.predict(grey) == found.predict(files)) == (channels == 1)


def test_float_pixels_are_rounded_to_the_nearest(classifier):
    nearly = np.full((32, 32, 3), 127 / 255 + 0.49 / 255)
    assert classifier.predict(nearly) == classifier.predict(np.full((32, 32, 3), 127, np.uint8))
    nearly += 0.02 / 255
    assert classifier.predict(nearly) == classifier.predict(np.full((32, 32, 3), 128, np.uint8))


@pytest.mark.parametrize('score', ['mls', 'knn'])
def test_a_record_depends_on_its_image_alone(checkpoint, files, score):
    whole = OpenSetClassifier.from_checkpoint(checkpoint, score, device='cpu')
    expected = whole.scores(files)
    order = np.random.default_rng(0).permutation(len(files))
    for size in (1, 3, 64):
        part = OpenSetClassifier(whole.model, whole.score, whole.manifest, 'cpu', batch_size=size)
        classes, knownness = part.scores([files[row] for row in order])
        np.testing.assert_array_equal(classes, expected[0][order])
        # Float32 sums are blocked by the batch size; nothing else may differ.
        np.testing.assert_allclose(knownness, expected[1][order], rtol=1e-5, atol=1e-6)


def test_images_are_read_as_they_are_needed(checkpoint, files):
    small = OpenSetClassifier.from_checkpoint(checkpoint, device='cpu', batch_size=2)
    read, most = [], []

    def images():
        for path in files:
            read.append(path)
            yield path

    embed = small.model.forward
    small.model.forward = lambda batch: (most.append(len(read)), embed(batch))[1]
    small.predict(images())
    assert most == list(range(2, len(files) + 1, 2)) + [len(files)] * (len(files) % 2)


@pytest.mark.parametrize(('image', 'kind', 'words'), [
    ('nowhere.png', ValueError, 'image 0: there is no file nowhere.png'),
    (np.zeros((4, 4, 5), np.uint8), ValueError, r'shape \[4, 4, 5\]'),
    (Image.new('RGB', (0, 5)), ValueError, 'image 0: an image of 0 x 5 pixels'),
    (np.zeros((4, 4, 3), np.int64), ValueError, 'int64; expected uint8'),
    (torch.randn(3, 8, 8), ValueError, 'not yet normalised'),
    (np.full((4, 4), np.nan), ValueError, 'expected 0 to 1'),
    (object(), TypeError, 'got object')])
def test_a_bad_image_is_named(classifier, image, kind, words):
    with pytest.raises(kind, match=words):
        classifier.predict([image])


def test_the_bytes_of_a_file_are_no_image(classifier, files):
    with pytest.raises(TypeError, match=r'expected images .*, got bytes'):
        classifier.predict(files[0].read_bytes())
    with pytest.raises(ValueError, match="top_k is a whole number, at least 1, got 'a'"):
        classifier.predict(files[:1], top_k='a')


def test_a_broken_file_is_named_with_its_position(classifier, files, tmp_path):
    (tmp_path / 'broken.png').write_bytes(b'\x89PNG nothing')
    with pytest.raises(ValueError, match=r'image 1: .*broken\.png cannot be read'):
        classifier.predict([files[0], tmp_path / 'broken.png'])
    with pytest.raises(ValueError, match=r'image 0: .*broken\.png cannot be read'):
        classifier.predict(tmp_path)
    with pytest.raises(ValueError, match='image 0: there is no file'):
        classifier.predict([''])
    with pytest.raises(TypeError, match='expected images'):
        classifier.predict(7)


def test_half_precision_stays_near_and_is_kept_in_the_file(checkpoint, classifier, files, tmp_path):
    half = OpenSetClassifier.from_checkpoint(checkpoint, amp_dtype=torch.bfloat16, device='cpu')
    assert half.predict(files) != classifier.predict(files)
    np.testing.assert_allclose(half.scores(files)[1], classifier.scores(files)[1], rtol=0.05, atol=0.02)
    half.save(tmp_path)
    assert OpenSetClassifier.load(tmp_path, 'cpu').predict(files) == half.predict(files)


def test_image_files_are_closed_once_they_are_read(classifier, files, monkeypatch):
    seen = []
    monkeypatch.setattr(sys, 'unraisablehook', lambda found: seen.append(found.exc_value))
    with warnings.catch_warnings():
        warnings.simplefilter('error', ResourceWarning)
        classifier.scores(files[:3])
        gc.collect()
    assert not seen


def test_the_model_keeps_its_mode_and_weights(classifier, files):
    before = {name: value.clone() for name, value in classifier.model.state_dict().items()}
    classifier.predict(files)
    assert not any(module.training for module in classifier.model.modules())
    assert all(torch.equal(before[name], value) for name, value in classifier.model.state_dict().items())


# ---- files

@pytest.mark.parametrize('score', ['mls', 'gen', 'class-knn', 'mahalanobis', 'vim', 'react'])
def test_a_loaded_classifier_answers_bit_for_bit(checkpoint, files, tmp_path, score):
    options = {'react': {'percentile': 80}, 'vim': {'dim': 4}}.get(score)
    found = OpenSetClassifier.from_checkpoint(checkpoint, score, device='cpu', score_options=options)
    found.save(tmp_path)
    again = OpenSetClassifier.load(tmp_path, 'cpu')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['classifier.json', 'classifier.safetensors']
    assert again.predict(files) == found.predict(files)
    assert again.manifest == found.manifest
    assert again.score.options == found.score.options
    json.loads((tmp_path / 'classifier.json').read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity


@pytest.fixture(scope='module')
def sorting(data, tmp_path_factory):
    """Checkpoints that answer with the class of the nearest mean, without a projection head and with one."""
    torch.manual_seed(1)
    net, transform = timm.create_model('test_resnet', num_classes=2).eval(), Preprocessing.of(CONFIG).transform()
    whole = select_classes(open_dataset('', data, 'train'), ('cat', 'ant'))
    with torch.no_grad():
        features = net.forward_head(net.forward_features(torch.stack([transform(image) for image, _ in whole])),
                                    pre_logits=True)
        means = torch.stack([features[torch.as_tensor(whole.targets) == label].mean(0) for label in (0, 1)])
        net.get_classifier().weight.copy_(means)
        net.get_classifier().bias.copy_(-means.square().sum(1) / 2)
    plain = save_checkpoint(tmp_path_factory.mktemp('sorting') / 'plain.pth.tar', data, net=net)
    head = {'projection_head': ProjectionHead(means.shape[1], 16).state_dict()}
    torch.save({**torch.load(plain, weights_only=False), 'task_state': head}, plain.with_name('projected.pth.tar'))
    return plain, plain.with_name('projected.pth.tar')


@pytest.mark.parametrize('projected', [False, True])
@pytest.mark.parametrize('score', [name for name in list_scores() if not score_kind(name).requires_model])
def test_every_score_serves_and_is_kept_in_the_files(sorting, files, tmp_path, score, projected):
    options = {'vim': {'dim': 4}, 'residual': {'dim': 4}, 'nnguide': {'k': 5}}.get(score)
    found = OpenSetClassifier.from_checkpoint(sorting[projected], score, device='cpu', score_options=options,
                                              known_acceptance=0.8)
    answers = found.predict(files)
    assert (found.projection is not None) == (projected and score.startswith('class-knn'))
    found.save(tmp_path)
    again = OpenSetClassifier.load(tmp_path, 'cpu')
    assert again.predict(files) == answers


def test_a_saved_projection_head_of_other_widths_is_refused(sorting, tmp_path):
    found = OpenSetClassifier.from_checkpoint(sorting[1], 'class-knn', device='cpu', known_acceptance=0.8)
    found.projection = ProjectionHead(found.projection.fc1.in_features, 8)
    found.save(tmp_path)
    with pytest.raises(ValueError, match=r'was fit on projection 16 wide, got 8'):
        OpenSetClassifier.load(tmp_path, 'cpu')


def test_detectors_of_pytorch_ood_serve_and_are_kept_where_a_file_can_hold_them(checkpoint, files, tmp_path):
    pytest.importorskip('pytorch_ood')
    found = OpenSetClassifier.from_checkpoint(checkpoint, 'pytorch-ood:ViM', known_acceptance=0.8, device='cpu')
    found.save(tmp_path / 'kept')
    assert OpenSetClassifier.load(tmp_path / 'kept', device='cpu').predict(files) == found.predict(files)
    found = OpenSetClassifier.from_checkpoint(checkpoint, 'pytorch-ood:KNN', known_acceptance=0.8, device='cpu',
                                              score_options={'k': 3})
    assert len(found.predict(files)) == len(files)
    with pytest.raises(ValueError, match=r"'pytorch-ood:KNN:k=3' cannot be kept in a file; make the classifier from"):
        found.save(tmp_path / 'refused')
    assert not (tmp_path / 'refused').exists()


def test_saving_goes_over_the_old_files_and_leaves_nothing_else(classifier, tmp_path):
    classifier.save(tmp_path / 'a' / 'b')
    classifier.save(tmp_path / 'a' / 'b')
    assert len(list((tmp_path / 'a' / 'b').iterdir())) == 2


def test_a_threshold_set_by_hand_is_saved(checkpoint, files, tmp_path):
    classifier = OpenSetClassifier.from_checkpoint(checkpoint, device='cpu')
    classifier.threshold = 1e9
    assert all(found.label == 'unknown' for found in classifier.predict(files))
    classifier.save(tmp_path / 'c')
    again = OpenSetClassifier.load(tmp_path / 'c')
    assert (again.threshold, again.manifest.known_acceptance) == (1e9, None)
    with pytest.raises(ValueError, match='threshold nan'):
        classifier.threshold = float('nan')


def change(folder, **entries):
    path = folder / 'classifier.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def rename_classes(folder):
    """In the tensors' file, with a digest that fits."""
    import hashlib
    path = folder / 'classifier.safetensors'
    save_file(load_file(path), path, {'format': '1', 'known_classes': '["ant", "cat"]'})
    change(folder, tensors_sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize(('harm', 'words'), [
    (lambda folder: (folder / 'classifier.json').unlink(), 'no classifier.json in'),
    (lambda folder: (folder / 'classifier.safetensors').unlink(), 'copy both files'),
    (lambda folder: (folder / 'classifier.json').write_text('{"format":'), 'not JSON'),
    (lambda folder: (folder / 'classifier.json').write_text('[1]'), 'not of a saved classifier'),
    (lambda folder: (folder / 'classifier.json').write_text('{"format": 1}'), 'known_classes is missing'),
    (lambda folder: change(folder, format=2), 'pip install -U'),
    (lambda folder: change(folder, known_classes=['ant', 'cat']), r"saved for \['cat', 'ant'\]"),
    (lambda folder: change(folder, known_classes=['ant']), r"saved for \['cat', 'ant'\]"),
    (rename_classes, r"saved for \['ant', 'cat'\]"),
    (lambda folder: change(folder, score={'name': 'mlss'}), "did you mean 'mls'"),
    (lambda folder: change(folder, model='test_vit'), 'do not fit test_vit'),
    (lambda folder: (folder / 'classifier.safetensors').write_bytes(b'{}'), 'damaged or not of one save'),
    (lambda folder: (folder / 'classifier.safetensors').open('r+b').truncate(5000), 'damaged or not of one save')])
def test_files_that_are_not_whole_are_refused(classifier, tmp_path, harm, words):
    classifier.save(tmp_path)
    harm(tmp_path)
    with pytest.raises(ValueError, match=words):
        OpenSetClassifier.load(tmp_path, 'cpu')


def test_weights_of_another_save_are_refused(checkpoint, classifier, tmp_path):
    classifier.save(tmp_path / 'a')
    OpenSetClassifier.from_checkpoint(checkpoint, 'knn', device='cpu').save(tmp_path / 'b')
    (tmp_path / 'a' / 'classifier.json').write_bytes((tmp_path / 'b' / 'classifier.json').read_bytes())
    with pytest.raises(ValueError, match='not of one save'):
        OpenSetClassifier.load(tmp_path / 'a', 'cpu')


# ---- the graph

def equal_in_onnx(found, path, count=5):
    runtime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    found.export_onnx(path)
    session = runtime.InferenceSession(path, providers=['CPUExecutionProvider'])
    told = session.get_modelmeta().custom_metadata_map
    size = tuple(json.loads(told['gradmix_timm.input_size']))
    images = np.random.default_rng(0).integers(0, 256, (count, *size), dtype=np.uint8)
    classes, knownness = found.scores(torch.from_numpy(images))
    label, value, accepted = session.run(None, {'images': images.astype(np.float32) / 255})
    np.testing.assert_array_equal(label, classes)
    np.testing.assert_allclose(value, knownness, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(accepted, knownness >= found.threshold)
    assert json.loads(told['gradmix_timm.known_classes']) == list(found.known_classes)
    assert (label.dtype, value.dtype, accepted.dtype) == (np.int64, np.float64, np.bool_)
    return accepted


@pytest.fixture(scope='module')
def whole(data, tmp_path_factory):
    """A checkpoint whose preprocessing keeps the whole image: at the model's size nothing is resized."""
    return save_checkpoint(tmp_path_factory.mktemp('whole') / 'm.pth.tar', data,
                           data_config={**CONFIG, 'crop_pct': 1.0})


def half_accepted(checkpoint, score):
    """The threshold in the middle of what the images of :func:`equal_in_onnx` will get, so that both answers occur."""
    found = OpenSetClassifier.from_checkpoint(checkpoint, score, threshold=0., device='cpu')
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    values = np.sort(found.scores(torch.from_numpy(images))[1])
    return OpenSetClassifier.from_checkpoint(
        checkpoint, score, threshold=float(values[1] + values[2]) / 2, device='cpu')


@pytest.mark.slow
def test_the_graph_answers_as_the_classifier(whole, tmp_path):
    accepted = equal_in_onnx(half_accepted(whole, 'mls'), tmp_path / 'm.onnx')
    assert accepted.any()
    assert not accepted.all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['m.onnx', 'm.onnx.md']


@pytest.mark.slow
@pytest.mark.parametrize('score', ['msp', 'energy', 'entropy', 'gen'])
def test_every_score_of_the_logits_has_a_graph(whole, tmp_path, score):
    assert equal_in_onnx(half_accepted(whole, score), tmp_path / 'm.onnx').any()


def test_a_score_of_features_says_which_scores_have_a_graph(checkpoint, tmp_path):
    found = OpenSetClassifier.from_checkpoint(checkpoint, 'knn', device='cpu')
    with pytest.raises(ValueError, match='msp, mls, energy'):
        found.export_onnx(tmp_path / 'm.onnx')
    assert not (tmp_path / 'm.onnx').exists()


def test_a_score_of_ones_own_says_what_it_has_to_be_for_a_graph(checkpoint, tmp_path, monkeypatch):
    class Second(Score):
        def knownness(self, embeddings):
            return embeddings.logits.double().amax(1)

    monkeypatch.setattr(SCORES, '_entries', dict(SCORES._entries))
    SCORES.register('second', 'as mls')(Second)
    found = OpenSetClassifier.from_checkpoint(checkpoint, 'second', device='cpu')
    with pytest.raises(ValueError, match=r'has to be a LogitScore \(of gradmix_timm\.openset\.scores\.logit\)'):
        found.export_onnx(tmp_path / 'm.onnx')


def test_a_missing_package_is_named(classifier, tmp_path, monkeypatch):
    from gradmix_timm.classifier import onnx_export
    monkeypatch.setattr(onnx_export, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r'gradmix-timm\[onnx\]'):
        classifier.export_onnx(tmp_path / 'm.onnx')


def test_a_graph_of_a_half_precision_classifier_says_so(checkpoint, tmp_path, monkeypatch):
    from gradmix_timm.classifier import onnx_export
    monkeypatch.setattr(onnx_export, 'find_spec', lambda name: True)

    def stop(*_, **__):
        raise RuntimeError('far enough')

    monkeypatch.setattr(torch.onnx, 'export', stop)
    half = OpenSetClassifier.from_checkpoint(checkpoint, 'mls', device='cpu', amp_dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match='threshold was set in bfloat16'), pytest.raises(RuntimeError, match='far'):
        half.export_onnx(tmp_path / 'm.onnx')
    facts = onnx_export._metadata(half.score, half.manifest, half.preprocessing, 'tensor')
    assert facts['gradmix_timm.threshold_precision'] == 'bfloat16'


# ---- of a live module

@pytest.fixture(scope='module')
def live(checkpoint, data):
    """The checkpoint's network, its preprocessing, and its training and held-out images."""
    loaded = load_checkpoint(checkpoint)
    parts = recorded_parts(select_classes(open_dataset('', data, 'train'), ('cat', 'ant')), loaded.record)
    return build_model(loaded).train(), Preprocessing.of(loaded.data_config), parts


@pytest.mark.parametrize('score', ['mls', 'knn:k=3', 'react'])
def test_a_live_module_makes_the_classifier_of_its_checkpoint(live, checkpoint, files, score, tmp_path):
    net, preprocessing, parts = live
    wanted = OpenSetClassifier.from_checkpoint(checkpoint, score, device='cpu')
    made = OpenSetClassifier.from_model(net, ('cat', 'ant'), score, validation=parts.held, train=parts.train,
                                        preprocessing=preprocessing)
    assert made.threshold == pytest.approx(wanted.threshold, abs=1e-5)
    np.testing.assert_allclose(made.scores(files)[1], wanted.scores(files)[1], atol=1e-5)
    assert made.predict(files)[0].label == wanted.predict(files)[0].label
    assert net.training, 'the module is copied'
    assert made.model is not net
    made.save(tmp_path)
    assert OpenSetClassifier.load(tmp_path, device='cpu').predict(files) == made.predict(files)


def test_a_loader_of_tensors_sets_the_threshold_of_a_module_of_ones_own(live, files, tmp_path):
    preprocessing, held = live[1], live[2].held
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    rows = [(preprocessing.transform()(held.picture(row)), int(held.targets[row])) for row in range(len(held))]
    loader = torch.utils.data.DataLoader(rows, 16, shuffle=True)
    made = OpenSetClassifier.from_model(net, ['cat', 'ant'], validation=loader, preprocessing=preprocessing)
    logits = net(torch.stack([image for image, _ in rows])).max(1).values
    assert made.threshold == pytest.approx(float(logits.sort().values[int(0.05 * (len(rows) + 1)) - 1]), abs=1e-5)
    assert len(made.predict(files)) == len(files)
    card = model_card('net', made.manifest, made.score, '')
    assert '| network | `Sequential`, a live module |' in card
    assert '| checkpoint |' not in card
    with pytest.raises(ValueError, match=r"timm\.create_model\('Sequential', .*does not give this module.*export_onnx"):
        made.save(tmp_path)


@pytest.mark.parametrize(('changes', 'words'), [
    ({'validation': None}, r'nothing to set a threshold on.*validation=IMAGES, or threshold=NUMBER'),
    ({'score': 'knn'}, r"score 'knn' is fitted; pass un-augmented training images, train=IMAGES"),
    ({'score': 'odin'}, r"score 'odin' takes passes over the model"),
    ({'known_classes': ('cat', 'ant', 'bee')}, r'test_resnet gives 2 logits and 3 known classes are named'),
    ({'known_classes': ('cat', 'cat')}, r"known_classes=\[\.\.\.\] has 'cat' more than once"),
    ({'preprocessing': None}, r'Sequential does not say how a picture becomes its input, which predictions need'),
    ({'score': 'knn:k=3', 'train': 'held'}, r'40 of the 40 held-out images are training.*as validation=, or take'),
    ({'validation': torch.utils.data.TensorDataset(torch.rand(40, 3, 48, 48), torch.arange(40) % 2)},
     r'tensors of 48 x 48 pixels and predictions are made at 32 x 32; pass preprocessing=Preprocessing\.of')])
def test_what_does_not_fit_a_live_module_is_said(live, changes, words):
    net, preprocessing, parts = live
    given = {'known_classes': ('cat', 'ant'), 'validation': parts.held, 'preprocessing': preprocessing, **changes}
    if 'train' in changes:
        given['train'] = parts.held
    if 'preprocessing' in changes:
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 2))
    with pytest.raises(ValueError, match=words):
        OpenSetClassifier.from_model(net, **given)


def test_names_that_are_not_strings_are_refused(live):
    net, preprocessing, parts = live
    with pytest.raises(TypeError, match=r"expected strings, known_classes=\['0', '1'\]"):
        OpenSetClassifier.from_model(net, [0, 1], validation=parts.held, preprocessing=preprocessing)


def test_the_package_gives_it_without_loading_it_first():
    assert gradmix_timm.OpenSetClassifier is OpenSetClassifier
    import subprocess
    code = 'import sys, gradmix_timm; assert "gradmix_timm.classifier" not in sys.modules'
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0


@pytest.mark.gpu
def test_a_gpu_answers_as_the_cpu(checkpoint, classifier, files):
    there = OpenSetClassifier.from_checkpoint(checkpoint, device='cuda')
    np.testing.assert_allclose(there.scores(files)[1], classifier.scores(files)[1], rtol=1e-3, atol=1e-3)
