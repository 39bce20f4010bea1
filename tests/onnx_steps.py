"""The steps that the metadata of an ONNX graph list, done by NumPy and Pillow alone, as for another runtime."""
from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def pixels_by_metadata(path: Path, metadata: Mapping[str, str]) -> np.ndarray:
    """float32 [C, H, W] from 0 to 1, read from nothing but the file and the text of the metadata."""
    image = Image.open(path)
    for step in json.loads(metadata['gradmix_timm.preprocessing']):
        name = step['step']
        if name == 'orient':
            image = ImageOps.exif_transpose(image)
        elif name == 'convert':
            image = image.convert(step['mode'])
        elif name == 'scale':
            array = np.asarray(image).astype(np.float32) / np.float32(255)
            return np.moveaxis(np.atleast_3d(array), -1, 0)
        else:
            names = {'H': image.height, 'W': image.width, 'min': min, 'max': max, 'round': round, 'floor': math.floor}
            side = {key: eval(step[key], {'__builtins__': {}}, names)
                    for key in ('top', 'left', 'height', 'width') if key in step}
            size = side['width'], side['height']
            if name == 'resize':
                image = image.resize(size, Image.Resampling[step['filter'].upper()])
            elif name == 'pad':
                fill = step['fill']
                frame = Image.new(image.mode, size, tuple(fill) if len(fill) > 1 else fill[0])
                frame.paste(image, (side['left'], side['top']))
                image = frame
            elif name == 'crop':
                image = image.crop((side['left'], side['top'], side['left'] + size[0], side['top'] + size[1]))
            else:
                raise AssertionError(f'no step {name}')
    raise AssertionError('the steps end in scale')
