"""Keras imported without TensorFlow's chatter; everything here gets `keras` and `ops` from this module."""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator


def _quiet_import() -> None:
    """Import keras with a home of our own and without TensorFlow's start-up lines.

    `import keras` reads and writes a settings file in KERAS_HOME; the user's must neither change
    our results nor be changed. TensorFlow prints before its log level can be set, so standard
    error is redirected for the import alone, and shown if the import fails.
    """
    if "keras" in sys.modules:
        return
    if "KERAS_HOME" not in os.environ:
        home = tempfile.mkdtemp(prefix="zoo-keras-")
        atexit.register(shutil.rmtree, home, ignore_errors=True)
        os.environ["KERAS_HOME"] = home
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    with _quiet_stderr():
        import keras

        keras.ops.zeros(1)  # looks for devices, which is when the rest of the chatter comes


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep the chatter of Keras', TensorFlow's and tf2onnx's exporters to ourselves; errors come through."""
    kept = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet_stderr():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            # What torch says of every network: that Keras' layers look at their sizes while they are traced,
            # and that a padding stays unfolded. The file is compared with the network.
            for message in ("Converting a tensor to a Python", "Constant folding - Only steps=1"):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logging.disable(kept)


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        except BaseException:
            caught.seek(0)
            os.write(kept, caught.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


_quiet_import()
# Every network compiles functions of its own, which TensorFlow takes for one function retraced.
logging.getLogger("tensorflow").addFilter(lambda record: "tf.function retracing" not in record.getMessage())
# A softmax over a single class is what such a spec says, not a slip.
warnings.filterwarnings("ignore", message="You are using a softmax over axis", category=UserWarning)
import keras  # noqa: E402
from keras import ops  # noqa: E402

__all__ = ["keras", "ops", "quietly"]
