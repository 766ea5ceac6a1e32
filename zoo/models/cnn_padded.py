"""cnn-padded: padded convolutions trained by plain SGD, from "Convolutional Neral Network"."""

from zoo.layers import Conv2d, Dense, Flatten, MaxPool2d, ReLU
from zoo.model import Model
from zoo.models.registry import register
from zoo.recipe import SGD, Recipe


@register("cnn-padded", parameters=28_938)
def cnn_padded(out_1: int = 16, out_2: int = 32) -> Model:
    """out_1, out_2: how many kernels the first and the second convolution have."""
    return Model(
        name="cnn-padded",
        document="003_20ba9f7bb7a1a41f.txt",
        input_shape=(1, 28, 28),
        layers=(
            Conv2d(out_1, kernel=5, padding=2),  # out_1 x 28 x 28
            ReLU(),
            MaxPool2d(2),  # out_1 x 14 x 14
            Conv2d(out_2, kernel=5, padding=2),  # out_2 x 14 x 14
            ReLU(),
            MaxPool2d(2),  # out_2 x 7 x 7
            Flatten(),  # out_2 * 49
            Dense(10),
        ),
        recipe=Recipe(SGD(learning_rate=0.1), batch_size=100, epochs=10, shuffle=False, digits_multiple=5),
        notes=(
            "The document does not shuffle: every epoch sees the batches in the data set's order.",
            "The document calls the test images its validation data; they are the test images "
            "here, and nothing is chosen by them.",
            "The document plots as the loss of an epoch that of its last training batch, under the "
            "heading of the validation data; epochs.csv holds the mean over the epoch.",
            "The document's captions call the activations before the second ReLU the output after "
            "the second layer.",
        ),
    )
