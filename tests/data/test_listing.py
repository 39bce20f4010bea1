"""One rule says which files count, of which class, in what order; what is left out is counted and named."""
from __future__ import annotations

import io
import logging
import os
import random
import tarfile

import pytest
from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from gradmix_timm.data import (
    ImageSource,
    UnreadableImageError,
    class_names,
    fingerprint,
    open_dataset,
    opening,
    select_classes,
)
from gradmix_timm.data.listing import class_folder, list_images
from gradmix_timm.data.opening import image_extensions, image_formats, open_image
from gradmix_timm.data.readers import FolderReader, TarReader


def touch(path, content=b''):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def picture(path, colour=(1, 2, 3), size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, colour).save(path)
    return path


def listed(root, **options):
    found = list_images(root, **options)
    return [(os.path.relpath(path, root), name) for path, name in zip(found.files, found.classes, strict=True)]


# ---- timm's rule

@pytest.mark.parametrize('seed', range(8))
def test_timms_rule_lists_what_timm_lists(tmp_path, seed):
    draw = random.Random(seed)
    names = ['a', 'b1', 'b10', 'b2', 'B3', '.hidden', 'Ünder', 'x y']
    for _ in range(60):
        parts = [draw.choice(names) for _ in range(draw.randint(0, 3))]
        touch(tmp_path.joinpath(*parts, f'{draw.choice("qrs")}{draw.randint(0, 30)}'
                                        f'{draw.choice([".png", ".JPG", ".jpeg", ".webp", ".txt", ""])}'))
    (tmp_path / 'linked').symlink_to(tmp_path / 'a') if (tmp_path / 'a').is_dir() else None
    samples, numbers = find_images_and_targets(str(tmp_path))
    reader = FolderReader(str(tmp_path), timm_rule=True)
    assert reader.samples == samples
    assert reader.class_to_idx == numbers
    assert [reader.filename(row) for row in range(3)] == [os.path.relpath(path, tmp_path) for path, _ in samples[:3]]


def test_timms_extensions_and_those_that_are_asked_for(tmp_path, caplog):
    for end in ('png', 'webp', 'bmp', 'tif', 'txt'):
        touch(tmp_path / 'cat' / f'1.{end}')
    with caplog.at_level(logging.WARNING):
        assert len(FolderReader(str(tmp_path), timm_rule=True)) == 1
        FolderReader(str(tmp_path), timm_rule=True)
    (line,) = [record.message for record in caplog.records]
    assert '4 files of other formats (1 .bmp, 1 .tif, 1 .txt, 1 .webp) left out' in line
    assert line.endswith('left out; --input-key ".bmp;.jpeg;.jpg;.png;.tif;.webp" takes all image formats')
    assert len(open_dataset('', tmp_path, timm_rule=True, min_classes=1, input_key='.png;.webp;.tif')) == 3


def test_one_file_of_another_format_is_counted_as_one(tmp_path, caplog):
    picture(tmp_path / 'cat' / '1.png')
    touch(tmp_path / 'cat' / '1.txt')
    with caplog.at_level(logging.WARNING):
        listed(tmp_path)
    assert [record.message for record in caplog.records] == [
        f'{tmp_path}: 1 file of another format (1 .txt) left out']


def test_litter_and_circles_stop_no_plain_run(tmp_path):
    picture(tmp_path / 'cat' / '1.png')
    picture(tmp_path / 'dog' / '1.png')
    touch(tmp_path / 'cat' / '._1.png', b'\0\5\x16\7')
    touch(tmp_path / '__MACOSX' / 'cat' / '._1.jpg')
    touch(tmp_path / 'cat' / '.ipynb_checkpoints' / '1-checkpoint.png')
    (tmp_path / 'cat' / 'up').symlink_to(tmp_path)
    os.mkfifo(tmp_path / 'dog' / 'x.png')
    dataset = open_dataset('', tmp_path, timm_rule=True)
    assert dataset.filenames() == ['cat/1.png', 'dog/1.png']
    assert class_names(dataset) == ('cat', 'dog')


# ---- our rule

