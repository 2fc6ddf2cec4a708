import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regularized_lopt import serialization

TREE = {"a": np.arange(6.0).reshape(2, 3), "b": [np.int32(3), jnp.ones((0,), jnp.bfloat16)]}


@pytest.mark.parametrize("compress", [False, True])
def test_round_trip(tmp_path, compress):
    tree = {**TREE, "c": jnp.linspace(0, 1, 5, dtype=jnp.bfloat16)}
    serialization.save(tmp_path / "x.npz", tree, {"seed": 1}, compress)
    loaded, metadata = serialization.load(tmp_path / "x.npz", tree)
    assert metadata == {"seed": 1}
    for key in ("a", "c"):
        assert loaded[key].dtype == tree[key].dtype
        np.testing.assert_array_equal(np.asarray(loaded[key]), np.asarray(tree[key]))
    assert loaded["b"][1].shape == (0,)


@settings(max_examples=60)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_file_never_loads_as_something_else(tmp_path_factory, where, bit, cut):
    path = tmp_path_factory.mktemp("damaged") / "x.npz"
    serialization.save(path, TREE, {"seed": 1})
    content = bytearray(path.read_bytes())
    position = int(where * len(content))
    if cut:
        content = content[:position]
    else:
        content[position] ^= 1 << bit
    path.write_bytes(bytes(content))
    try:
        loaded, metadata = serialization.load(path, TREE)
    except serialization.FileFormatError:
        return
    # A flipped bit in zip's padding or timestamps changes nothing that is read.
    np.testing.assert_array_equal(loaded["a"], TREE["a"])
    assert metadata == {"seed": 1}
    assert not cut


def test_refuses_other_structures_newer_formats_and_missing_files(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    with pytest.raises(FileNotFoundError, match="There is no file"):
        serialization.load_flat(path)
    serialization.save(path, TREE)
    with pytest.raises(serialization.FileFormatError, match=r"1 entries differ.*\(2, 3\)"):
        serialization.load(path, {**TREE, "a": np.zeros((3, 2))})
    monkeypatch.setattr(serialization, "FORMAT_VERSION", 99)
    serialization.save(path, TREE)
    monkeypatch.undo()
    with pytest.raises(serialization.FileFormatError, match="format version 99"):
        serialization.load_flat(path)


def test_a_failed_write_leaves_the_old_file_and_no_scratch(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    serialization.save(path, TREE, {"seed": 1})

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(serialization.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        serialization.save(path, TREE, {"seed": 2})
    assert serialization.load_flat(path)[1] == {"seed": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]
