"""SqueezeNet 1.1: Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters", 2016."""

from zoo.layers import Concat, Conv2d, Dropout, Flatten, GlobalAvgPool2d, Layer, MaxPool2d, ReLU
from zoo.model import Model
from zoo.models import classic
from zoo.models.registry import register
from zoo.recipe import SGD, Recipe


@register("squeezenet1.1", parameters=1_235_496, group=classic.GROUP)
def squeezenet1_1(size: int = 224, channels: int = 3, classes: int = 1000) -> Model:
    return Model(
        name="squeezenet1.1",
        document="Iandola et al., 2016, arXiv:1602.07360",
        input_shape=(channels, size, size),
        layers=(
            classic.imagenet_pixels(channels),
            Conv2d(64, kernel=3, stride=2),  # 64 x 111 x 111
            ReLU(),
            MaxPool2d(3, stride=2, ceil=True),  # 64 x 55 x 55
            *_fire(16, 64),
            *_fire(16, 64),
            MaxPool2d(3, stride=2, ceil=True),  # 128 x 27 x 27
            *_fire(32, 128),
            *_fire(32, 128),
            MaxPool2d(3, stride=2, ceil=True),  # 256 x 13 x 13
            *_fire(48, 192),
            *_fire(48, 192),
            *_fire(64, 256),
            *_fire(64, 256),  # 512 x 13 x 13
            Dropout(0.5),
            Conv2d(classes, kernel=1),
            ReLU(),
            GlobalAvgPool2d(),
            Flatten(),
        ),
        labels=classic.labels(classes),
        recipe=Recipe(SGD(learning_rate=0.04, momentum=0.9), batch_size=512, epochs=68),
        notes=(
            classic.NO_DECAY,
            "Version 1.1 is the authors' later one: smaller first kernels, earlier pools, the same accuracy.",
        ),
    )


def _fire(squeeze: int, expand: int) -> tuple[Layer, ...]:
    """A 1x1 convolution to few channels, then 1x1 and 3x3 ones beside each other to many."""
    beside = Concat(
        [(Conv2d(expand, 1), ReLU()), (Conv2d(expand, 3, padding=1), ReLU())],
    )
    return Conv2d(squeeze, 1), ReLU(), beside