def test_the_top_folder_is_the_class(tmp_path):
    for name in ('cat/day1/1.png', 'dog/day1/1.png', 'cat/more/deep/2.png', 'cat/0.png', 'root.png'):
        touch(tmp_path / name)
    assert listed(tmp_path) == [('cat/0.png', 'cat'), ('cat/day1/1.png', 'cat'), ('cat/more/deep/2.png', 'cat'),
                                ('dog/day1/1.png', 'dog'), ('root.png', '')]
    assert [class_folder(name, timm_rule=False) for name, _ in listed(tmp_path)] == ['cat', 'cat', 'cat', 'dog', '']


def test_every_raster_format_counts_and_the_rest_is_counted(tmp_path, caplog):
    count = 0
    for end in image_extensions():
        touch(tmp_path / 'cat' / f'1{end}')
        touch(tmp_path / 'cat' / f'2{end.upper()}')
        count += 2
    for name in ('cat/a.txt', 'cat/b.TXT', 'cat/c.svg', 'cat/d', 'cat/.hidden.png', 'cat/._1.jpg', '.cache/cat/1.png',
                 '__MACOSX/cat/._1.jpg', 'cat/.ipynb_checkpoints/1.png', 'Thumbs.db', 'cat/x.eps', 'cat/x.pdf'):
        touch(tmp_path / name)
    os.mkfifo(tmp_path / 'cat' / 'pipe.png')
    (tmp_path / 'cat' / 'loop').symlink_to(tmp_path / 'cat')
    with caplog.at_level(logging.WARNING):
        assert len(listed(tmp_path)) == count
        listed(tmp_path)
    (line,) = [record.message for record in caplog.records]
    assert '6 files of other formats (2 .txt, 1 without extension, 1 .eps, 1 .pdf, 1 .svg)' in line
    assert '6 hidden or litter (.cache, Thumbs.db, __MACOSX, ...)' in line
    assert '1 circular link or link to a listed folder (cat/loop)' in line
    assert '1 pipe, device or socket (cat/pipe.png)' in line
    assert {'.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.gif', '.ppm', '.jp2'} <= set(image_extensions())


@pytest.mark.parametrize('links', [
    {'cat/up': '..'}, {'cat/self': '.'}, {'cat/dogs': '../dog', 'dog/cats': '../cat'}, {'cat/root': '../../..'},
    {'cat/same.png': '1.png'}, {'cat/others.png': '../dog/1.png'}, {'kitten': 'cat'}])
def test_links_list_nothing_twice(tmp_path, links):
    root = tmp_path / 'a' / 'data'
    for name in ('cat/1.png', 'dog/1.png', 'dog/2.png'):
        touch(root / name)
    touch(tmp_path / 'a' / 'other' / '1.png')
    before = listed(root)
    for name, target in links.items():
        (root / name).symlink_to(target)
    assert listed(root) == before


def test_links_to_other_places_are_followed(tmp_path):
    store, root = tmp_path / 'store', tmp_path / 'data'
    for name in ('x/1.png', 'x/deep/2.png', '3.png'):
        touch(store / name)
    touch(root / 'cat' / '0.png')
    (root / 'cat' / '9.png').symlink_to(store / '3.png')
    (root / 'dog').symlink_to(store / 'x')
    assert listed(root) == [('cat/0.png', 'cat'), ('cat/9.png', 'cat'), ('dog/1.png', 'dog'), ('dog/deep/2.png', 'dog')]


def test_empty_class_folders_are_told_deep_ones_are_not(tmp_path):
    for name in ('cat/1.png', 'dog/1.png'):
        picture(tmp_path / name)
    (tmp_path / 'cat' / 'nothing').mkdir()
    assert len(open_dataset('', tmp_path)) == 2
    (tmp_path / 'ship' / 'nothing').mkdir(parents=True)
    with pytest.raises(ValueError, match=r'class folder .*ship holds no image'):
        open_dataset('', tmp_path)


def test_order_does_not_hang_on_the_file_system(tmp_path, monkeypatch):
    for name in ('cat/a.png', 'cat/A.png', 'Cat/1.png', 'cat/10.png', 'cat/9.png'):
        touch(tmp_path / name)
    before = listed(tmp_path)
    scan = os.scandir

    class Backwards:
        def __init__(self, path):
            with scan(path) as entries:
                self.entries = list(entries)[::-1]

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, 'scandir', Backwards)
    assert listed(tmp_path) == before


