"""Models of the zoo's own that go beyond the documents: batch normalisation, augmentation, a schedule.

Sizes, epochs and the strength of the augmentation were chosen on 10,000 held-out training images; the test
images had no part in it. zoo/pretrained/index.json has what they score.
"""

from zoo.layers import Dense, Flatten, GlobalAvgPool2d, MaxPool2d
from zoo.model import Model
from zoo.models.classic import conv_bn_relu
from zoo.models.registry import register
from zoo.models.resnet import block
from zoo.recipe import SGD, RandomAffine, Recipe, WarmupCosine

GROUP = "modern"


def _recipe(epochs: int, augmentation: RandomAffine) -> Recipe:
    return Recipe(
        SGD(learning_rate=0.1, momentum=0.9, nesterov=True),
        batch_size=128,
        epochs=epochs,
        drop_last=True,
        digits_multiple=4,
        schedule=WarmupCosine(),
        augmentation=augmentation,
    )


@register("resnet-mini", parameters=73_082, group=GROUP)
def resnet_mini() -> Model:
    return Model(
        name="resnet-mini",
        document="the zoo's own, of the blocks of He et al., 2016, arXiv:1512.03385",
        input_shape=(1, 28, 28),
        layers=(
            *conv_bn_relu(16, 3, padding=1),  # 16 x 28 x 28
            MaxPool2d(2),  # 16 x 14 x 14
            *block(32, project=True),  # 32 x 14 x 14
            *block(64, stride=2),  # 64 x 7 x 7
            GlobalAvgPool2d(),
            Flatten(),  # 64
            Dense(10),
        ),
        recipe=_recipe(24, RandomAffine(degrees=15, translate=2, scale=0.15, shear=11)),
    )


@register("cnn-tiny", parameters=9_042, group=GROUP)
def cnn_tiny() -> Model:
    return Model(
        name="cnn-tiny",
        document="the zoo's own, pairs of convolutions as in Simonyan and Zisserman, 2015, arXiv:1409.1556",
        input_shape=(1, 28, 28),
        layers=(
            *conv_bn_relu(8, 3, padding=1),  # 8 x 28 x 28
            *conv_bn_relu(8, 3, padding=1),
            MaxPool2d(2),  # 8 x 14 x 14
            *conv_bn_relu(16, 3, padding=1),  # 16 x 14 x 14
            *conv_bn_relu(16, 3, padding=1),
            MaxPool2d(2),  # 16 x 7 x 7
            *conv_bn_relu(16, 3, padding=1),  # 16 x 7 x 7
            *conv_bn_relu(16, 3, padding=1),
            GlobalAvgPool2d(),
            Flatten(),  # 16
            Dense(10),
        ),
        recipe=_recipe(16, RandomAffine(degrees=10, translate=2, scale=0.1, shear=6)),
    )
