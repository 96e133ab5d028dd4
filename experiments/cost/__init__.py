"""What a step takes, and cuts that fit."""
