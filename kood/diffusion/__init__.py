"""Class-conditional diffusion: schedule, model, samplers, label mixup."""
