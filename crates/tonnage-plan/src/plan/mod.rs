//! The search for settings under a memory limit, and the changes that lead there.
