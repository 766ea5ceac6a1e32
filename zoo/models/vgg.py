"""VGG-11 with batch normalisation: Simonyan and Zisserman, "Very Deep Convolutional Networks", 2015."""

from zoo.layers import AdaptiveAvgPool2d, BatchNorm, Conv2d, Dense, Dropout, Flatten, Layer, MaxPool2d, ReLU
from zoo.model import Model
from zoo.models import classic
from zoo.models.registry import register
from zoo.recipe import SGD, Recipe

STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))  # filters of the convolutions before each pool


@register("vgg11-bn", parameters=132_868_840, group=classic.GROUP)
def vgg11_bn(size: int = 224, channels: int = 3, classes: int = 1000) -> Model:
    layers: list[Layer] = [classic.imagenet_pixels(channels)]
    for stage in STAGES:
        for filters in stage:
            layers += [Conv2d(filters, kernel=3, padding=1), BatchNorm(), ReLU()]
        layers.append(MaxPool2d(2))
    return Model(
        name="vgg11-bn",
        document="Simonyan and Zisserman, 2015, arXiv:1409.1556",
        input_shape=(channels, size, size),
        layers=(
            *layers,  # 512 x 7 x 7
            AdaptiveAvgPool2d(7),  # images of other sizes give the dense layers as many features
            Flatten(),  # 25088
            Dense(4096),
            ReLU(),
            Dropout(0.5),
            Dense(4096),
            ReLU(),
            Dropout(0.5),
            Dense(classes),
        ),
        labels=classic.labels(classes),
        recipe=Recipe(SGD(learning_rate=0.01, momentum=0.9), batch_size=256, epochs=74),
        notes=(classic.NO_DECAY, "The paper's networks have no batch normalisation; torchvision adds it."),
    )
