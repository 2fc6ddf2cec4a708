"""What a reader sees: verdicts, claims, tables, figures and pages."""

from regularized_lopt import errors

errors.check_installed("study", "matplotlib", "PIL", "jinja2")
