import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import digits_config
from hypothesis import given, settings
from hypothesis import strategies as st

import regularized_lopt
from regularized_lopt import gin_files, serialization
from regularized_lopt.outer_training import outer_train
from regularized_lopt.outer_training.checkpoint import Checkpoints
from regularized_lopt.study import cache as cache_lib

TREE = {"a": np.arange(6.0).reshape(2, 3), "b": [np.int32(3), jnp.ones((0,), jnp.bfloat16)]}


@pytest.mark.smoke
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


@pytest.mark.parametrize("wide", [False, True], ids=["to 64 bits", "to 32 bits"])
def test_numbers_of_the_other_precision_are_named_or_converted(tmp_path, wide):
    trees = {
        False: {"x": np.ones(2, np.float32), "n": np.int32(3), "b": np.ones(1, bool)},
        True: {"x": np.ones(2, np.float64), "n": np.int64(3), "b": np.ones(1, bool)},
    }
    serialization.save(tmp_path / "x.npz", trees[wide])
    with pytest.raises(serialization.OtherPrecisionError, match=f"set JAX_ENABLE_X64={int(wide)}"):
        serialization.load(tmp_path / "x.npz", trees[not wide])
    loaded, _ = serialization.load(tmp_path / "x.npz", trees[not wide], any_precision=True)
    for name, leaf in trees[not wide].items():
        np.testing.assert_array_equal(loaded[name], leaf, strict=True)
    with pytest.raises(serialization.FileFormatError, match=r"1 entries differ, first .'n'"):
        serialization.load(tmp_path / "x.npz", {**trees[not wide], "n": np.ones(2)}, True)


@pytest.mark.parametrize("wide", [False, True], ids=["to 64 bits", "to 32 bits"])
def test_a_run_goes_on_in_its_own_precision_alone_and_its_theta_in_any(tmp_path, wide):
    gin_files.parse_gin([], digits_config(2, "LSTMLOpt.hidden_size = 2"), [])

    def train(num_outer_steps):
        return outer_train(tmp_path, num_outer_steps=num_outer_steps, progress=False)

    with jax.enable_x64(wide):
        theta = train(2).theta
    assert {leaf.dtype.name for leaf in jax.tree.leaves(theta)} == {f"float{64 if wide else 32}"}
    with jax.enable_x64(not wide):
        with pytest.raises(serialization.OtherPrecisionError, match="was written with jax_enable"):
            train(3)
        params = jnp.ones(3)
        opt = regularized_lopt.load(tmp_path).opt()
        moved = opt.get_params(opt.update(opt.init(params), params))
        assert moved.dtype == params.dtype
        assert np.all(moved != params)
    with jax.enable_x64(wide):
        assert train(3).metrics[-1]["outer_step"] == 3


@pytest.mark.parametrize("text", [b"", b'{"seed": ', b"\xff", b"[1]", b"{}"], ids=repr)
def test_a_damaged_description_of_a_run_is_named(tmp_path, text):
    opt = regularized_lopt.LSTMLOpt(hidden_size=2)
    theta = opt.init(jax.random.PRNGKey(0))
    regularized_lopt.save(tmp_path / "theta.npz", opt, theta, {"task": "mine", "seed": 0})
    file = tmp_path / "experiment.json"
    file.write_bytes(text)
    with pytest.raises(serialization.FileFormatError, match=r"experiment.json .*Restore (it|both)"):
        regularized_lopt.load(tmp_path)
    if text != b"{}":
        with pytest.raises(serialization.FileFormatError, match=f"^{file} .*or delete it"):
            cache_lib.Numbers(file)


def test_where_no_checkpoint_loads_it_is_said_what_to_do(tmp_path):
    (tmp_path / "checkpoint_00000003.npz").touch()
    with (
        pytest.warns(UserWarning, match="Trying the checkpoint before"),
        pytest.raises(serialization.FileFormatError, match=f"delete {tmp_path} to begin anew"),
    ):
        Checkpoints(tmp_path).restore(TREE)


@pytest.mark.parametrize("foreign", ["text", "objects"])
def test_nobody_is_advised_to_load_what_could_execute_code(tmp_path, foreign):
    file = tmp_path / "file.npz"
    if foreign == "text":
        file.write_text("outer_train.seed = 1")
    else:
        np.savez(file, mine=np.array([{}], object))
    with pytest.raises(serialization.FileFormatError, match="it is no npz of arrays") as error:
        serialization.load_flat(file)
    assert "pickle" not in str(error.value)
