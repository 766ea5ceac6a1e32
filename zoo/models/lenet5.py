"""LeNet-5 as it is built today: LeCun et al., "Gradient-Based Learning Applied to Document Recognition"."""

from zoo.layers import AvgPool2d, Conv2d, Dense, Flatten, Tanh
from zoo.model import Model
from zoo.models import classic
from zoo.models.registry import register
from zoo.recipe import Adam, Recipe


@register("lenet-5", parameters=61_706, group=classic.GROUP)
def lenet_5() -> Model:
    return Model(
        name="lenet-5",
        document="LeCun et al., 1998",
        input_shape=(1, 28, 28),
        layers=(
            Conv2d(6, kernel=5, padding=2),  # 6 x 28 x 28: the paper pads digits to 32 x 32
            Tanh(),
            AvgPool2d(2),  # 6 x 14 x 14
            Conv2d(16, kernel=5),  # 16 x 10 x 10
            Tanh(),
            AvgPool2d(2),  # 16 x 5 x 5
            Conv2d(120, kernel=5),  # 120 x 1 x 1
            Tanh(),
            Flatten(),
            Dense(84),
            Tanh(),
            Dense(10),
        ),
        recipe=Recipe(Adam(learning_rate=1e-3), batch_size=64, epochs=5, digits_multiple=10),
        notes=(
            "The paper's second convolution sees a chosen part of the maps, its pools have weights and "
            "a bias, its tanh is scaled, and its output are radial basis functions: 60,000 parameters. "
            "This is the form in which it is taught.",
            "The recipe is the zoo's own: the paper's second-order method is none of the recipe's.",
        ),
    )
