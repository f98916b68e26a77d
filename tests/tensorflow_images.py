"""What TensorFlow makes of pictures: `tests/runtime/tensorflow_images.npz`, which the tests read.

No test runs this, it needs TensorFlow. In a throw-away environment of TensorFlow 2.21 on x86, from
the root of the repository:

    python3 -m venv /tmp/tf && /tmp/tf/bin/pip install tensorflow-cpu==2.21.0
    PYTHONPATH=. /tmp/tf/bin/python tests/tensorflow_images.py

The calls are those of the evaluation scripts of OpenVLA-OFT and VLA-Adapter. Kept of each result
are some rows, and the SHA-256 of all of them; of each picture and of weights their SHA-256.
"""

import hashlib
from pathlib import Path

import numpy as np
import tensorflow as tf

from tests.pictures import ASKED, EVERY, LONG, SHORT

OUT = Path(__file__).parent / "runtime" / "tensorflow_images.npz"


def through_jpeg(image, quality):
    stored = tf.image.encode_jpeg(image, quality=quality)
    return tf.io.decode_image(stored, expand_animations=False, dtype=tf.uint8)


def resized(image, size):
    if tuple(image.shape[:2]) == size:
        return tf.convert_to_tensor(image)
    image = tf.image.resize(image, size, method="lanczos3", antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)


def cropped(image, area):
    size = tuple(image.shape[:2])
    side = tf.reshape(tf.clip_by_value(tf.sqrt(area), 0, 1), (1,))
    offset = (1 - side) / 2
    box = tf.stack([offset, offset, offset + side, offset + side], axis=1)
    levels = tf.image.convert_image_dtype(image, tf.float32)[None]
    levels = tf.clip_by_value(tf.image.crop_and_resize(levels, box, tf.range(1), size), 0, 1)
    return tf.image.convert_image_dtype(levels, tf.uint8, saturate=True)[0]


def weights(num_in):
    """[SHORT, num_in] float32, of columns of one white pixel each."""
    columns = np.eye(num_in, dtype=np.float32)[:, :, None, None]
    made = [tf.image.resize(c, (SHORT, 1), method="lanczos3", antialias=True) for c in columns]
    return np.stack(made, 1)[:, :, 0, 0]


def digest(array):
    return np.frombuffer(hashlib.sha256(array.tobytes()).digest(), np.uint8)


def main():
    kept = {}
    for asked in ASKED:
        image = asked.picture(*asked.seen)
        kept[f"{asked.name}/picture/sha256"] = digest(image)
        at_size = asked.seen == asked.size
        jpeg = image if at_size else through_jpeg(image, asked.quality)
        for name, made in {
            "resized": resized(image, asked.size),
            "resized_cropped": cropped(resized(image, asked.size), asked.crop_area),
            "jpeg": jpeg,
            "jpeg_resized_cropped": cropped(resized(jpeg, asked.size), asked.crop_area),
        }.items():
            made = np.asarray(made)
            kept[f"{asked.name}/{name}/sha256"] = digest(made)
            kept[f"{asked.name}/{name}"] = made[::EVERY]
    for num_in in LONG:
        kept[f"weights-{num_in}/sha256"] = digest(weights(num_in))
    np.savez_compressed(OUT, **kept)
    print(f"{OUT}: {OUT.stat().st_size} bytes, TensorFlow {tf.__version__}")


if __name__ == "__main__":
    main()
