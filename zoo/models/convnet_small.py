"""convnet-small: half the filters and a validation split, from "Convolutional Neural Networks"."""

from zoo.layers import Conv2d, Dense, Flatten, ReLU, Softmax
from zoo.model import Model
from zoo.models.registry import register
from zoo.recipe import Adam, Recipe


@register("convnet-small", parameters=141_258)
def convnet_small() -> Model:
    return Model(
        name="convnet-small",
        document="001_64a49f98617145ee.txt",
        input_shape=(1, 28, 28),
        layers=(
            Conv2d(16, kernel=5),  # 16 x 24 x 24
            ReLU(),
            Conv2d(32, kernel=5),  # 32 x 20 x 20
            ReLU(),
            Flatten(),  # 12800
            Dense(10),
            Softmax(),
        ),
        recipe=Recipe(
            Adam(learning_rate=5e-4),
            batch_size=128,
            epochs=5,
            split=(50_000, 10_000),
            digits_multiple=10,
        ),
        notes=(
            "The document applies softmax and then a cross-entropy that applies softmax again; so "
            "does this recipe. The loss therefore lies between 1.46 and 2.46.",
            "On few images, such as the embedded digits, a class can be lost as in convnet.",
            "The document splits training and validation images at random without a seed; here the "
            "split is a function of the run's seed.",
            "The document writes its loss curve to TensorBoard; here it stands in history.csv.",
            "The document also shuffles the validation and test images, which changes nothing.",
        ),
    )
