"""What a reader sees: verdicts, claims, tables, figures and pages."""
