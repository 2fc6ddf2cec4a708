"""What a checkout is built and tested with."""

import yaml
from conftest import REPOSITORY, known_to_xla

import regularized_lopt
from regularized_lopt.zoo import cards


def test_a_flag_that_xla_does_not_know_is_found_out():
    assert known_to_xla("--xla_backend_optimization_level=0")
    assert not known_to_xla("--xla_unheard_of=0")


def test_the_citation_is_of_this_version_and_licence():
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert cited["version"] == regularized_lopt.__version__
    assert cited["license"] == cards.LICENSE
    assert f'license_expression="{cards.LICENSE}"' in (REPOSITORY / "setup.py").read_text()
