"""Re-planning: the running fleet under new rates, plans near it, and safe ways there."""
