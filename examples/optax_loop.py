"""A trained optimizer where an optax optimizer is expected: here in Flax's TrainState.

    python examples/optax_loop.py --lopt=mnist_star_lstm_none

`as_optax()` is an `optax.GradientTransformation`: chain it, mask it, accumulate gradients for it,
or hand it to Flax, NNX or Equinox. It takes no learning rate.
"""

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training import train_state
from sklearn import datasets

import regularized_lopt


class MLP(nn.Module):
    """20 hidden units."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(10)(nn.relu(nn.Dense(20)(x)))


def main() -> None:
    """Trains the MLP on digits and prints its test accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--lopt", default="mnist_star_lstm_none", help="trained optimizer: name or path"
    )
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()

    digits = datasets.load_digits()
    images, labels = jnp.asarray(digits.data / 16.0), jnp.asarray(digits.target)
    net = MLP()
    tx = optax.chain(optax.clip_by_global_norm(10.0), regularized_lopt.load(args.lopt).as_optax())
    params = net.init(jax.random.PRNGKey(0), images[:1])
    state = train_state.TrainState.create(apply_fn=net.apply, params=params, tx=tx)

    @jax.jit
    def train_step(
        state: train_state.TrainState, index: jax.Array
    ) -> tuple[train_state.TrainState, jax.Array]:
        def loss_fn(params: Any) -> jax.Array:
            logits = state.apply_fn(params, images[index])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[index]).mean()

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=grads), loss

    for step in range(args.steps):
        index = jax.random.randint(jax.random.PRNGKey(step), (128,), 0, 1500)
        state, loss = train_step(state, index)

    predicted = state.apply_fn(state.params, images[1500:]).argmax(-1)
    accuracy = (predicted == labels[1500:]).mean()
    print(f"loss {loss:.4f}, accuracy on the 297 digits left out {100 * accuracy:.1f}%")


if __name__ == "__main__":
    main()
