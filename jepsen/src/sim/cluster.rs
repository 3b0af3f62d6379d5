//! A simulated cluster: nodes, their disks and clocks, and what survives their crashes.
