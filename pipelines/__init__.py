"""The pipelines: thin Hydra entry points, one module per subcommand of ``genosparse``."""
