"""Classifiers of handwritten digits, which read an image pixel by pixel and answer at the last one.

The file also holds the images, always split in the same way, the loss and the accuracy.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..models import log_uniform_rates, LRULayer, ring, StateSpaceLayer
from ..numerics import exponential_increments
from ..reparam import AbstractReparametrisation

REAL, COMPLEX = "real modes", "complex modes"
CLASSES = 10

_LENGTH, _TEST, _FEATURES = 64, 450, 32


class Classifier(eqx.Module):
    """A state-space layer over the pixels of an image, read at the last one, and a linear map."""

    layer: StateSpaceLayer | LRULayer
    head: Float[Array, "classes features"] | None

    def __call__(self, images: Float[Array, "images pixels"]) -> Float[Array, "images classes"]:
        hidden = last_hidden(self.layer, images)
        features = jax.vmap(self.layer.readout)(hidden)
        return features if self.head is None else features @ self.head.T


def last_hidden(layer: StateSpaceLayer | LRULayer, images: Float[Array, "images pixels"]) -> Array:
    """The hidden states after the last pixel, each held for a unit of time.

    The same as by the `scan` of the layer, but as one matrix product: the recurrence is linear,
    and no other output is asked for.
    """
    now, rest = jnp.zeros(()), layer.initial_hidden()
    offset = layer.vector_field(now, rest, now)
    gain = layer.vector_field(now, rest, now + 1) - offset
    turning = isinstance(layer, LRULayer)
    eigenvalues = jax.lax.complex(-layer.rates, layer.frequencies) if turning else -layer.rates
    offset, gain = (jax.lax.complex(*u) if turning else u for u in (offset, gain))
    later = jnp.arange(images.shape[1])[::-1, None]
    kernel = jnp.exp(eigenvalues * later) * exponential_increments(eigenvalues)[0]
    hidden = (images @ kernel) * gain + jnp.sum(kernel, axis=0) * offset
    return jnp.stack([hidden.real, hidden.imag], axis=1) if turning else hidden


def make_classifier(
    model: str, width: int, reparametrisation: AbstractReparametrisation, key: PRNGKeyArray
) -> Classifier:
    """A random classifier whose memories reach from one pixel to the whole image."""
    first, second, third = jax.random.split(key, 3)
    if model == REAL:
        rates = log_uniform_rates(width, 1 / _LENGTH, 1.0, key=first)
        layer = StateSpaceLayer.init(
            rates, None, CLASSES, reparametrisation=reparametrisation, key=second
        )
        return Classifier(layer, None)
    rates, frequencies = ring(width, 0.5, 0.99, max_phase=np.pi, key=first)
    layer = LRULayer.init(
        rates, frequencies, None, _FEATURES, reparametrisation=reparametrisation, key=second
    )
    head = jax.random.normal(third, (CLASSES, _FEATURES)) / np.sqrt(_FEATURES)
    return Classifier(layer, head)


def load_digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The training and the test images with their classes, always split in the same way."""
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise ImportError(
            "the handwritten digits come with scikit-learn, which is not installed; run "
            "pip install 'memjax[notebooks]', or pip install scikit-learn."
        ) from error
    images, classes = (np.asarray(part) for part in load(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(classes))
    images, classes = images[order] / 16, classes[order]
    return (images[_TEST:], classes[_TEST:]), (images[:_TEST], classes[:_TEST])


def cross_entropy(
    model: Classifier, images: Float[Array, "images pixels"], classes: Int[Array, " images"]
) -> Float[Array, ""]:
    logits = model(images)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, classes))


def accuracy(
    model: Classifier, images: Float[Array, "images pixels"], classes: Int[Array, " images"]
) -> Float[Array, ""]:
    return jnp.mean(jnp.argmax(model(images), axis=1) == classes)
