"""A trained optimizer in an ordinary Haiku training loop.

    python examples/haiku_loop.py --lopt=mnist_star_lstm_none

Your loss has no regularizer and your loop no learning rate: what the optimizer learned about flat
minima is in its weights.
"""

import argparse
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import optax
from sklearn import datasets

import regularized_lopt


def main() -> None:
    """Trains an MLP on digits and prints its test accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--lopt", default="mnist_star_lstm_none", help="trained optimizer: name or path"
    )
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()

    digits = datasets.load_digits()
    images, labels = jnp.asarray(digits.data / 16.0), jnp.asarray(digits.target)
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([20, 10])(x)))

    def loss_fn(params: hk.Params, index: jax.Array) -> jax.Array:
        logits = net.apply(params, images[index])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[index]).mean()

    opt = regularized_lopt.load(args.lopt).opt()
    state = opt.init(net.init(jax.random.PRNGKey(0), images[:1]))

    @jax.jit
    def train_step(state: Any, index: jax.Array) -> tuple[Any, jax.Array]:
        loss, grad = jax.value_and_grad(loss_fn)(opt.get_params(state), index)
        return opt.update(state, grad, loss=loss), loss

    for step in range(args.steps):
        index = jax.random.randint(jax.random.PRNGKey(step), (128,), 0, 1500)
        state, loss = train_step(state, index)

    predicted = net.apply(opt.get_params(state), images[1500:]).argmax(-1)
    accuracy = (predicted == labels[1500:]).mean()
    print(f"loss {loss:.4f}, accuracy on the 297 digits left out {100 * accuracy:.1f}%")


if __name__ == "__main__":
    main()
