"""Forecasts of any metric for the analytics host."""
