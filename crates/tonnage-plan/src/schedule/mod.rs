//! Dynamic batching: a batch for every length under a budget, and schedules over length ramps.
