"""DenseNet-121: Huang et al., "Densely Connected Convolutional Networks", 2017."""

from zoo.layers import (
    AvgPool2d,
    BatchNorm,
    Concat,
    Conv2d,
    Dense,
    Flatten,
    GlobalAvgPool2d,
    Layer,
    MaxPool2d,
    ReLU,
    Softmax,
)
from zoo.model import Model
from zoo.models import classic
from zoo.models.registry import register
from zoo.recipe import SGD, Recipe

GROWTH = 32  # channels that each dense layer adds
BLOCKS = (6, 12, 24, 16)  # dense layers
DOCUMENT = "Huang et al., 2017, arXiv:1608.06993"
RECIPE = Recipe(SGD(learning_rate=0.1, momentum=0.9, nesterov=True), batch_size=256, epochs=90)


@register("densenet121", parameters=7_978_856, group=classic.GROUP)
def densenet121(size: int = 224, channels: int = 3, classes: int = 1000) -> Model:
    return Model(
        name="densenet121",
        document=DOCUMENT,
        input_shape=(channels, size, size),
        layers=(*_features(channels, BatchNorm()), Dense(classes)),
        labels=classic.labels(classes),
        recipe=RECIPE,
        notes=(classic.NO_DECAY,),
    )


@register("densenet121-keras", parameters=7_978_856, group=classic.GROUP)
def densenet121_keras(size: int = 224, channels: int = 3, classes: int = 1000) -> Model:
    return Model(
        name="densenet121-keras",
        document=DOCUMENT,
        input_shape=(channels, size, size),
        layers=(
            *_features(channels, BatchNorm(epsilon=1.001e-5, momentum=0.01)),
            Dense(classes),
            Softmax(),
        ),
        labels=classic.labels(classes),
        recipe=RECIPE,
        notes=(
            "As keras.applications builds it: batch normalisation has another epsilon, a softmax at the end.",
            classic.NO_DECAY,
        ),
    )


def _features(channels: int, norm: BatchNorm) -> tuple[Layer, ...]:
    """From pixels to 1024 features."""
    layers: list[Layer] = [
        classic.imagenet_pixels(channels),
        Conv2d(64, 7, stride=2, padding=3, bias=False),  # 64 x 112 x 112
        norm,
        ReLU(),
        MaxPool2d(3, stride=2, padding=1),  # 64 x 56 x 56
    ]
    features = 64
    for number, count in enumerate(BLOCKS):
        if number:
            features //= 2
            layers += [norm, ReLU(), Conv2d(features, 1, bias=False), AvgPool2d(2)]
        layers += [_dense_layer(norm) for _ in range(count)]
        features += count * GROWTH
    return *layers, norm, ReLU(), GlobalAvgPool2d(), Flatten()  # the last maps: 1024 x 7 x 7


def _dense_layer(norm: BatchNorm) -> Concat:
    """What is there, and behind it GROWTH channels that are made of it."""
    new = (
        *(norm, ReLU(), Conv2d(4 * GROWTH, 1, bias=False)),
        *(norm, ReLU(), Conv2d(GROWTH, 3, padding=1, bias=False)),
    )
    return Concat([(), new])
