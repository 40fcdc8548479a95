"""What if: a problem under other rates, adapters, GPUs, models, lengths or limits, planned anew for each scenario."""
