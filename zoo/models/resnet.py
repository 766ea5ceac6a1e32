"""ResNet-18: He et al., "Deep Residual Learning for Image Recognition", 2016."""

from zoo.layers import BatchNorm, Conv2d, Dense, Flatten, GlobalAvgPool2d, Layer, MaxPool2d, ReLU, Residual
from zoo.model import Model
from zoo.models import classic
from zoo.models.registry import register
from zoo.recipe import SGD, Recipe


@register("resnet18", parameters=11_689_512, group=classic.GROUP)
def resnet18(size: int = 224, channels: int = 3, classes: int = 1000) -> Model:
    return Model(
        name="resnet18",
        document="He et al., 2016, arXiv:1512.03385",
        input_shape=(channels, size, size),
        layers=(
            classic.imagenet_pixels(channels),
            *classic.conv_bn_relu(64, 7, stride=2, padding=3),  # 64 x 112 x 112
            MaxPool2d(3, stride=2, padding=1),  # 64 x 56 x 56
            *block(64),
            *block(64),
            *block(128, stride=2),  # 128 x 28 x 28
            *block(128),
            *block(256, stride=2),  # 256 x 14 x 14
            *block(256),
            *block(512, stride=2),  # 512 x 7 x 7
            *block(512),
            GlobalAvgPool2d(),
            Flatten(),  # 512
            Dense(classes),
        ),
        labels=classic.labels(classes),
        recipe=Recipe(SGD(learning_rate=0.1, momentum=0.9), batch_size=256, epochs=90),
        notes=(classic.NO_DECAY,),
    )


def block(filters: int, stride: int = 1, project: bool = False) -> tuple[Layer, ...]:
    """Two convolutions around which the input is led; where it changes shape, through a 1x1 convolution.

    project: whether the shape changes, as it does with a stride. Channels in: any, if it does.
    """
    body = (
        *classic.conv_bn_relu(filters, 3, stride, padding=1),
        Conv2d(filters, 3, padding=1, bias=False),
        BatchNorm(),
    )
    shortcut = (Conv2d(filters, 1, stride, bias=False), BatchNorm()) if project or stride > 1 else ()
    return Residual(body, shortcut), ReLU()
