"""What every bundle has, whatever its platform: golden vectors, a model card, notices, a list of parts."""
