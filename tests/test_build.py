"""What a checkout is built and tested with."""

from conftest import known_to_xla


def test_a_flag_that_xla_does_not_know_is_found_out():
    assert known_to_xla("--xla_backend_optimization_level=0")
    assert not known_to_xla("--xla_unheard_of=0")
