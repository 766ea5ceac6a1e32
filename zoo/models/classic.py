"""What the classics share: their group, their preprocessing, and how they are shrunk to smaller images.

Each is what torchvision builds, so that its weights can be imported (`zoo import torchvision:NAME`);
parameters with which a classic can be made: `size`, the height and width of its images; `channels`;
`classes`. So `resnet18:size=28,channels=1,classes=10` is one for MNIST.
"""

from __future__ import annotations

from zoo.layers import BatchNorm, Conv2d, Layer, Normalize, ReLU

GROUP = "classic"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's red, green and blue
NO_DECAY = (
    "Its paper trains with weight decay and a rate that falls in steps, which a recipe does not express."
)


def imagenet_pixels(channels: int) -> Normalize:
    """Pixels with ImageNet's mean and deviation taken out; images of other than three channels in [-1, 1]."""
    if channels == len(MEAN):
        return Normalize(MEAN, tuple(1 / deviation for deviation in DEVIATION))
    return symmetric_pixels(channels)


def symmetric_pixels(channels: int) -> Normalize:
    """Pixels in [-1, 1]."""
    return Normalize((0.5,) * channels, (2.0,) * channels)


def labels(classes: int) -> tuple[str, ...]:
    """The classes by their numbers."""
    return tuple(map(str, range(classes)))


def conv_bn_relu(
    filters: int, kernel: int | tuple[int, int], stride: int = 1, padding: int = 0, epsilon: float = 1e-5
) -> tuple[Layer, ...]:
    """A convolution without bias, batch normalisation, ReLU: the brick of most of them."""
    return Conv2d(filters, kernel, stride, padding, bias=False), BatchNorm(epsilon), ReLU()
