"""A trained optimizer in a Haiku training loop with BatchNorm, whose running statistics are state.

    python examples/batch_norm_loop.py --lopt=mnist_star_lstm_none

The optimizer carries the state beside the params, and hands both back. It is asked for no update of
the state: that comes from the forward pass.
"""

import argparse
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import optax
from sklearn import datasets

import regularized_lopt


def network(images: jax.Array, is_training: bool) -> jax.Array:
    """An MLP of 20 units with BatchNorm; images are [batch, 64]."""
    x = hk.Linear(20, with_bias=False)(images)
    x = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(x, is_training)
    return hk.Linear(10)(jax.nn.relu(x))


def main() -> None:
    """Trains it on digits and prints its test accuracy with the running statistics."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--lopt", default="mnist_star_lstm_none", help="trained optimizer: name or path"
    )
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()

    digits = datasets.load_digits()
    images, labels = jnp.asarray(digits.data / 16.0), jnp.asarray(digits.target)
    net = hk.without_apply_rng(hk.transform_with_state(network))

    def loss_fn(params: hk.Params, running: hk.State, index: jax.Array) -> tuple[jax.Array, Any]:
        logits, running = net.apply(params, running, images[index], is_training=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[index])
        return losses.mean(), running

    opt = regularized_lopt.load(args.lopt).opt()
    params, running = net.init(jax.random.PRNGKey(0), images[:1], is_training=True)
    state = opt.init(params, model_state=running)

    @jax.jit
    def train_step(state: Any, index: jax.Array) -> tuple[Any, jax.Array]:
        params, running = opt.get_params_state(state)
        (loss, running), grad = jax.value_and_grad(loss_fn, has_aux=True)(params, running, index)
        return opt.update(state, grad, loss=loss, model_state=running), loss

    for step in range(args.steps):
        index = jax.random.randint(jax.random.PRNGKey(step), (128,), 0, 1500)
        state, loss = train_step(state, index)

    params, running = opt.get_params_state(state)
    logits, _ = net.apply(params, running, images[1500:], is_training=False)
    accuracy = (logits.argmax(-1) == labels[1500:]).mean()
    print(f"loss {loss:.4f}, accuracy on the 297 digits left out {100 * accuracy:.1f}%")


if __name__ == "__main__":
    main()
