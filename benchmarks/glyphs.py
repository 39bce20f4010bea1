"""Draw a data set of a hundred classes, which CIFAR-10 cannot give: printed characters in many fonts.

``python benchmarks/glyphs.py OUT --fonts /usr/share/fonts`` writes OUT/train/CLASS/N.png and OUT/test/CLASS/N.png, of
32 x 32 pixels. A class is a character, named by its code point. Test images have other faces than training images,
among them another weight or slant of a family that training has. Characters are turned, moved and scaled a little, in
any colour on any other. Faces that lack one of the characters are left out, so the images depend on the fonts that are
installed; any hundred of them will do::

    apt-get install fonts-dejavu fonts-liberation fonts-freefont-ttf fonts-roboto-unhinted fonts-lato fonts-open-sans
    apt-get install fonts-linuxlibertine fonts-comfortaa fonts-ebgaramond fonts-texgyre fonts-croscore fonts-junicode
"""
from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFont

# A hundred: of letters whose two cases differ in size alone, one.
CHARACTERS = ('ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghijlmnqrty123456789&%$#@?!§£¥{}[]<>+=*/~'
              'ÄÖÜÅÆØÉÈÊÑÇÞÐäöüåæøéèêñçþðßî')
SIDE, DRAWN = 32, 128


def faces(folder: Path) -> list[Path]:
    """Font files that have every character, in a fixed order."""
    wanted = set(map(ord, CHARACTERS))
    found = []
    for path in sorted((*folder.rglob('*.ttf'), *folder.rglob('*.otf'))):
        try:
            with TTFont(path, lazy=True) as font:
                if wanted <= set(font.getBestCmap() or ()):
                    found.append(path)
        except TTLibError:
            continue
    return found


def is_test(face: Path) -> bool:
    """Whether a face draws test images: about a third do, with those whose file names are equal up to a dash."""
    return hashlib.sha256(face.stem.split('-')[0].encode()).digest()[0] % 3 == 0


def drawn(character: str, face: Path, rng: np.random.Generator) -> Image.Image:
    """One image of a character."""
    paper, ink = rng.integers(0, 256, (2, 3))
    while abs(float(paper.mean() - ink.mean())) < 60:  # it has to be legible
        paper, ink = rng.integers(0, 256, (2, 3))
    font = ImageFont.truetype(str(face), int(rng.integers(60, 96)))
    mask = Image.new('L', (DRAWN, DRAWN))
    place = DRAWN / 2 + rng.uniform(-10, 10, 2)
    ImageDraw.Draw(mask).text((place[0], place[1]), character, fill=255, font=font, anchor='mm')
    share = np.asarray(mask.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC), np.float32)[..., None] / 255
    large = share * ink + (1 - share) * paper + rng.normal(0, 12, (DRAWN, DRAWN, 3))
    return Image.fromarray(large.clip(0, 255).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BOX)


def images(fonts: list[Path], count: int, seed: int) -> Iterator[tuple[str, int, Image.Image]]:
    """So many of every character: its class, its number, and the image."""
    for number, character in enumerate(CHARACTERS):
        rng = np.random.default_rng([seed, number])
        for index in range(count):
            yield f'u{ord(character):04x}', index, drawn(character, fonts[rng.integers(len(fonts))], rng)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('out', type=Path)
    parser.add_argument('--fonts', type=Path, default=Path('/usr/share/fonts'), metavar='DIR')
    parser.add_argument('--train', type=int, default=50, metavar='N', help='of each class (default: %(default)s)')
    parser.add_argument('--test', type=int, default=20, metavar='N', help='of each class (default: %(default)s)')
    given = parser.parse_args()
    found = faces(given.fonts)
    parts = {'train': ([face for face in found if not is_test(face)], given.train),
             'test': ([face for face in found if is_test(face)], given.test)}
    for seed, (split, (fonts, count)) in enumerate(parts.items()):
        if len(fonts) < 20:
            raise SystemExit(f'{given.fonts}: {len(fonts)} faces for {split} have all characters; expected 20 or more, '
                             'install more fonts')
        for name, index, image in images(fonts, count, seed):
            place = given.out / split / name / f'{index}.png'
            place.parent.mkdir(parents=True, exist_ok=True)
            image.save(place)
    counts = ', '.join(f'{len(fonts)} {split}' for split, (fonts, _) in parts.items())
    print(f'{len(CHARACTERS)} classes; faces: {counts}')
