//! Fit over cards and sizes: which cards hold a job, the largest value of a knob on a card, what a size of memory can train.
