"""GoogLeNet and its inception block: Szegedy et al., "Going Deeper with Convolutions", 2015."""

from zoo.layers import Concat, Conv2d, Dense, Dropout, Flatten, GlobalAvgPool2d, Layer, MaxPool2d, ReLU
from zoo.model import Model
from zoo.models import classic
from zoo.models.registry import register
from zoo.recipe import SGD, Recipe

EPSILON = 1e-3  # of torchvision's batch normalisations
RECIPE = Recipe(SGD(learning_rate=0.01, momentum=0.9), batch_size=256, epochs=90)
# Channels, as the paper's table has them: 1x1; before 3x3, 3x3; before 5x5, 5x5; after the pool.
Widths = tuple[int, int, int, int, int, int]
BLOCK_3A: Widths = (64, 96, 128, 16, 32, 32)


@register("googlenet", parameters=6_624_904, group=classic.GROUP)
def googlenet(size: int = 224, channels: int = 3, classes: int = 1000) -> Model:
    return Model(
        name="googlenet",
        document="Szegedy et al., 2015, arXiv:1409.4842",
        input_shape=(channels, size, size),
        layers=(
            classic.symmetric_pixels(channels),
            *_conv(64, 7, stride=2, padding=3),  # 64 x 112 x 112
            MaxPool2d(3, stride=2, ceil=True),  # 64 x 56 x 56
            *_conv(64, 1),
            *_conv(192, 3, padding=1),
            MaxPool2d(3, stride=2, ceil=True),  # 192 x 28 x 28
            _inception(*BLOCK_3A),
            _inception(128, 128, 192, 32, 96, 64),
            MaxPool2d(3, stride=2, ceil=True),  # 480 x 14 x 14
            _inception(192, 96, 208, 16, 48, 64),
            _inception(160, 112, 224, 24, 64, 64),
            _inception(128, 128, 256, 24, 64, 64),
            _inception(112, 144, 288, 32, 64, 64),
            _inception(256, 160, 320, 32, 128, 128),
            MaxPool2d(2, stride=2, ceil=True),  # 832 x 7 x 7
            _inception(256, 160, 320, 32, 128, 128),
            _inception(384, 192, 384, 48, 128, 128),
            GlobalAvgPool2d(),
            Flatten(),  # 1024
            Dropout(0.2),
            Dense(classes),
        ),
        labels=classic.labels(classes),
        recipe=RECIPE,
        notes=(
            classic.NO_DECAY,
            "As torchvision builds it: batch normalisation instead of local response normalisation, 3x3 "
            "convolutions where the paper has 5x5, a last pool of 2x2, no auxiliary classifiers.",
        ),
    )


@register("inception-block", parameters=163_696, group=classic.GROUP)
def inception_block(size: int = 28) -> Model:
    """Block 3a, as the paper has it: 192 channels in, 256 out, no batch normalisation."""
    one, before3, three, before5, five, pooled = BLOCK_3A
    return Model(
        name="inception-block",
        document="Szegedy et al., 2015, arXiv:1409.4842",
        input_shape=(192, size, size),
        layers=(
            Concat(
                [
                    (Conv2d(one, 1), ReLU()),
                    (Conv2d(before3, 1), ReLU(), Conv2d(three, 3, padding=1), ReLU()),
                    (Conv2d(before5, 1), ReLU(), Conv2d(five, 5, padding=2), ReLU()),
                    (MaxPool2d(3, stride=1, padding=1), Conv2d(pooled, 1), ReLU()),
                ]
            ),
        ),
        labels=(),
        recipe=RECIPE,
        notes=(
            "A block, no classifier: it gives 256 feature maps.",
            "The paper counts 159 K weights: thousands of 1,024, without biases.",
        ),
    )


def _conv(filters: int, kernel: int, stride: int = 1, padding: int = 0) -> tuple[Layer, ...]:
    return classic.conv_bn_relu(filters, kernel, stride, padding, EPSILON)


def _inception(one: int, before3: int, three: int, before5: int, five: int, pooled: int) -> Concat:
    return Concat([
        _conv(one, 1),
        (*_conv(before3, 1), *_conv(three, 3, padding=1)),
        (*_conv(before5, 1), *_conv(five, 3, padding=1)),
        (MaxPool2d(3, stride=1, padding=1, ceil=True), *_conv(pooled, 1)),
    ])  # fmt: skip
