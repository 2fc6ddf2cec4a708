import pytest

from regularized_lopt import errors, regularizers, tasks


@pytest.mark.parametrize(
    ("call", "nearest"),
    [
        (lambda: tasks.get("ImageMLP_Mnist_20_Relo"), "'ImageMLP_Mnist_20_Relu'"),
        (lambda: tasks.get("conv_mnist"), "'Conv_Mnist_16x32'"),
        (lambda: regularizers.get("samm"), "'sam'"),
    ],
)
def test_unknown_names_get_the_nearest_one_on_one_line(call, nearest):
    with pytest.raises(errors.UnknownNameError, match=nearest) as error:
        call()
    assert "\n" not in str(error.value)


def test_get_refuses_what_is_neither_name_nor_regularizer():
    with pytest.raises(TypeError, match="is a name"):
        regularizers.get(3)
