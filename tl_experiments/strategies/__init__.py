"""Freeze strategies: what trains, from when, at which rate, as data; and the one place that applies it."""
