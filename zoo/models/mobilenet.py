"""MobileNetV2: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018."""

from dataclasses import replace

from zoo.layers import (
    BatchNorm,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Layer,
    ReLU6,
    Residual,
    Shape,
    Softmax,
    through,
)
from zoo.model import Model
from zoo.models import classic
from zoo.models.registry import register
from zoo.recipe import Recipe, RMSprop

STAGES = (  # expansion, channels, blocks, stride of the first one
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
DOCUMENT = "Sandler et al., 2018, arXiv:1801.04381"
RECIPE = Recipe(RMSprop(learning_rate=0.045, alpha=0.9), batch_size=96, epochs=300)
NO_MOMENTUM = "Its RMSprop has momentum, which the recipe's has not."


@register("mobilenet-v2", parameters=3_504_872, group=classic.GROUP)
def mobilenet_v2(size: int = 224, channels: int = 3, classes: int = 1000) -> Model:
    return Model(
        name="mobilenet-v2",
        document=DOCUMENT,
        input_shape=(channels, size, size),
        layers=(
            classic.imagenet_pixels(channels),
            *_features(BatchNorm()),
            GlobalAvgPool2d(),
            Flatten(),  # 1280
            Dropout(0.2),
            Dense(classes),
        ),
        labels=classic.labels(classes),
        recipe=RECIPE,
        notes=(classic.NO_DECAY, NO_MOMENTUM),
    )


@register("mobilenet-v2-keras", parameters=3_504_872, group=classic.GROUP)
def mobilenet_v2_keras(size: int = 224, channels: int = 3, classes: int = 1000) -> Model:
    pixels = classic.symmetric_pixels(channels)
    return Model(
        name="mobilenet-v2-keras",
        document=DOCUMENT,
        input_shape=(channels, size, size),
        layers=(
            pixels,
            *_same(_features(BatchNorm(epsilon=1e-3, momentum=0.001)), (channels, size, size)),
            GlobalAvgPool2d(),
            Flatten(),
            Dense(classes),
            Softmax(),
        ),
        labels=classic.labels(classes),
        recipe=RECIPE,
        notes=(
            "As keras.applications builds it: strided convolutions pad below and on the right, batch "
            "normalisation has another epsilon, no dropout, a softmax at the end.",
            classic.NO_DECAY,
            NO_MOMENTUM,
        ),
    )


def _features(norm: BatchNorm) -> tuple[Layer, ...]:
    """From normalised pixels to 1280 maps of a 32nd of the size: 1280 x 7 x 7."""
    layers = [*_conv(norm, 32, 3, stride=2)]
    before = 32
    for expansion, filters, blocks, first_stride in STAGES:
        for block in range(blocks):
            layers += _bottleneck(norm, before, expansion, filters, 1 if block else first_stride)
            before = filters
    return *layers, *_conv(norm, 1280, 1)


def _conv(norm: BatchNorm, filters: int, kernel: int, stride: int = 1, groups: int = 1) -> tuple[Layer, ...]:
    return Conv2d(filters, kernel, stride, kernel // 2, bias=False, groups=groups), norm, ReLU6()


def _bottleneck(norm: BatchNorm, before: int, expansion: int, filters: int, stride: int) -> tuple[Layer, ...]:
    """1x1 to many channels, depthwise 3x3, 1x1 to few without activation; the input is added if it fits."""
    wide = before * expansion
    body = (
        *(_conv(norm, wide, 1) if expansion > 1 else ()),
        *_conv(norm, wide, 3, stride, groups=wide),
        Conv2d(filters, 1, bias=False),
        norm,
    )
    return (Residual(body),) if stride == 1 and before == filters else body


def _same(layers: tuple[Layer, ...], shape: Shape) -> tuple[Layer, ...]:
    """The layers with padding "same" for an input of this shape; those in a Residual have it already."""
    made: list[Layer] = []
    for layer in layers:
        if isinstance(layer, Conv2d):
            layer = replace(layer, padding=layer.same(shape))
        made.append(layer)
        shape = through((layer,), shape)
    return tuple(made)
