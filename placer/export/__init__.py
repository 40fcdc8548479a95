"""Plans as what runs them: commands, units and cluster resources, and the placement read back from those."""
