"""lenet-dropout: a small LeNet with dropout between its convolutions, from "MNIST with CNN"."""

from zoo.layers import Conv2d, Dense, Dropout, Flatten, MaxPool2d, Normalize, ReLU
from zoo.model import Model
from zoo.models.registry import register
from zoo.recipe import Adam, Recipe


@register("lenet-dropout", parameters=10_592)
def lenet_dropout() -> Model:
    return Model(
        name="lenet-dropout",
        document="004_8da422c66b13e386.txt",
        input_shape=(1, 28, 28),
        layers=(
            Normalize(mean=(0.5,), scale=(1 / 0.5,)),  # [0, 1] -> [-1, 1]
            Conv2d(6, kernel=5),  # 6 x 24 x 24
            ReLU(),
            MaxPool2d(2),  # 6 x 12 x 12
            Dropout(0.5),
            Conv2d(16, kernel=5),  # 16 x 8 x 8
            ReLU(),
            MaxPool2d(2),  # 16 x 4 x 4
            Flatten(),  # 256
            Dense(30),
            Dense(10),
        ),
        recipe=Recipe(Adam(learning_rate=1e-2), batch_size=64, epochs=3, drop_last=True, digits_multiple=5),
        notes=(
            "The document's dropout is elementwise, although it stands between convolutions.",
            "The two dense layers follow each other without an activation, as documented.",
            "The document's prose flattens 4 x 4 x 20 maps into 320 numbers; its code, and this "
            "model, have 4 x 4 x 16 and 256.",
            "The document defines a momentum of 0.5 and never uses it.",
        ),
    )
