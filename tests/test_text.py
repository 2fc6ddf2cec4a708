"""Language models of Python's standard library."""

import jax
import numpy as np
import pytest

from regularized_lopt import tasks
from regularized_lopt.tasks import text

KEY = jax.random.PRNGKey(0)
NAMES = ("LSTM_Python_32", "Transformer_Python_32x32")


def test_splits_have_files_of_their_own_whole_and_in_order(monkeypatch):
    monkeypatch.setattr(text, "MOST_TESTED", 10**9)
    train, test = text._files()
    assert len(test) == (len(train) + len(test)) // 5
    pieces = {}
    for phase in ("meta_train", "meta_test"):
        datasets = text.TextDatasets(phase, length=64)
        for split in ("train", "outer_valid", "test"):
            pieces[phase, split] = datasets.host_arrays(split)["text"]
    held_out = pieces["meta_test", "test"]
    expected = np.concatenate([of[: (len(of) - 1) // 64 * 64] for of in test if len(of) > 64])
    np.testing.assert_array_equal(held_out[:, :-1].ravel(), expected)
    np.testing.assert_array_equal(pieces["meta_train", "test"], pieces["meta_train", "outer_valid"])
    sizes = {
        split: len(pieces[split])
        for split in (("meta_train", "train"), ("meta_train", "test"), ("meta_test", "train"))
    }
    assert sum(sizes.values()) == sum((len(of) - 1) // 64 for of in train if len(of) > 64)
    # Licences and the tables of `encodings` are shared by files; other pieces are not.
    seen = {of.tobytes() for of in pieces["meta_train", "train"]}
    for other in (held_out, pieces["meta_test", "train"]):
        assert np.mean([of.tobytes() in seen for of in other]) < 0.05


def test_of_a_long_test_set_pieces_are_taken_from_all_over_it(monkeypatch):
    datasets = text.TextDatasets("meta_test")
    taken = datasets.read(None)["text"]
    monkeypatch.setattr(text, "MOST_TESTED", 10**9)
    every = datasets.read(None)["text"]
    assert len(taken) == 4096 < len(every)
    np.testing.assert_array_equal(taken[[0, -1]], every[[0, -1]])
    # From all files alike: the share of spaces is that of all pieces.
    np.testing.assert_allclose(np.mean(taken == ord(" ")), np.mean(every == ord(" ")), rtol=0.05)


def test_a_batch_is_text():
    datasets = text.TextDatasets("meta_test", batch_size=4)
    batch = next(datasets.train)
    assert batch["text"].shape == datasets.abstract_batch["text"].shape == (4, 33)
    assert bytes(batch["text"][0].astype(np.uint8)).isascii()


@pytest.mark.parametrize("name", NAMES)
def test_networks_see_no_later_byte_and_start_near_chance(name):
    task = tasks.get(name)
    params = task.init(KEY)
    batch = next(task.datasets.test)
    one = batch["text"][:2, :-1]
    other = np.array(one)
    other[:, 20] += 1
    before, after = (np.asarray(jax.jit(task.logits)(params, of)) for of in (one, other))
    np.testing.assert_allclose(before[:, :20], after[:, :20], rtol=1e-5, atol=1e-6)
    assert np.all(np.abs(before[:, 20:] - after[:, 20:]).max(axis=2) > 1e-6)
    loss = float(task.loss(params, KEY, batch))
    assert loss == pytest.approx(np.log(256), rel=0.2)
    assert task.facts["dataset"].startswith("Python3.")
    assert not task.has_accuracy


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: text.TextDatasets("meta_train", length=0), "length = 0: it must be a whole"),
        (lambda: text.TextDatasets("meta_train", length=2.5), "length = 2.5: it must be a whole"),
        (lambda: text.TextDatasets("meta_train", batch_size="4"), "batch_size = '4': it must be"),
        (lambda: text.TextDatasets("meta_train", seed=-1), "seed = -1: it must be a whole number"),
        (lambda: text.transformer([]), r"sizes = \[\]: one or more are needed"),
        (lambda: text.transformer([30, 30]), r"sizes = \[30, 30\]: .* that 4 heads divide"),
        (lambda: text.transformer([32, 16]), r"sizes = \[32, 16\]: .* all alike"),
        (lambda: text.transformer([32], 0), "num_heads = 0: it must be a whole"),
    ],
)
def test_what_cannot_be_is_refused_at_once(call, message):
    with pytest.raises(ValueError, match=message):
        call()
