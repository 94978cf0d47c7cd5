"""What every other folder may use: settings, records, data, models, signals, training."""
