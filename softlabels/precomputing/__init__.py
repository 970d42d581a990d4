"""Precompute: plan the work, label it unit by unit, publish each unit once."""
