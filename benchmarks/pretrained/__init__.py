"""What the loop makes of a pretrained model: few-shot, supervised fine-tuning, one iteration of Algorithm 1, side by side."""
