"""The preprocessing of an image as ONNX nodes: from uint8 pixels of any size to the input of the model's graph.

The nodes are made from the steps that the metadata list (:meth:`Preprocessing.onnx_metadata`), so that a graph and its
description cannot differ. Sides are computed in float64, as Python does. Pixels are resized as uint8: onnxruntime then
rounds after each of the two passes, as Pillow does; on floats bicubic's overshoots would not be clipped in between.
"""
from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

import numpy as np

from gradmix_timm.data.preprocessing import Preprocessing

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ['FILTERS', 'MODES', 'check_exportable', 'image_graph', 'prepend']

#: Filters that ONNX's Resize has with antialiasing, under its names.
FILTERS = {'bilinear': 'linear', 'bicubic': 'cubic'}
#: PIL modes that a graph can make of RGB pixels.
MODES = ('RGB', 'L')
# Resize with antialiasing came with 18.
_OPSET = 18
_OPERATORS = {ast.Mult: 'Mul', ast.Div: 'Div', ast.Sub: 'Sub'}
_FUNCTIONS = {'min': 'Min', 'max': 'Max', 'round': 'Round', 'floor': 'Floor'}  # Round: to even at halves, as Python's
# Weights of PIL.Image.convert('L'), in 1 / 65536.
_GREY = (19595, 38470, 7471)


def check_exportable(preprocessing: Preprocessing) -> None:
    """Check that a graph can do the preprocessing.

    Raises:
        ValueError: An albumentations pipeline, or a filter or PIL mode that ONNX has no operator for.
    """
    instead = "export the graph of prepared pixels, input='tensor', and do the steps of its metadata outside"
    if preprocessing.pipeline is not None:
        raise ValueError(f'the preprocessing is an albumentations pipeline, which has no ONNX operators; {instead}')
    if preprocessing.interpolation not in FILTERS:
        raise ValueError(f'interpolation {preprocessing.interpolation!r}: ONNX resizes by {" and ".join(FILTERS)} with '
                         f'antialiasing; {instead}')
    if preprocessing.image_mode not in MODES:
        raise ValueError(f'images are read as {preprocessing.image_mode}; a graph of uint8 [H, W, 3] makes '
                         f'{" and ".join(MODES)}; {instead}')


def image_graph(preprocessing: Preprocessing, opset: int = _OPSET) -> ModelProto:
    """A graph of the preprocessing alone, without normalisation.

    Input ``image``: uint8 [H, W, 3], RGB, of any size. Output ``images``: float32 [1, C, h, w], pixels from 0 to 1 at
    the model's size.

    Args:
        preprocessing: Its decoding (orientation by EXIF) is left to the caller; see :func:`check_exportable`.
        opset: At least 18.

    Raises:
        ValueError: As for :func:`check_exportable`.
    """
    from onnx import TensorProto, helper
    check_exportable(preprocessing)
    nodes = _Nodes()
    nodes.decode(preprocessing.image_mode)
    for step in preprocessing.onnx_metadata()['preprocessing']:
        sides = {key: nodes.integer(step[key]) for key in ('top', 'left', 'height', 'width') if key in step}
        if step['step'] == 'resize':
            nodes.resize(sides, FILTERS[step['filter']])
        elif step['step'] == 'pad':
            nodes.pad(sides, step['fill'])
        elif step['step'] == 'crop':
            nodes.crop(sides)
    nodes.add('Div', nodes.pixels, nodes.constant(255, np.float32), output='images')
    graph = helper.make_graph(
        nodes.nodes, 'preprocessing',
        [helper.make_tensor_value_info('image', TensorProto.UINT8, ['H', 'W', 3])],
        [helper.make_tensor_value_info('images', TensorProto.FLOAT, [1, *preprocessing.input_size])],
        list(nodes.initializers.values()))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', opset)], ir_version=10)


def prepend(proto: ModelProto, preprocessing: Preprocessing) -> None:
    """Make the model's graph read an image: the nodes of :func:`image_graph` are put before its own.

    Args:
        proto: Its input is ``images``; changed in place.
        preprocessing: Of the model.
    """
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ('', 'ai.onnx'))
    front, graph = image_graph(preprocessing, opset).graph, proto.graph
    assert [tensor.name for tensor in graph.input] == ['images']
    own = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*front.node, *own])
    graph.input.extend(front.input)
    graph.initializer.extend(front.initializer)
    for output in graph.output:
        output.type.tensor_type.shape.dim[0].dim_value = 1


