"""AlexNet on one device: Krizhevsky, "One weird trick for parallelizing CNNs", 2014."""

from zoo.layers import AdaptiveAvgPool2d, Conv2d, Dense, Dropout, Flatten, MaxPool2d, ReLU
from zoo.model import Model
from zoo.models import classic
from zoo.models.registry import register
from zoo.recipe import SGD, Recipe


@register("alexnet", parameters=61_100_840, group=classic.GROUP)
def alexnet(size: int = 224, channels: int = 3, classes: int = 1000) -> Model:
    return Model(
        name="alexnet",
        document="Krizhevsky, 2014, arXiv:1404.5997",
        input_shape=(channels, size, size),
        layers=(
            classic.imagenet_pixels(channels),
            Conv2d(64, kernel=11, stride=4, padding=2),  # 64 x 55 x 55
            ReLU(),
            MaxPool2d(3, stride=2),  # 64 x 27 x 27
            Conv2d(192, kernel=5, padding=2),
            ReLU(),
            MaxPool2d(3, stride=2),  # 192 x 13 x 13
            Conv2d(384, kernel=3, padding=1),
            ReLU(),
            Conv2d(256, kernel=3, padding=1),
            ReLU(),
            Conv2d(256, kernel=3, padding=1),
            ReLU(),
            MaxPool2d(3, stride=2),  # 256 x 6 x 6
            AdaptiveAvgPool2d(6),  # images of other sizes give the dense layers as many features
            Flatten(),  # 9216
            Dropout(0.5),
            Dense(4096),
            ReLU(),
            Dropout(0.5),
            Dense(4096),
            ReLU(),
            Dense(classes),
        ),
        labels=classic.labels(classes),
        recipe=Recipe(SGD(learning_rate=0.01, momentum=0.9), batch_size=128, epochs=90),
        notes=(
            classic.NO_DECAY,
            "The paper has 384 filters in its fourth convolution; torchvision, and so this model, 256.",
        ),
    )
