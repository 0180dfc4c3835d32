"""From raw files to commented schema.toml, pipeline.toml and experiment.toml that train as they stand.

A sample of the rows is read (`formats`, `sample`, `tables`), typed (`columns`), and each column gets a role (`roles`,
`labels`, `leakage`, `features`). What was decided is written with its reasons (`schema_file`, `pipeline_file`,
`experiment_file`), and everything in it is meant to be changed by hand.
"""

from pipelines.init.proposal import Proposal, propose

__all__ = ["Proposal", "propose"]
