"""Classify images with onnxruntime and Pillow (NumPy comes with onnxruntime): python onnx_runtime.py MODEL IMAGE ...

MODEL is the graph that ``classifier.export_onnx('model.onnx', input='image')`` writes.
"""
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])
facts = session.get_modelmeta().custom_metadata_map
names = json.loads(facts['gradmix_timm.known_classes'])
for path in sys.argv[2:]:
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file) if facts['gradmix_timm.exif'] == 'apply' else file
        if image.mode.startswith('I') and np.max(image) > 255:  # 16 bits a pixel, which convert would cut off
            image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
        pixels = np.asarray(image.convert('RGB'))
    label, knownness, accepted = session.run(None, {'image': pixels})
    print(path, names[label[0]] if accepted[0] else 'unknown', f'{knownness[0]:.4f}')
