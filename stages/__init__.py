"""One file for each DVC stage, same name, run as `python -m stages.<stage>`."""
