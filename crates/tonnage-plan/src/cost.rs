//! Time as money: dated and sourced prices of cards and instances.