class _Nodes:
    """Nodes under construction; every method that makes a value returns its name.

    Attributes:
        nodes: In running order.
        initializers: Constants by name.
        pixels: Name of the picture so far: uint8 [1, C, H, W] until it is resized, then float32 of whole numbers.
        sides: H and W of that picture: names of float64 scalars.
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self.pixels = 'image'
        self.sides: dict[str, str] = {}

    def add(self, kind: str, *inputs: str, output: str = '', **attributes: Any) -> str:
        """A node of one output."""
        from onnx import helper
        output = output or f'preprocessing_{len(self.nodes)}'
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f'{output}_{kind}', **attributes))
        return output

    def constant(self, value: Any, dtype: Any) -> str:
        """An initializer."""
        from onnx import numpy_helper
        array = np.asarray(value, dtype)
        name = f'preprocessing_{array.dtype.name}_{"_".join(map(str, array.ravel().tolist()))}_{array.ndim}'
        self.initializers.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def formula(self, tree: ast.expr) -> str:
        """A formula of H and W as a float64 scalar."""
        match tree:
            case ast.Constant(value=value):
                return self.constant(value, np.float64)
            case ast.Name(id=name):
                return self.sides[name]
            case ast.BinOp(left=left, op=operator, right=right):
                return self.add(_OPERATORS[type(operator)], self.formula(left), self.formula(right))
            case ast.Call(func=ast.Name(id=name), args=values):
                return self.add(_FUNCTIONS[name], *map(self.formula, values))
            case ast.IfExp(test=ast.Compare(left=left, ops=[ast.LtE()], comparators=[right]), body=yes, orelse=no):
                test = self.add('LessOrEqual', self.formula(left), self.formula(right))
                return self.add('Where', test, self.formula(yes), self.formula(no))
        raise AssertionError(f'no ONNX operator for {ast.unparse(tree)}')

    def integer(self, formula: str) -> str:
        """A formula of H and W as int64 [1]."""
        from onnx import TensorProto
        value = self.formula(ast.parse(formula, mode='eval').body)
        return self.add('Reshape', self.add('Cast', value, to=TensorProto.INT64), self.constant([1], np.int64))

    def decode(self, mode: str) -> None:
        """The picture as uint8 [1, C, H, W] in a PIL mode, and its sides."""
        from onnx import TensorProto
        shape = self.add('Cast', self.add('Shape', 'image'), to=TensorProto.DOUBLE)
        self.sides = {name: self.add('Gather', shape, self.constant(place, np.int64))
                      for place, name in enumerate('HW')}
        if mode == 'L':
            weighted = self.add('Mul', self.add('Cast', 'image', to=TensorProto.INT32), self.constant(_GREY, np.int32))
            summed = self.add('ReduceSum', weighted, self.constant([2], np.int64), keepdims=1)
            rounded = self.add('Add', summed, self.constant(2 ** 15, np.int32))
            self.pixels = self.add('Cast', self.add('Div', rounded, self.constant(2 ** 16, np.int32)),
                                   to=TensorProto.UINT8)
        rows = self.add('Transpose', self.pixels, perm=[2, 0, 1])
        self.pixels = self.add('Unsqueeze', rows, self.constant([0], np.int64))

    def resize(self, sides: dict[str, str], filter_: str) -> None:
        """As PIL.Image.resize; float32 from here on."""
        from onnx import TensorProto
        channels = self.add('Shape', self.pixels, start=0, end=2)
        size = self.add('Concat', channels, sides['height'], sides['width'], axis=0)
        resized = self.add(
            'Resize', self.pixels, '', '', size, mode=filter_, antialias=1, cubic_coeff_a=-0.5,
            coordinate_transformation_mode='half_pixel', exclude_outside=1)
        self.pixels = self.add('Cast', resized, to=TensorProto.FLOAT)
        self._resized(sides)

    def pad(self, sides: dict[str, str], fill: list[int]) -> None:
        """A frame in one colour: zeros round the differences from it, as Pad has one value for all channels."""
        colour = self.constant(np.reshape(fill, (1, -1, 1, 1)), np.float32)
        none = self.constant([0, 0], np.int64)
        ends = [self.add('Sub', self.add('Sub', sides[side], self._whole(name)), sides[start])
                for side, name, start in (('height', 'H', 'top'), ('width', 'W', 'left'))]
        pads = self.add('Concat', none, sides['top'], sides['left'], none, *ends, axis=0)
        self.pixels = self.add('Add', self.add('Pad', self.add('Sub', self.pixels, colour), pads), colour)
        self._resized(sides)

    def crop(self, sides: dict[str, str]) -> None:
        """A rectangle."""
        start = self.add('Concat', sides['top'], sides['left'], axis=0)
        end = self.add('Add', start, self.add('Concat', sides['height'], sides['width'], axis=0))
        self.pixels = self.add('Slice', self.pixels, start, end, self.constant([2, 3], np.int64))
        self._resized(sides)

    def _whole(self, name: str) -> str:
        from onnx import TensorProto
        return self.add('Cast', self.sides[name], to=TensorProto.INT64)

    def _resized(self, sides: dict[str, str]) -> None:
        from onnx import TensorProto
        scalar = self.constant(np.zeros(0), np.int64)
        self.sides = {name: self.add('Cast', self.add('Reshape', sides[side], scalar), to=TensorProto.DOUBLE)
                      for name, side in (('H', 'height'), ('W', 'width'))}
