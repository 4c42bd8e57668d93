"""The stages as Prefect tasks: retries, names, tags and progress around one library call each."""
