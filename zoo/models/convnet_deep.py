"""convnet-deep: three convolutions, two pools, dropout, from "Notebook 1A, CNN"."""

from zoo.layers import Conv2d, Dense, Dropout, Flatten, MaxPool2d, ReLU
from zoo.model import Model
from zoo.models.registry import register
from zoo.recipe import Adam, Recipe


@register("convnet-deep", parameters=93_322)
def convnet_deep() -> Model:
    return Model(
        name="convnet-deep",
        document="002_533e6508b7372ffa.txt",
        input_shape=(1, 28, 28),
        layers=(
            Conv2d(32, kernel=3),  # 32 x 26 x 26
            ReLU(),
            MaxPool2d(2),  # 32 x 13 x 13
            Conv2d(64, kernel=3),  # 64 x 11 x 11
            ReLU(),
            MaxPool2d(2),  # 64 x 5 x 5
            Conv2d(64, kernel=3),  # 64 x 3 x 3
            ReLU(),
            Flatten(),  # 576
            Dense(64),
            ReLU(),
            Dropout(0.5),
            Dense(10),
        ),
        recipe=Recipe(Adam(learning_rate=1e-3), batch_size=150, epochs=5, digits_multiple=10),
        notes=(
            "The document announces a final softmax activation; its code ends in logits, and so "
            "does this model. Its loss applies the softmax.",
            "A comment in the document's code says that the flattened maps are 7 x 7; they are "
            "3 x 3, as its layer sizes and its prose have them.",
            "The document divides the sum of batch losses by the number of test images; here the "
            "test loss is the mean over the images.",
        ),
    )