def test_names_that_are_not_utf8_open_and_have_a_fingerprint(tmp_path):
    for name in ('cat/1.png', 'cat/2.png', 'dog/1.png'):
        picture(tmp_path / name)
    root = os.fsencode(tmp_path)
    os.rename(root + b'/cat/1.png', root + b'/cat/\xff.png')
    os.rename(root + b'/dog', root + b'/caf\xe9')
    dataset = open_dataset('', tmp_path)
    assert class_names(dataset) == ('caf\udce9', 'cat')
    assert 'cat/\udcff.png' in dataset.filenames()
    assert dataset[0][0].size == (8, 8)
    assert fingerprint(select_classes(dataset, ['caf\udce9', 'cat']))


# ---- tars

def pack(path, names):
    content = io.BytesIO()
    Image.new('RGB', (8, 8)).save(content, 'PNG')
    with tarfile.open(path, 'w') as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(content.getvalue())
            tar.addfile(member, io.BytesIO(content.getvalue()))
    return str(path)


def test_tars_are_listed_by_the_same_rules(tmp_path):
    names = ['./cat/day1/1.png', 'cat/2.webp', 'dog/day1/3.jpg', 'dog/._3.jpg', '__MACOSX/dog/._3.jpg', 'dog/.x/1.png']
    ours = TarReader(pack(tmp_path / 'a.tar', names))
    assert (ours.class_name_to_idx, len(ours)) == ({'cat': 0, 'dog': 1}, 3)
    assert ours[0][1] == 0
    timms = TarReader(pack(tmp_path / 'b.tar', names[:1] + names[2:3]), timm_rule=True)
    theirs = ReaderImageInTar(str(tmp_path / 'b.tar'))
    assert [timms.filename(row) for row in range(2)] == [theirs.filename(row) for row in range(2)]
    assert (timms.targets.tolist(), timms.class_name_to_idx) == (theirs.targets.tolist(), theirs.class_name_to_idx)


@pytest.mark.parametrize(('prefix', 'file', 'one_class', 'expected'), [
    ('train/', 'a.tar', False, {'cat', 'dog'}), ('a/images/', 'a.tar', True, {'cat', 'dog'}),
    ('any/', 'a.tar', False, {'cat', 'dog'}), ('any/', 'a.tar', True, {'any'})])
def test_folders_round_all_class_folders_of_a_tar_are_taken_off(tmp_path, prefix, file, one_class, expected):
    path = pack(tmp_path / file, [f'{prefix}cat/1.png', f'{prefix}dog/sub/2.png'])
    assert set(TarReader(path, one_class=one_class).class_name_to_idx) == expected


# ---- opening

def test_an_eps_file_of_another_name_starts_nothing(tmp_path, monkeypatch):
    touch(tmp_path / 'cat' / '1.jpg', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n')
    picture(tmp_path / 'dog' / '1.jpg')
    monkeypatch.setattr('PIL.EpsImagePlugin.Ghostscript', lambda *_, **__: pytest.fail('started'))
    with pytest.raises(UnreadableImageError, match=r'1\.jpg cannot be read as an image'):
        open_dataset('', tmp_path)[0]
    assert not {'EPS', 'PDF', 'WMF', 'PSD', 'MPEG'} & set(image_formats())


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = picture(tmp_path / 'cat' / '1.png', size=(50, 50))
    picture(tmp_path / 'dog' / '1.png')
    monkeypatch.setattr(opening, 'MAX_PIXELS', 2000)
    with pytest.raises(ValueError, match='it has 50 x 50 pixels, more than 2,000'):
        open_image(path)
    with pytest.raises(UnreadableImageError, match=r'cat/1\.png cannot be read .*50 x 50'):
        open_dataset('', tmp_path)[0]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'x.png')
    with pytest.raises(ValueError, match='not a regular file'):
        open_image(tmp_path / 'x.png')
    picture(tmp_path / 'cat' / '1.png')
    dataset = ImageSource(FolderReader(str(tmp_path / 'cat')))
    (tmp_path / 'cat' / '1.png').unlink()
    os.mkfifo(tmp_path / 'cat' / '1.png')  # after it was listed
    with pytest.raises(UnreadableImageError, match='not a regular file'):
        dataset[0]
