//! A simulated disk (under construction).
