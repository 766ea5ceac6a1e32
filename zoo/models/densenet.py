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
)
from zoo.model import Model
from zoo.models import classic
from zoo.recipe import SGD, Recipe
from zoo.registry import register

GROWTH = 32  # channels that each dense layer adds
BLOCKS = (6, 12, 24, 16)  # dense layers


@register("densenet121", parameters=7_978_856, group=classic.GROUP)
def densenet121(size: int = 224, channels: int = 3, classes: int = 1000) -> Model:
    layers: list[Layer] = [
        classic.imagenet_pixels(channels),
        *classic.conv_bn_relu(64, 7, stride=2, padding=3),  # 64 x 112 x 112
        MaxPool2d(3, stride=2, padding=1),  # 64 x 56 x 56
    ]
    features = 64
    for number, count in enumerate(BLOCKS):
        if number:
            features //= 2
            layers += [BatchNorm(), ReLU(), Conv2d(features, 1, bias=False), AvgPool2d(2)]
        layers += [_dense_layer() for _ in range(count)]
        features += count * GROWTH
    return Model(
        name="densenet121",
        document="Huang et al., 2017, arXiv:1608.06993",
        input_shape=(channels, size, size),
        layers=(
            *layers,  # 1024 x 7 x 7
            BatchNorm(),
            ReLU(),
            GlobalAvgPool2d(),
            Flatten(),  # 1024
            Dense(classes),
        ),
        labels=classic.labels(classes),
        recipe=Recipe(SGD(learning_rate=0.1, momentum=0.9, nesterov=True), batch_size=256, epochs=90),
        notes=(classic.NO_DECAY,),
    )


def _dense_layer() -> Concat:
    """What is there, and behind it GROWTH channels that are made of it."""
    new = (
        *(BatchNorm(), ReLU(), Conv2d(4 * GROWTH, 1, bias=False)),
        *(BatchNorm(), ReLU(), Conv2d(GROWTH, 3, padding=1, bias=False)),
    )
    return Concat([(), new])
