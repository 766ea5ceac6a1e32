"""convnet: two wide convolutions and one dense layer, from "Convolutional Neural Networks"."""

from zoo.layers import Conv2d, Dense, Flatten, ReLU, Softmax
from zoo.model import Model
from zoo.models.registry import register
from zoo.recipe import Adam, Recipe


@register("convnet", parameters=308_106)
def convnet() -> Model:
    return Model(
        name="convnet",
        document="000_2276077b20cc8729.txt",
        input_shape=(1, 28, 28),
        layers=(
            Conv2d(32, kernel=5),  # 32 x 24 x 24
            ReLU(),
            Conv2d(64, kernel=5),  # 64 x 20 x 20
            ReLU(),
            Flatten(),  # 25600
            Dense(10),
            Softmax(),
        ),
        recipe=Recipe(Adam(learning_rate=1e-4), batch_size=128, epochs=1, digits_multiple=30),
        notes=(
            "The document applies softmax and then a cross-entropy that applies softmax again; so "
            "does this recipe. The loss therefore lies between 1.46 and 2.46.",
            "The document states a test accuracy of 0.9265 after its one epoch.",
            "Through two softmaxes a class whose probability falls to 0 early gets no gradient "
            "back: from some seeds one class is never predicted and accuracy stays near 0.85.",
            "The document's text calls the images black and white; they are grey, in [0, 1].",
        ),
    )
