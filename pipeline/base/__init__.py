"""What every room stands on: errors, files, records, locks, plug-ins, this machine, and what a result depends on."""
