"""Bad inputs, made here, of every kind that people have met; with the status that each must end in."""
