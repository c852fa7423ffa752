"""Steps of programs."""
