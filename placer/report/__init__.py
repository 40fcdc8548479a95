"""Reports as one HTML page: a plan, a comparison, what-if curves or a migration, to be looked at in a browser."""
