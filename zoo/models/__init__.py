"""One file per CNN, in the order of their documents. Importing this package registers them all."""

from zoo.models import convnet as convnet
from zoo.models import convnet_small as convnet_small
from zoo.models import convnet_deep as convnet_deep
from zoo.models import cnn_padded as cnn_padded
from zoo.models import lenet_dropout as lenet_dropout
