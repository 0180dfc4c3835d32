"""From raw event files to published, encoded days. Imports no torch."""
