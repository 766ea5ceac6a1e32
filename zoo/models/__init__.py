"""One file per CNN or family. Importing this package registers them all: first the five of the source
texts, in their order, then the classics by year, then the zoo's own."""

from zoo.models import convnet as convnet
from zoo.models import convnet_small as convnet_small
from zoo.models import convnet_deep as convnet_deep
from zoo.models import cnn_padded as cnn_padded
from zoo.models import lenet_dropout as lenet_dropout
from zoo.models import lenet5 as lenet5
from zoo.models import alexnet as alexnet
from zoo.models import vgg as vgg
from zoo.models import googlenet as googlenet
from zoo.models import resnet as resnet
from zoo.models import squeezenet as squeezenet
from zoo.models import densenet as densenet
from zoo.models import mobilenet as mobilenet
from zoo.models import modern as modern
