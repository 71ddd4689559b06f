"""The Lightning modules: SFT, DPO and contrastive embedding over one base."""
