"""Standard data sets by name: how their files lie, what is pretrained on, and which labels give a probe."""
