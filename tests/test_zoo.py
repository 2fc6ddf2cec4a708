"""Files of trained optimizers: what cannot be trusted is refused."""

import io

import jax
import numpy as np
import pytest

import regularized_lopt
from regularized_lopt import serialization, zoo

LOPT = regularized_lopt.LSTMLOpt(hidden_size=4)


def variants(content, count, rng):
    """Damaged copies: cut short, bytes changed, tensors swapped, NaN written into one."""
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    names = [name for name, array in arrays.items() if array.dtype == np.float32]
    for _ in range(count):
        kind = rng.integers(4)
        if kind == 0:
            yield content[: rng.integers(len(content))]
        elif kind == 1:
            changed = np.frombuffer(content, np.uint8).copy()
            where = rng.integers(len(changed), size=rng.integers(1, 4))
            changed[where] ^= rng.integers(1, 256, size=len(where), dtype=np.uint8)
            yield changed.tobytes()
        else:
            changed = {name: array.copy() for name, array in arrays.items()}
            first, second = rng.choice(names, 2, replace=False)
            if kind == 2:
                changed[first], changed[second] = changed[second], changed[first]
            else:
                changed[first].reshape(-1)[rng.integers(changed[first].size)] = np.nan
            buffer = io.BytesIO()
            np.savez(buffer, **changed)
            yield buffer.getvalue()


@pytest.mark.slow
def test_ten_thousand_damaged_files_are_refused_or_the_original(tmp_path):
    path = tmp_path / "lopt.npz"
    theta = LOPT.init(jax.random.PRNGKey(0))
    regularized_lopt.save(path, LOPT, theta, {"task": "Digits"})
    expected, header = serialization.load_flat(path)
    refused = 0
    for content in variants(path.read_bytes(), 10_000, np.random.default_rng(0)):
        path.write_bytes(content)
        try:
            found, metadata = serialization.load_flat(path)
        except serialization.FileFormatError:
            refused += 1
            continue
        assert metadata == header
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, strict=True)
    assert refused > 9000


def test_a_file_round_trips_and_a_checkpoint_is_no_optimizer(tmp_path):
    path = tmp_path / "lopt.npz"
    theta = LOPT.init(jax.random.PRNGKey(1))
    regularized_lopt.save(path, LOPT, theta, {"task": "Digits"})
    loaded = regularized_lopt.load(path)
    assert loaded.learned_opt.config == LOPT.config
    assert loaded.metadata["task"] == "Digits"
    for a, b in zip(*map(jax.tree.leaves, (loaded.theta, theta)), strict=True):
        np.testing.assert_array_equal(a, b)
    serialization.save(path, {"step": np.zeros(())})
    with pytest.raises(serialization.FileFormatError, match="holds no learned optimizer"):
        zoo.load(path)
    with pytest.raises(FileNotFoundError, match=r"has no theta\.npz"):
        zoo.load(tmp_path)
