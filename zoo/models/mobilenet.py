"""MobileNetV2: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018."""

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
)
from zoo.model import Model
from zoo.models import classic
from zoo.recipe import Recipe, RMSprop
from zoo.registry import register

STAGES = (  # expansion, channels, blocks, stride of the first one
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


@register("mobilenet-v2", parameters=3_504_872, group=classic.GROUP)
def mobilenet_v2(size: int = 224, channels: int = 3, classes: int = 1000) -> Model:
    layers: list[Layer] = [classic.imagenet_pixels(channels), *_conv(32, 3, stride=2)]
    before = 32
    for expansion, filters, blocks, stride in STAGES:
        for block in range(blocks):
            layers += _bottleneck(before, expansion, filters, stride if block == 0 else 1)
            before = filters
    return Model(
        name="mobilenet-v2",
        document="Sandler et al., 2018, arXiv:1801.04381",
        input_shape=(channels, size, size),
        layers=(
            *layers,  # 320 x 7 x 7
            *_conv(1280, 1),
            GlobalAvgPool2d(),
            Flatten(),  # 1280
            Dropout(0.2),
            Dense(classes),
        ),
        labels=classic.labels(classes),
        recipe=Recipe(RMSprop(learning_rate=0.045, alpha=0.9), batch_size=96, epochs=300),
        notes=(classic.NO_DECAY, "Its RMSprop has momentum, which the recipe's has not."),
    )


def _conv(filters: int, kernel: int, stride: int = 1, groups: int = 1) -> tuple[Layer, ...]:
    conv = Conv2d(filters, kernel, stride, kernel // 2, bias=False, groups=groups)
    return conv, BatchNorm(), ReLU6()


def _bottleneck(before: int, expansion: int, filters: int, stride: int) -> tuple[Layer, ...]:
    """1x1 to many channels, depthwise 3x3, 1x1 to few without activation; the input is added if it fits."""
    wide = before * expansion
    body = (
        *(_conv(wide, 1) if expansion > 1 else ()),
        *_conv(wide, 3, stride, groups=wide),
        Conv2d(filters, 1, bias=False),
        BatchNorm(),
    )
    return (Residual(body),) if stride == 1 and before == filters else body
